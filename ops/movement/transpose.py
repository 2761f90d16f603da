"""Ops that are one strided copy: Transpose, Copy, Slice, Expand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from qrt.core.errors import ModelError
from qrt.core.record import record
from qrt.ops.movement.strided import emit_strided
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps

__all__ = ["Copy", "Expand", "Slice", "Transpose"]


class _Strided(Op):
    """An op whose every output is an input somewhere along a walk."""

    @abstractmethod
    def walk(self, extents: Sequence[int], strides: Sequence[int]) -> tuple[list[int], int]:
        """Strides of x, which has these extents and strides, for each of y's axes, and where it starts, in elements."""

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        strides, start = self.walk(x.spec.shape, x.strides)
        if y.ref != x.ref + start * x.spec.dtype.itemsize:  # else y is that part of x
            emit_strided(steps, x, y, strides, start, y_strides=y.strides)

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        return True

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        return True

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.movement.device import emit_strided

        x = inputs[0]
        emit_strided(steps, x, outputs[0], *self.walk(x.spec.shape, x.strides))


@record
class Transpose(_Strided):
    """y axis k is x axis perm[k]."""

    perm: tuple[int, ...]

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if sorted(self.perm) != list(range(len(inputs[0].shape))):
            raise ModelError(f"{self.perm} does not permute the axes of a value of shape {inputs[0].shape}")
        return (Spec(tuple(inputs[0].shape[axis] for axis in self.perm), inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        y = inputs[0].transpose(self.perm)
        return (np.ascontiguousarray(y).reshape(y.shape),)

    def walk(self, extents: Sequence[int], strides: Sequence[int]) -> tuple[list[int], int]:
        return [strides[axis] for axis in self.perm], 0


@record
class Copy(_Strided):
    """The same values in a buffer of their own."""

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (inputs[0],)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (inputs[0].copy(),)

    def walk(self, extents: Sequence[int], strides: Sequence[int]) -> tuple[list[int], int]:
        return list(strides), 0


@record
class Slice(_Strided):
    """y[i, j, …] = x[starts[0] + i · strides[0], …] for each index into `shape`; strides may be negative, not 0."""

    starts: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        extents = inputs[0].shape
        for extent, start, n, stride in zip(extents, self.starts, self.shape, self.strides, strict=True):
            if n > 0 and not (0 <= start < extent and 0 <= start + (n - 1) * stride < extent):
                raise ModelError(f"slice of {n} elements from {start} in steps of {stride} leaves a value of shape {extents}")
        return (Spec(self.shape, inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        walks = zip(self.starts, self.shape, self.strides, strict=True)
        return (inputs[0][np.ix_(*(start + stride * np.arange(n) for start, n, stride in walks))],)

    def walk(self, extents: Sequence[int], strides: Sequence[int]) -> tuple[list[int], int]:
        start = sum(s * first for s, first in zip(strides, self.starts, strict=True))
        return [s * step for s, step in zip(strides, self.strides, strict=True)], start


@record
class Expand(_Strided):
    """Axes of extent 1 repeated to those of `shape`, which has the same rank."""

    shape: tuple[int, ...]

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        extents = inputs[0].shape
        if len(extents) != len(self.shape) or any(a not in (1, b) for a, b in zip(extents, self.shape, strict=True)):
            raise ModelError(f"a value of shape {extents} cannot be expanded to {self.shape}")
        return (Spec(self.shape, inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (np.broadcast_to(inputs[0], self.shape).copy(),)

    def walk(self, extents: Sequence[int], strides: Sequence[int]) -> tuple[list[int], int]:
        return [0 if n == 1 else s for n, s in zip(extents, strides, strict=True)], 0
