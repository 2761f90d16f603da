"""Concat and Pad: copies into parts of one buffer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from qrt.core.errors import ModelError
from qrt.core.record import record
from qrt.ops.movement.strided import contiguous, emit_strided
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps

__all__ = ["Concat", "Pad"]

# `emit_strided` of `strided.py` or `device.py`, without its first argument.
_Copy = Callable[..., None]


class _Copies(Op):
    """An op that is strided copies into parts of its result."""

    @abstractmethod
    def copies(self, copy: _Copy, inputs: Sequence[Operand], y: Operand) -> None:
        """Calls `copy` for each."""

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        self.copies(partial(emit_strided, steps), inputs, outputs[0])

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.movement.device import emit_strided

        self.copies(partial(emit_strided, steps), inputs, outputs[0])


@record
class Concat(_Copies):
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

    def copies(self, copy: _Copy, inputs: Sequence[Operand], y: Operand) -> None:
        begin = 0
        for x in inputs:
            shape, start = x.spec.shape, begin * y.strides[self.axis]
            if x.ref != y.ref + start * y.spec.dtype.itemsize:  # else its maker wrote it there
                copy(x, y, x.strides, shape=shape, y_strides=y.strides, y_start=start)
            begin += shape[self.axis]

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        return True

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        return True


@record
class Pad(_Copies):
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

    def copies(self, copy: _Copy, inputs: Sequence[Operand], y: Operand) -> None:
        x = inputs[0]
        extents, strides = list(x.spec.shape), contiguous(y.spec.shape)
        offset = sum(before * stride for before, stride in zip(self.before, strides, strict=True))
        copy(x, y, contiguous(extents), shape=extents, y_strides=strides, y_start=offset)
        # What is there already grows by its borders, axis by axis.
        for axis, stride in enumerate(strides):
            n, last = extents[axis], (extents[axis] - 1) * stride
            for width, edge, outward in ((self.before[axis], 0, -stride), (self.after[axis], last, stride)):
                border = [*extents[:axis], width, *extents[axis + 1 :]]
                to = offset + (edge - width * stride if outward < 0 else edge + stride)
                if self.mode == "constant":
                    copy(inputs[1], y, [0] * len(border), shape=border, y_strides=strides, y_start=to)
                    continue
                walk, at = list(strides), offset + edge
                if self.mode == "edge":
                    walk[axis] = 0
                else:
                    walk[axis] = -stride
                    at -= width * outward if outward < 0 else stride
                copy(y, y, walk, at, shape=border, y_strides=strides, y_start=to)
            offset -= self.before[axis] * stride
            extents[axis] = n + self.before[axis] + self.after[axis]
