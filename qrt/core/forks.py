"""Forked processes: a copy of the parent's memory, in which only the thread that forked goes on."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["in_child"]


def in_child(renew: Callable[[], None]) -> None:
    """Lets every process forked from here on begin with `renew()`: of locks that other threads held, which nobody would let go of."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
