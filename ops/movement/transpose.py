"""Ops that are one strided copy: Transpose, Copy, Slice, Expand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrt.core.errors import ModelError
from qrt.ops.movement.strided import contiguous, emit_strided
from qrt.ops.op import Array, Op, Operand, Spec, Steps

__all__ = ["Copy", "Expand", "Slice", "Transpose"]


@dataclass(frozen=True)
class Transpose(Op):
    """y axis k is x axis perm[k]."""

    perm: tuple[int, ...]

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if sorted(self.perm) != list(range(len(inputs[0].shape))):
            raise ModelError(f"{self.perm} does not permute the axes of a value of shape {inputs[0].shape}")
        return (Spec(tuple(inputs[0].shape[axis] for axis in self.perm), inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        y = inputs[0].transpose(self.perm)
        return (np.ascontiguousarray(y).reshape(y.shape),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        strides = contiguous(inputs[0].spec.shape)
        emit_strided(steps, inputs[0], outputs[0], [strides[axis] for axis in self.perm])


@dataclass(frozen=True)
class Copy(Op):
    """The same values in a buffer of their own."""

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (inputs[0],)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (inputs[0].copy(),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        emit_strided(steps, inputs[0], outputs[0], contiguous(inputs[0].spec.shape))


@dataclass(frozen=True)
class Slice(Op):
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

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        strides = contiguous(inputs[0].spec.shape)
        start = sum(s * first for s, first in zip(strides, self.starts, strict=True))
        emit_strided(steps, inputs[0], outputs[0], [s * step for s, step in zip(strides, self.strides, strict=True)], start)


@dataclass(frozen=True)
class Expand(Op):
    """Axes of extent 1 repeated to those of `shape`, which has the same rank."""

    shape: tuple[int, ...]

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        extents = inputs[0].shape
        if len(extents) != len(self.shape) or any(a not in (1, b) for a, b in zip(extents, self.shape, strict=True)):
            raise ModelError(f"a value of shape {extents} cannot be expanded to {self.shape}")
        return (Spec(self.shape, inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (np.broadcast_to(inputs[0], self.shape).copy(),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        extents = inputs[0].spec.shape
        emit_strided(steps, inputs[0], outputs[0], [0 if n == 1 else s for n, s in zip(extents, contiguous(extents), strict=True)])
