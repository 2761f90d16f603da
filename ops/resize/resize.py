"""Nearest and Linear: two neighbouring axes of a value resampled at given places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np

from qrt.core.dtypes import quint8
from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.numerics import round_clamp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Ref, Spec, Steps
from qrt.ops.strides import agreed, row_stride, viewed

__all__ = ["KERNELS", "Linear", "Nearest", "QLinear"]

# `inner`: elements of a pixel; `y_pixel`: those from one pixel of y to the next.
_WORDS = ("x", "y", "row_of", "column_of", "outer", "rows", "columns", "inner", "y_pixel", "x_rows", "x_columns")
_NEAREST_RECORD = record_dtype(*((name, "i8") for name in _WORDS))
_LINEAR_RECORD = record_dtype(
    *((name, "i8") for name in (*_WORDS, "row_part", "column_part")),
    *((name, "f4") for name in ("multiplier", "low", "high")),
    *((name, "i4") for name in ("x_zero_point", "y_zero_point")),
)
_NEAREST = {
    size: Kernel(f"resize_b{size}_nearest__generic", _NEAREST_RECORD, "qrt.ops.resize.cpu:nearest", (size,)) for size in (1, 2, 4, 8)
}
_LINEAR = {
    codes: Kernel(f"resize_{'u8' if codes else 'f32'}_linear__generic", _LINEAR_RECORD, "qrt.ops.resize.cpu:linear", (codes,))
    for codes in (False, True)
}
KERNELS: tuple[Kernel, ...] = (*_NEAREST.values(), *_LINEAR.values())

SERIAL_BYTES = 1 << 14


@lru_cache(maxsize=1024)
def _table(values: tuple[float, ...], dtype: str) -> Array:
    """One array for equal tables, so that plans of one model share it."""
    return np.array(values, dtype)


def _constant(steps: Steps | DeviceSteps, values: tuple[float, ...], dtype: str) -> Ref:
    table = _table(values, dtype)
    return steps.packed(table, "table", table.copy)


def _check(x: Spec, axis: int, rows: Sequence[float], columns: Sequence[float]) -> Spec:
    if not 0 <= axis < len(x.shape) - 1:
        raise ModelError(f"a value of shape {x.shape} has no axes {axis} and {axis + 1}")
    for n, places in ((x.shape[axis], rows), (x.shape[axis + 1], columns)):
        if places and not 0 <= min(places) <= max(places) <= n - 1:
            raise ModelError(f"places {min(places)} … {max(places)} leave an axis of {n} elements")
    if max(x.shape) >= 2**31:
        raise UnsupportedOp(f"resizing a value of shape {x.shape}")
    return Spec((*x.shape[:axis], len(rows), len(columns), *x.shape[axis + 2 :]), x.dtype)


def _pixel(spec: Spec, strides: Sequence[int], axis: int) -> int | None:
    """Elements from one pixel of axes `axis` and `axis` + 1 to the next, where all lie at one distance; else None."""
    rows = viewed(spec.shape, strides, (prod(spec.shape[: axis + 2]), prod(spec.shape[axis + 2 :])))
    return None if rows is None else row_stride((prod(spec.shape[: axis + 2]), prod(spec.shape[axis + 2 :])), rows)


def _fields(x: Spec, y: Operand, axis: int) -> dict[str, int]:
    return {
        "outer": prod(x.shape[:axis]),
        "rows": y.spec.shape[axis],
        "columns": y.spec.shape[axis + 1],
        "inner": prod(x.shape[axis + 2 :]),
        "y_pixel": agreed(_pixel(y.spec, y.strides, axis)),
        "x_rows": x.shape[axis],
        "x_columns": x.shape[axis + 1],
    }


class _Resize(Op):
    """An op whose kernel writes pixels at one distance."""

    axis: int

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        return _pixel(y, strides, self.axis) is not None


@record
class Nearest(_Resize):
    """y[…, i, j, …] = x[…, rows[i], columns[j], …] for axes `axis` and `axis` + 1."""

    axis: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def repeats(self) -> bool:
        return True

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (_check(inputs[0], self.axis, self.rows, self.columns),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (inputs[0].take(np.array(self.rows, int), self.axis).take(np.array(self.columns, int), self.axis + 1),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size:
            steps.step(
                _NEAREST[x.spec.dtype.itemsize],
                None if y.spec.nbytes > SERIAL_BYTES else 1,
                x=x.ref,
                y=y.ref,
                row_of=_constant(steps, self.rows, "i4"),
                column_of=_constant(steps, self.columns, "i4"),
                **_fields(x.spec, y, self.axis),
            )

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.resize.device import emit_nearest

        if outputs[0].spec.size:
            rows, columns = _constant(steps, self.rows, "i4"), _constant(steps, self.columns, "i4")
            emit_nearest(steps, inputs[0], outputs[0], self.axis, rows, columns)


def _mean(x: Array, axis: int, rows: Sequence[float], columns: Sequence[float]) -> Array:
    """Linear interpolation of float32, along the second axis first."""
    for k, places in ((axis + 1, columns), (axis, rows)):
        first = np.floor(np.array(places, np.float32)).astype(np.int64)
        part = (np.array(places, np.float32) - first.astype(np.float32)).reshape([-1 if a == k else 1 for a in range(x.ndim)])
        following = np.minimum(first + 1, x.shape[k] - 1)
        x = x.take(first, k) * (np.float32(1) - part) + x.take(following, k) * part
    return x


def _tables(steps: Steps | DeviceSteps, rows: tuple[float, ...], columns: tuple[float, ...]) -> dict[str, Ref]:
    """Where the rows and columns of the result lie: after which ones of x, and how far."""
    tables: dict[str, Ref] = {}
    for name, places in (("row", rows), ("column", columns)):
        first = np.floor(np.array(places, np.float32))
        tables[f"{name}_of"] = _constant(steps, tuple(first.tolist()), "i4")
        tables[f"{name}_part"] = _constant(steps, tuple((np.array(places, np.float32) - first).tolist()), "f4")
    return tables


def _emit_linear(
    steps: Steps,
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    axis: int,
    rows: tuple[float, ...],
    columns: tuple[float, ...],
    codes: dict[str, float | int],
) -> None:
    x, y = inputs[0], outputs[0]
    if not y.spec.size:
        return
    steps.step(
        _LINEAR[bool(codes)],
        None if y.spec.nbytes > SERIAL_BYTES else 1,
        x=x.ref,
        y=y.ref,
        **_tables(steps, rows, columns),
        **_fields(x.spec, y, axis),
        **(codes or dict.fromkeys(("multiplier", "low", "high", "x_zero_point", "y_zero_point"), 0)),
    )


@record
class Linear(_Resize):
    """x at the places (rows[i], columns[j]) of axes `axis` and `axis` + 1, float32 and not always whole: between four elements
    their mean, weighted by how near they are, along columns first."""

    axis: int
    rows: tuple[float, ...]
    columns: tuple[float, ...]

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if inputs[0].dtype != np.float32:
            raise UnsupportedOp(f"linear resizing of {inputs[0].dtype}: there is a kernel for float32")
        return (_check(inputs[0], self.axis, self.rows, self.columns),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (_mean(inputs[0], self.axis, self.rows, self.columns),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        _emit_linear(steps, inputs, outputs, self.axis, self.rows, self.columns, {})

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.resize.device import emit_linear

        if outputs[0].spec.size:
            emit_linear(steps, inputs[0], outputs[0], self.axis, _tables(steps, self.rows, self.columns), {})


@record
class QLinear(_Resize):
    """Linear on uint8 codes: the mean of x − x_zero_point in float32, times x_scale / y_scale (float32), rounded to a code."""

    axis: int
    rows: tuple[float, ...]
    columns: tuple[float, ...]
    x_scale: float
    x_zero_point: int
    y_scale: float
    y_zero_point: int
    qmin: int = 0
    qmax: int = 255

    @property
    def multiplier(self) -> np.float32:
        """x_scale / y_scale."""
        return np.float32(self.x_scale) / np.float32(self.y_scale)

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if inputs[0].dtype != quint8.storage:
            raise UnsupportedOp(f"codes of dtype {inputs[0].dtype}: expected uint8")
        return (_check(inputs[0], self.axis, self.rows, self.columns),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        steps = (inputs[0].astype(np.int32) - self.x_zero_point).astype(np.float32)
        mean = _mean(steps, self.axis, self.rows, self.columns) * self.multiplier
        return (round_clamp(mean, np.array(self.y_zero_point), self.qmin, self.qmax).astype(np.uint8),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        _emit_linear(steps, inputs, outputs, self.axis, self.rows, self.columns, self._codes())

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.resize.device import emit_linear

        if outputs[0].spec.size:
            emit_linear(steps, inputs[0], outputs[0], self.axis, _tables(steps, self.rows, self.columns), self._codes())

    def _codes(self) -> dict[str, float | int]:
        return {
            "multiplier": float(self.multiplier),
            "low": self.qmin - self.y_zero_point,
            "high": self.qmax - self.y_zero_point,
            "x_zero_point": self.x_zero_point,
            "y_zero_point": self.y_zero_point,
        }
