"""Handlers of this family."""

from __future__ import annotations

from qrt.lower.lowering import Handler

__all__ = ["HANDLERS"]

HANDLERS: dict[tuple[str, str], Handler] = {}
