"""Binary ops and Where, with broadcasting between operands of one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise.walk import Walked, broadcast_shape, threads_for, walk_fields, walk_record
from qrt.ops.op import Array, DeviceSteps, Operand, Spec, Steps

__all__ = ["BINARY", "KERNELS", "Binary", "Where"]

FLOAT = ("float32", "float64")
INTEGER = ("int64", "int32", "uint8", "int8")
NUMBER = (*FLOAT, *INTEGER)
BOOL = ("bool",)


@record
class Row:
    """One binary function: its definition, dtypes of both operands, and the result's dtype if another."""

    reference: Callable[[Array, Array], Array]
    dtypes: tuple[str, ...]
    result: str | None = None


def _divide(a: Array, b: Array) -> Array:
    """Floats as IEEE 754 says; integers truncate, x / 0 is 0, and the lowest number / −1 wraps to itself."""
    if a.dtype.kind == "f":
        return a / b
    safe = np.where(b == 0, 1, b)
    floor = np.floor_divide(a, safe)
    inexact = floor * safe != a
    quotient = floor + (inexact & ((a < 0) != (safe < 0)))
    return np.where(b == 0, 0, quotient)


def _remainder(a: Array, b: Array) -> Array:
    """The remainder with the sign of the divisor; x mod 0 is 0."""
    safe = np.where((b == 0) | (b == -1 if b.dtype.kind == "i" else False), 1, b)
    return np.mod(a, safe)


def _fmod(a: Array, b: Array) -> Array:
    """The remainder with the sign of the dividend; for integers x mod 0 is 0."""
    if a.dtype.kind == "f":
        return np.fmod(a, b)
    safe = np.where((b == 0) | (b == -1 if b.dtype.kind == "i" else False), 1, b)
    return np.fmod(a, safe)


# Names are those of the ONNX operators in snake case; `fmod` is Mod with fmod=1.
BINARY: dict[str, Row] = {
    "add": Row(np.add, NUMBER),
    "and": Row(np.logical_and, BOOL),
    "bitwise_and": Row(np.bitwise_and, INTEGER),
    "bitwise_or": Row(np.bitwise_or, INTEGER),
    "bitwise_xor": Row(np.bitwise_xor, INTEGER),
    "div": Row(_divide, NUMBER),
    "equal": Row(np.equal, (*NUMBER, "bool"), "bool"),
    "fmod": Row(_fmod, NUMBER),
    "greater": Row(np.greater, NUMBER, "bool"),
    "greater_or_equal": Row(np.greater_equal, NUMBER, "bool"),
    "less": Row(np.less, NUMBER, "bool"),
    "less_or_equal": Row(np.less_equal, NUMBER, "bool"),
    "max": Row(np.maximum, NUMBER),
    "min": Row(np.minimum, NUMBER),
    "mod": Row(_remainder, INTEGER),
    "mul": Row(np.multiply, NUMBER),
    "or": Row(np.logical_or, BOOL),
    "pow": Row(np.power, FLOAT),
    "prelu": Row(lambda x, slope: np.where(x < 0, slope * x, x), FLOAT),
    "sub": Row(np.subtract, NUMBER),
    "xor": Row(np.logical_xor, BOOL),
}

_RECORD = record_dtype(*walk_record("ab"))
_WHERE_RECORD = record_dtype(*walk_record("cab"))

_BINARY_KERNELS = {
    (name, dtype): Kernel(f"binary_{name}_{dtype}__generic", _RECORD, "qrt.ops.elementwise.cpu:binary", (name, dtype, row.result or dtype))
    for name, row in BINARY.items()
    for dtype in row.dtypes
}
# Where moves bytes: one kernel for each size of an element.
_WHERE_KERNELS = {
    size: Kernel(f"where_b{size}__generic", _WHERE_RECORD, "qrt.ops.elementwise.cpu:where", (f"uint{8 * size}",)) for size in (1, 2, 4, 8)
}
KERNELS: tuple[Kernel, ...] = (*_BINARY_KERNELS.values(), *_WHERE_KERNELS.values())


@record
class Binary(Walked):
    """y = f(a, b), f a row of BINARY; operands of one rank and dtype, extents of 1 repeat."""

    name: str

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        row, (a, b) = BINARY[self.name], inputs
        if a.dtype != b.dtype:
            raise ModelError(f"{self.name} of {a.dtype} and {b.dtype}: the operands need one dtype")
        if a.dtype.name not in row.dtypes:
            raise UnsupportedOp(f"{self.name} has no kernel for {a.dtype}")
        return (Spec(broadcast_shape([a.shape, b.shape]), np.dtype(row.result) if row.result else a.dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        a, b = inputs
        with np.errstate(all="ignore"):
            y = BINARY[self.name].reference(a, b)
        result: Any = np.dtype(BINARY[self.name].result or a.dtype)
        return (np.asarray(y).astype(result, copy=False),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        a, b, y = inputs[0], inputs[1], outputs[0]
        if y.spec.size:
            kernel = _BINARY_KERNELS[self.name, a.spec.dtype.name]
            steps.step(kernel, threads_for(y.spec.size * a.spec.dtype.itemsize), **walk_fields("ab", (a, b), y))

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.elementwise.device import emit_binary

        if outputs[0].spec.size:
            emit_binary(steps, self.name, inputs[0], inputs[1], outputs[0])

    @property
    def inplace(self) -> tuple[int, ...]:
        # The planner checks that the bytes agree, which leaves out operands that repeat.
        return (0, 1) if BINARY[self.name].result is None else ()


@record
class Where(Walked):
    """y = a where the bool c holds, else b; operands of one rank, extents of 1 repeat."""

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        c, a, b = inputs
        if c.dtype != np.bool_ or a.dtype != b.dtype:
            raise ModelError(f"Where of {c.dtype}, {a.dtype} and {b.dtype}: give a bool and two operands of one dtype")
        if a.dtype.itemsize not in _WHERE_KERNELS or a.dtype.kind not in "fiub":
            raise UnsupportedOp(f"Where has no kernel for {a.dtype}")
        return (Spec(broadcast_shape([c.shape, a.shape, b.shape]), a.dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (np.asarray(np.where(*inputs)),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        y = outputs[0]
        if y.spec.size:
            steps.step(_WHERE_KERNELS[y.spec.dtype.itemsize], threads_for(y.spec.nbytes), **walk_fields("cab", inputs, y))

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.elementwise.device import emit_where

        if outputs[0].spec.size:
            emit_where(steps, inputs, outputs[0])

    @property
    def inplace(self) -> tuple[int, ...]:
        return (1, 2)
