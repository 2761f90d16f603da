"""The table of device kernels of recurrent cells."""

from __future__ import annotations

from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.recurrent.recurrent import GATES

__all__ = ["CELLS", "KERNELS"]

BLOCK = 512
RECORD = record_dtype(
    *((name, "i8") for name in ("x", "y", "h", "c", "h0", "c0", "weights", "extra", "gates")),
    *((name, "i4") for name in ("time", "batch", "directions", "n", "width", "extra_n", "reverse")),
)
CELLS = {
    cell: DeviceKernel(f"recurrent_f32_{cell}__cuda", RECORD, "qrt.ops.recurrent.cuda:recurrent", (cell, BLOCK), BLOCK) for cell in GATES
}
KERNELS: tuple[DeviceKernel, ...] = tuple(CELLS.values())
