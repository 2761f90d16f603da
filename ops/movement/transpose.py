"""Transpose and Copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrt.jit import Kernel, record_dtype
from qrt.ops.op import Array, Op, Operand, Spec, Steps

__all__ = ["KERNELS", "Copy", "Transpose"]

# Up to six axes, outermost first; missing ones have extent 1. Strides of x are in elements, y is contiguous.
_RECORD = record_dtype(("x", "i8"), ("y", "i8"), *((f"n{k}", "i8") for k in range(6)), *((f"s{k}", "i8") for k in range(6)))
MAX_AXES = 6

KERNELS: tuple[Kernel, ...] = tuple(
    Kernel(f"transpose_b{size}_strided__generic", _RECORD, "qrt.ops.movement.cpu:transpose", (size,)) for size in (1, 2, 4, 8)
)


def merge_axes(shape: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """The same walk with fewer axes: drops extents of 1, joins neighbours that one stride can walk."""
    axes: list[list[int]] = []
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if axes and axes[-1][1] == stride * extent:
            axes[-1] = [axes[-1][0] * extent, stride]
        else:
            axes.append([extent, stride])
    return [a[0] for a in axes], [a[1] for a in axes]


@dataclass(frozen=True)
class Transpose(Op):
    """y axis k is x axis perm[k]."""

    perm: tuple[int, ...]

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (Spec(tuple(inputs[0].shape[axis] for axis in self.perm), inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        y = inputs[0].transpose(self.perm)
        return (np.ascontiguousarray(y).reshape(y.shape),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x = inputs[0].spec
        strides = [int(np.prod(x.shape[k + 1 :], dtype=np.int64)) for k in range(len(x.shape))]
        emit_strided(steps, inputs[0], outputs[0], [strides[axis] for axis in self.perm])


def emit_strided(steps: Steps, x: Operand, y: Operand, strides: Sequence[int], start: int = 0) -> None:
    """y, walked in order, takes x[start + Σ index·stride] (elements); any stride, 0 and negative included."""
    if y.spec.size == 0:
        return
    extents, merged = merge_axes(y.spec.shape, strides)
    if len(extents) > MAX_AXES:
        raise ValueError(f"more than {MAX_AXES} axes that cannot be joined: {y.spec.shape}")
    extents = [1] * (MAX_AXES - len(extents)) + extents
    merged = [0] * (MAX_AXES - len(merged)) + merged
    itemsize = y.spec.dtype.itemsize
    kernel = next(k for k in KERNELS if k.params == (itemsize,))
    walk = {f"n{k}": n for k, n in enumerate(extents)} | {f"s{k}": s for k, s in enumerate(merged)}
    threads = None if y.spec.nbytes > 1 << 15 else 1
    steps.step(kernel, threads, x=x.ref + start * itemsize, y=y.ref, **walk)


@dataclass(frozen=True)
class Copy(Op):
    """The same values in a buffer of their own."""

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (inputs[0],)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (inputs[0].copy(),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        shape = inputs[0].spec.shape
        emit_strided(steps, inputs[0], outputs[0], [int(np.prod(shape[k + 1 :], dtype=np.int64)) for k in range(len(shape))])
