"""Strides, in elements, of values that need not lie in one piece: from one index of each axis to the next."""

from __future__ import annotations

from collections.abc import Sequence

from qrt.core.errors import KernelError

__all__ = ["agreed", "contiguous", "is_contiguous", "merged", "row_stride", "viewed"]


def contiguous(shape: Sequence[int]) -> list[int]:
    """Those of a C-contiguous array."""
    strides = [1] * len(shape)
    for k in range(len(shape) - 2, -1, -1):
        strides[k] = strides[k + 1] * shape[k + 1]
    return strides


def merged(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """The same walk with fewer axes, as (extent, stride): without extents of 1, and with neighbours joined that one stride can walk."""
    axes: list[tuple[int, int]] = []
    for n, stride in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if axes and axes[-1][1] == stride * n:
            axes[-1] = (axes[-1][0] * n, stride)
        else:
            axes.append((n, stride))
    return axes


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie in one piece, in C order."""
    return merged(shape, strides) == merged(shape, contiguous(shape))


def row_stride(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """From one row (an index of all axes but the last) to the next, where rows lie in one piece and at one distance; else None."""
    if not shape or (shape[-1] != 1 and strides[-1] != 1):
        return None
    rows = merged(shape[:-1], strides[:-1])
    if len(rows) > 1:
        return None
    return rows[0][1] if rows else shape[-1]


def agreed(stride: int | None) -> int:
    """The one distance at which rows or pixels lie, as the op said they would. Raises KernelError where there is none."""
    if stride is None:
        raise KernelError("rows lie at distances that their op did not agree to: a mistake of qrt's; please report the model")
    return stride


def viewed(shape: Sequence[int], strides: Sequence[int], other: Sequence[int]) -> tuple[int, ...] | None:
    """The strides of the same elements under the shape `other`; None where no strides walk them so."""
    axes = merged(shape, strides)
    result: list[int] = []
    left, step = 1, 1
    for n in reversed(other):
        if n != 1 and left == 1 and axes:
            left, step = axes.pop()
        if left % n:
            return None
        result.append(step)
        left, step = left // n, step * n
    return tuple(reversed(result))
