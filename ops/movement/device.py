"""The table of device kernels that move elements."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.movement.strided import Axis, axis_fields, merge_axes, pieces, walk
from qrt.ops.op import DeviceSteps, Operand

__all__ = ["KERNELS", "SIZES", "STRIDED", "emit_strided", "widest"]

SIZES = (16, 8, 4, 2, 1)

# n: all elements; the rest as in `strided.py`, but for strides in bytes, and the outermost extent, which follows from n.
_RECORD = record_dtype(
    ("x", "i8"),
    ("y", "i8"),
    ("n", "i4"),
    *((f"n{k}", "i4") for k in range(1, 6)),
    *((f"{name}{k}", "i8") for name in "st" for k in range(6)),
)
STRIDED = {size: DeviceKernel(f"copy_b{size}_strided__cuda", _RECORD, "qrt.ops.movement.cuda:strided", (size,)) for size in SIZES}
KERNELS: tuple[DeviceKernel, ...] = tuple(STRIDED.values())


def widest(*nbytes: int) -> int:
    """The largest element that all of these distances and lengths are multiples of."""
    return next(size for size in SIZES if all(n % size == 0 for n in nbytes))


def emit_strided(
    steps: DeviceSteps,
    x: Operand,
    y: Operand,
    x_strides: Sequence[int],
    x_start: int = 0,
    *,
    shape: Sequence[int] | None = None,
    y_strides: Sequence[int] | None = None,
    y_start: int = 0,
) -> None:
    """Appends what `strided.emit_strided` does. Raises UnsupportedOp for elements that are too many to count in 32 bits."""
    shape, size = y.spec.shape if shape is None else shape, y.spec.dtype.itemsize
    if 0 in shape:
        return
    if prod(shape) >= 2**31:
        raise UnsupportedOp(f"a copy of {prod(shape)} elements: copies for CUDA count in 32 bits")
    source, to = x.ref + x_start * size, y.ref + y_start * size
    in_bytes = [(n, s * size, t * size) for n, s, t in walk(shape, x_strides, y_strides)]
    whole, size = _widened(in_bytes, size, source.offset, to.offset)
    for x_at, y_at, axes in pieces(whole):
        fields = axis_fields(axes)
        del fields["n0"]
        kernel, n = STRIDED[size], prod(axis[0] for axis in axes)
        steps.launch(kernel, (-(-n // kernel.block), 1), x=source + x_at, y=to + y_at, n=n, **fields)


def _widened(axes: list[Axis], size: int, *starts: int) -> tuple[list[Axis], int]:
    """The same walk by the largest elements that both sides hold in one piece, and their bytes."""
    if not axes or axes[-1][1:] != (size, size):
        return axes, size
    *outer, (n, _, _) = axes
    wide = widest(n * size, *starts, *(stride for axis in outer for stride in axis[1:]))
    if wide <= size:
        return axes, size
    return merge_axes([*outer, (n * size // wide, wide, wide)]), wide
