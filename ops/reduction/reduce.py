"""Reduce: one run of neighbouring axes folded into one element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps

__all__ = ["KERNELS", "KINDS", "Reduce", "extents"]

FLOAT = ("float32",)
NUMBER = ("float32", "int64", "int32")
# Columns that one thread folds at a time: their partial results stay in the first-level cache.
COLUMNS = 512


@record
class Row:
    """One fold: its definition (array, axes), dtypes, and whether no elements at all have a result."""

    reference: Callable[[Array, tuple[int, ...]], Array]
    dtypes: tuple[str, ...]
    of_nothing: bool = True


KINDS: dict[str, Row] = {
    "l1": Row(lambda x, axes: np.abs(x).sum(axes, x.dtype, keepdims=True), NUMBER),
    "max": Row(lambda x, axes: x.max(axes, keepdims=True), NUMBER, False),
    "mean": Row(lambda x, axes: x.mean(axes, x.dtype, keepdims=True), FLOAT, False),
    "min": Row(lambda x, axes: x.min(axes, keepdims=True), NUMBER, False),
    "prod": Row(lambda x, axes: x.prod(axes, x.dtype, keepdims=True), NUMBER),
    "sum": Row(lambda x, axes: x.sum(axes, x.dtype, keepdims=True), NUMBER),
    "sum_square": Row(lambda x, axes: np.square(x).sum(axes, x.dtype, keepdims=True), NUMBER),
}

# x is [outer, n, inner]. `rows`: inner is 1.
_RECORD = record_dtype(*((name, "i8") for name in ("x", "y", "outer", "n", "inner", "block")))
_KERNELS = {
    (shape, kind, dtype): Kernel(f"reduce_{shape}_{kind}_{dtype}__generic", _RECORD, f"qrt.ops.reduction.cpu:{shape}", (kind, dtype))
    for shape in ("rows", "columns")
    for kind, row in KINDS.items()
    for dtype in row.dtypes
}
KERNELS: tuple[Kernel, ...] = tuple(_KERNELS.values())


def extents(shape: tuple[int, ...], first: int, last: int) -> tuple[int, int, int]:
    """`shape` as (outer, n, inner) around axes first … last − 1."""
    return prod(shape[:first]), prod(shape[first:last]), prod(shape[last:])


@record
class Reduce(Op):
    """Axes first … last − 1 folded by a row of KINDS; they stay, with extent 1. Sums are in a fixed order."""

    kind: str
    first: int
    last: int

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, row = inputs[0], KINDS[self.kind]
        if x.dtype.name not in row.dtypes or not 0 <= self.first < self.last <= len(x.shape):
            raise UnsupportedOp(f"no kernel folds axes {self.first} to {self.last - 1} of {x.dtype}{x.shape} by {self.kind}")
        if not row.of_nothing and 0 in x.shape[self.first : self.last]:
            raise UnsupportedOp(f"the {self.kind} of no elements is not defined: {x.shape}")
        return (Spec((*x.shape[: self.first], *(1,) * (self.last - self.first), *x.shape[self.last :]), x.dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            return (np.asarray(KINDS[self.kind].reference(inputs[0], tuple(range(self.first, self.last)))),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size == 0:
            return
        outer, n, inner = extents(x.spec.shape, self.first, self.last)
        fields: dict[str, Any] = {"x": x.ref, "y": y.ref, "outer": outer, "n": n, "inner": inner}
        # Enough blocks for every thread, none narrower than a few vectors.
        block = min(COLUMNS, max(64, -(-inner // steps.threads)))
        kernel = _KERNELS["rows" if inner == 1 else "columns", self.kind, x.spec.dtype.name]
        steps.step(kernel, threads_for(x.spec.nbytes), **fields, block=block)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.reduction.device import emit_reduce

        x, y = inputs[0], outputs[0]
        if y.spec.size:
            emit_reduce(steps, self.kind, x, y, extents(x.spec.shape, self.first, self.last))
