"""Kernel: one row of a family's literal table, from which it is compiled, chosen, tested and benchmarked."""

from __future__ import annotations

import re
from dataclasses import field

import numpy as np

from qrt.core.errors import KernelError
from qrt.core.record import record
from qrt.core.target import LADDERS, Target

__all__ = ["Kernel", "choose", "record_dtype"]

_NAME = re.compile(r"[a-z0-9_]+__[a-z0-9_]+")
_ISAS = {isa for ladder in LADDERS.values() for isa in ladder}


def record_dtype(*fields: tuple[str, str]) -> np.dtype[np.void]:
    """The structured dtype of a kernel's record: C alignment, fields in the order given.

    Addresses and extents are "i8", scales "f4", codes "i4".
    """
    return np.dtype([(name, np.dtype(kind)) for name, kind in fields], align=True)


@record
class Kernel:
    """`void kernel(record*, int64 tid, int64 nthreads)`, written in Python, compiled for a Target.

    `name`: `family_types_shape__isa`; unique. `isa`: the lowest rung that can run it ("generic": any).
    `record`: what the pointer points at. `source`: "module:function"; the function, given `params`, returns the Python
    kernel. It is imported only to compile.
    """

    name: str
    record: np.dtype[np.void]
    source: str
    params: tuple[int | float | str | bool, ...] = field(default=())

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.isa not in _ISAS:
            raise KernelError(f"kernel name {self.name!r} is not family_types_shape__isa")

    @property
    def isa(self) -> str:
        """The rung of the ladder that the kernel is written for."""
        return self.name.rpartition("__")[2]


def choose(kernels: tuple[Kernel, ...], target: Target) -> tuple[Kernel, ...]:
    """The kernels of a table that are written for the best rung `target` can run (all of that rung, in table order)."""
    for isa in target.ladder:
        found = tuple(k for k in kernels if k.isa == isa)
        if found:
            return found
    raise KernelError(f"no kernel of {[k.name for k in kernels]} runs on {target.isa}")
