"""The table of device kernels that move elements."""

from __future__ import annotations

from collections.abc import Sequence

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.movement.strided import MAX_AXES, contiguous, merge_axes
from qrt.ops.op import DeviceSteps, Operand

__all__ = ["KERNELS", "STRIDED", "emit_strided"]

# n: all elements; the rest as in `strided.py`, but for the outermost extent, which follows from n.
_RECORD = record_dtype(
    ("x", "i8"),
    ("y", "i8"),
    ("n", "i8"),
    *((f"n{k}", "i8") for k in range(1, 6)),
    *((f"{name}{k}", "i8") for name in "st" for k in range(6)),
)
STRIDED = {size: DeviceKernel(f"copy_b{size}_strided__cuda", _RECORD, "qrt.ops.movement.cuda:strided", (size,)) for size in (1, 4)}
KERNELS: tuple[DeviceKernel, ...] = tuple(STRIDED.values())


def emit_strided(steps: DeviceSteps, x: Operand, y: Operand, x_strides: Sequence[int], x_start: int) -> None:
    """Appends y[i, j, …] = x[x_start + Σ index·x_stride], in elements."""
    shape, itemsize = y.spec.shape, y.spec.dtype.itemsize
    if 0 in shape:
        return
    axes = merge_axes(list(zip(shape, x_strides, contiguous(shape), strict=True)))
    if itemsize not in STRIDED or len(axes) > MAX_AXES:
        raise UnsupportedOp(f"no kernel for CUDA copies elements of {itemsize} bytes along {len(axes)} axes")
    axes = [(1, 0, 0)] * (MAX_AXES - len(axes)) + axes
    walk = {f"{name}{k}": axis[i] for i, name in enumerate("nst") for k, axis in enumerate(axes)}
    del walk["n0"]
    kernel, n = STRIDED[itemsize], y.spec.size
    steps.launch(kernel, (-(-n // kernel.block), 1), x=x.ref + x_start * itemsize, y=y.ref, n=n, **walk)
