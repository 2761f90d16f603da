"""Strided copies: one walk over two sets of strides, which every movement op that knows its addresses is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from qrt.jit import Kernel, record_dtype
from qrt.ops.op import Operand, Ref, Steps
from qrt.ops.strides import contiguous

__all__ = ["KERNELS", "SERIAL_BYTES", "contiguous", "emit_strided", "merge_axes", "pieces", "walk"]

MAX_AXES = 6
# Less than this is copied faster than a second thread hears of it.
SERIAL_BYTES = 1 << 15

# Up to six axes, outermost first; missing ones have extent 1. n: extents, s and t: strides of x and y, in elements.
_RECORD = record_dtype(("x", "i8"), ("y", "i8"), *((f"{name}{k}", "i8") for name in "nst" for k in range(MAX_AXES)))
_SIZES = (1, 2, 4, 8)
# Side of the square that registers transpose, by element size.
SIDES = {1: 16, 2: 8, 4: 8, 8: 4}
_COUNTS = (2, 3, 4)


def _kernel(kind: str, *params: int) -> Kernel:
    name = f"copy_b{params[0]}_{kind}{''.join(str(p) for p in params[1:])}__generic"
    return Kernel(name, _RECORD, f"qrt.ops.movement.cpu:{kind}", params)


def _tiles(size: int, ragged: bool) -> Kernel:
    name = f"copy_b{size}_{'ragged' if ragged else 'tiles'}__generic"
    return Kernel(name, _RECORD, "qrt.ops.movement.cpu:tiles", (size, ragged))


_ROWS = {size: _kernel("rows", size) for size in _SIZES}
# By whether quarters of squares are left at the end of an axis.
_TILES = {(size, ragged): _tiles(size, ragged) for size in _SIZES for ragged in (False, True)}
_ZIP = {(size, count): _kernel("zip_rows", size, count) for size in _SIZES for count in _COUNTS}
_UNZIP = {(size, count): _kernel("unzip_rows", size, count) for size in _SIZES for count in _COUNTS}

KERNELS: tuple[Kernel, ...] = (*_ROWS.values(), *_TILES.values(), *_ZIP.values(), *_UNZIP.values())

Axis = tuple[int, int, int]  # extent, stride of x, stride of y


def merge_axes(axes: Sequence[Axis]) -> list[Axis]:
    """The same walk with fewer axes: drops extents of 1, joins neighbours that one stride can walk."""
    merged: list[Axis] = []
    for n, s, t in axes:
        if n == 1:
            continue
        if merged and merged[-1][1:] == (s * n, t * n):
            merged[-1] = (merged[-1][0] * n, s, t)
        else:
            merged.append((n, s, t))
    return merged


def walk(shape: Sequence[int], x_strides: Sequence[int], y_strides: Sequence[int] | None) -> list[Axis]:
    """The fewest axes of a copy, by default to where y is contiguous. Its order does not matter: y is walked as it lies in memory."""
    axes = zip(shape, x_strides, contiguous(shape) if y_strides is None else y_strides, strict=True)
    return merge_axes(sorted(axes, key=lambda axis: -axis[2]))


def pieces(axes: Sequence[Axis]) -> Iterator[tuple[int, int, list[Axis]]]:
    """A walk as walks of as many axes as kernels have; and where each starts in x and in y."""
    if len(axes) <= MAX_AXES:
        yield 0, 0, list(axes)
        return
    shortest = min(axes)
    n, s, t = shortest
    for i in range(n):
        for x_start, y_start, rest in pieces([axis for axis in axes if axis is not shortest]):
            yield x_start + i * s, y_start + i * t, rest


def emit_strided(
    steps: Steps,
    x: Operand,
    y: Operand,
    x_strides: Sequence[int],
    x_start: int = 0,
    *,
    shape: Sequence[int] | None = None,
    y_strides: Sequence[int] | None = None,
    y_start: int = 0,
) -> None:
    """y[y_start + Σ index·y_stride] = x[x_start + Σ index·x_stride] for each index into `shape` (default: all of y, in order).

    Strides and starts are in elements; those of x may be 0 and negative. No element of y is written twice, and none is read.
    """
    shape, size = y.spec.shape if shape is None else shape, y.spec.dtype.itemsize
    if 0 in shape:
        return
    for x_at, y_at, axes in pieces(walk(shape, x_strides, y_strides)):
        _emit(steps, x.ref + (x_start + x_at) * size, y.ref + (y_start + y_at) * size, axes, size)


def _emit(steps: Steps, x: Ref, y: Ref, axes: list[Axis], itemsize: int) -> None:
    kernel, axes = _choose(axes, itemsize)
    nbytes = itemsize * prod(n for n, _, _ in axes)
    steps.step(kernel, None if nbytes > SERIAL_BYTES else 1, x=x, y=y, **axis_fields(axes))


def axis_fields(axes: Sequence[Axis]) -> dict[str, int]:
    """The extents and strides of a walk as kernels' records have them: n0 … n5, s0 …, t0 …; axes that are missing come first."""
    all_axes = [(1, 0, 0)] * (MAX_AXES - len(axes)) + list(axes)
    return {f"{name}{k}": axis[i] for i, name in enumerate("nst") for k, axis in enumerate(all_axes)}


def _choose(axes: list[Axis], itemsize: int) -> tuple[Kernel, list[Axis]]:
    """The kernel for a walk, and the walk with the axes that the kernel looks at last."""
    across = next((axis for axis in axes if axis[1] == 1), None)
    along = next((axis for axis in axes if axis[2] == 1), None)
    if across is None or along is None or across is along or along[1] < 0:
        return _ROWS[itemsize], axes
    if along[1] == 0 and along[0] >= SIDES[itemsize]:
        return _ROWS[itemsize], axes  # long rows of one element each
    axes = [axis for axis in axes if axis is not across and axis is not along] + [across, along]
    if along[0] in _COUNTS and across[2] == along[0]:
        return _ZIP[itemsize, along[0]], axes
    if across[0] in _COUNTS and along[1] == across[0]:
        return _UNZIP[itemsize, across[0]], axes
    if min(across[0], along[0]) < 4:
        # Too narrow for squares: walk the longer of the two.
        return _ROWS[itemsize], axes if along[0] >= across[0] else [*axes[:-2], along, across]
    return _TILES[itemsize, along[0] % SIDES[itemsize] >= SIDES[itemsize] // 4], axes
