"""Concat, on values and on codes, and Pad: copies into parts of one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from qrt.core.dtypes import quint8
from qrt.core.errors import ModelError
from qrt.core.numerics import dequantize, quantize
from qrt.core.qparams import QParams
from qrt.jit import Kernel, choose, record_dtype
from qrt.ops.movement.strided import SERIAL_BYTES, contiguous, emit_strided
from qrt.ops.op import Array, Op, Operand, Spec, Steps

__all__ = ["KERNELS", "Concat", "Pad", "QConcat"]

# Rows of `n` codes, one after the other in x and `stride` apart in y.
_RECORD = record_dtype(("x", "i8"), ("y", "i8"), ("table", "i8"), ("rows", "i8"), ("n", "i8"), ("stride", "i8"))
KERNELS: tuple[Kernel, ...] = (
    Kernel("copy_u8_lut_rows__amx", _RECORD, "qrt.ops.movement.cpu_index:lut_rows", (True,)),
    Kernel("copy_u8_lut_rows__generic", _RECORD, "qrt.ops.movement.cpu_index:lut_rows", (False,)),
)


@dataclass(frozen=True)
class Concat(Op):
    """The inputs one after the other along `axis`."""

    axis: int

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        first, axis = inputs[0], self.axis
        for other in inputs:
            rest = (*other.shape[:axis], *other.shape[axis + 1 :])
            if len(other.shape) != len(first.shape) or rest != (*first.shape[:axis], *first.shape[axis + 1 :]):
                raise ModelError(f"values of shapes {[i.shape for i in inputs]} cannot be joined along axis {axis}")
            if other.dtype != first.dtype:
                raise ModelError(f"values of dtypes {[str(i.dtype) for i in inputs]} cannot be joined")
        return (Spec((*first.shape[:axis], sum(i.shape[axis] for i in inputs), *first.shape[axis + 1 :]), first.dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (np.concatenate(inputs, self.axis),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        y, begin = outputs[0], 0
        for x in inputs:
            shape, start = x.spec.shape, begin * y.strides[self.axis]
            if x.ref != y.ref + start * y.spec.dtype.itemsize:  # else its maker wrote it there
                emit_strided(steps, x, y, x.strides, shape=shape, y_strides=y.strides, y_start=start)
            begin += shape[self.axis]

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        return True

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        return True


@cache
def _table(given: tuple[float, int], result: tuple[float, int], qmin: int, qmax: int) -> Array:
    """The code under `result` (scale, zero point), bounded, of each of the 256 codes under `given`."""
    source, target = (QParams(np.array(scale, np.float32), np.array(zero_point), quint8) for scale, zero_point in (given, result))
    codes: Array = np.clip(quantize(dequantize(np.arange(256, dtype=np.uint8), source), target), np.uint8(qmin), np.uint8(qmax))
    return codes


@dataclass(frozen=True)
class QConcat(Op):
    """Concat of uint8 codes, each input requantized to the output's scale and zero point: quantize(dequantize(code)), bounded.

    `qparams`: (scale, zero point) of each input, then of the output.
    """

    axis: int
    qparams: tuple[tuple[float, int], ...]
    qmin: int = 0
    qmax: int = 255

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if any(i.dtype != np.uint8 for i in inputs):
            raise ModelError(f"codes of dtypes {[str(i.dtype) for i in inputs]}: expected uint8")
        return Concat(self.axis).infer(inputs)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (
            np.concatenate([_table(self.qparams[k], self.qparams[-1], self.qmin, self.qmax)[x] for k, x in enumerate(inputs)], self.axis),
        )

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        y = outputs[0]
        stride = prod(y.spec.shape[self.axis :])
        begin = 0
        for k, x in enumerate(inputs):
            rows, n = prod(x.spec.shape[: self.axis]), prod(x.spec.shape[self.axis :])
            if self.qparams[k] == self.qparams[-1] and (self.qmin, self.qmax) == (0, 255):
                emit_strided(steps, x, y, [n, 1], shape=(rows, n), y_strides=(stride, 1), y_start=begin)
            elif rows * n:
                table = _table(self.qparams[k], self.qparams[-1], self.qmin, self.qmax)
                ref = steps.packed(table, "table", table.copy)
                threads = None if x.spec.nbytes > SERIAL_BYTES else 1
                steps.step(choose(KERNELS, steps.target)[0], threads, x=x.ref, y=y.ref + begin, table=ref, rows=rows, n=n, stride=stride)
            begin += n


@dataclass(frozen=True)
class Pad(Op):
    """`before` and `after` new elements along each axis: the second input (one element) in mode "constant"; in mode "edge"
    the nearest element of x, in mode "reflect" x mirrored about its first and last element."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    mode: str

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        shape = inputs[0].shape
        for n, before, after in zip(shape, self.before, self.after, strict=True):
            widest = max(before, after)
            if (
                min(before, after) < 0
                or (widest > 0 and self.mode != "constant" and n == 0)
                or (self.mode == "reflect" and widest >= max(n, 1))
            ):
                raise ModelError(f"a value of shape {shape} cannot be padded by {self.before} and {self.after} in mode {self.mode!r}")
        if self.mode == "constant" and (inputs[1].size != 1 or inputs[1].dtype != inputs[0].dtype):
            raise ModelError(f"padding of dtype {inputs[1].dtype} and shape {inputs[1].shape} for {inputs[0].dtype}: expected one element")
        extents = zip(shape, self.before, self.after, strict=True)
        return (Spec(tuple(n + before + after for n, before, after in extents), inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        widths = list(zip(self.before, self.after, strict=True))
        if self.mode == "constant":
            return (np.pad(inputs[0], widths, constant_values=inputs[1].reshape(())),)
        return (np.pad(inputs[0], widths, mode="edge" if self.mode == "edge" else "reflect"),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        extents, strides = list(x.spec.shape), contiguous(y.spec.shape)
        offset = sum(before * stride for before, stride in zip(self.before, strides, strict=True))
        emit_strided(steps, x, y, contiguous(extents), shape=extents, y_strides=strides, y_start=offset)
        # What is there already grows by its borders, axis by axis.
        for axis, stride in enumerate(strides):
            n, last = extents[axis], (extents[axis] - 1) * stride
            for width, edge, outward in ((self.before[axis], 0, -stride), (self.after[axis], last, stride)):
                border = [*extents[:axis], width, *extents[axis + 1 :]]
                to = offset + (edge - width * stride if outward < 0 else edge + stride)
                if self.mode == "constant":
                    emit_strided(steps, inputs[1], y, [0] * len(border), shape=border, y_strides=strides, y_start=to)
                    continue
                walk, at = list(strides), offset + edge
                if self.mode == "edge":
                    walk[axis] = 0
                else:
                    walk[axis] = -stride
                    at -= width * outward if outward < 0 else stride
                emit_strided(steps, y, y, walk, at, shape=border, y_strides=strides, y_start=to)
            offset -= self.before[axis] * stride
            extents[axis] = n + self.before[axis] + self.after[axis]
