"""The table of device kernels that move elements."""

from __future__ import annotations

from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel

__all__ = ["KERNELS", "STRIDED"]

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
