"""The table of device kernels that move what indices point at. All operands start at multiples of 16 bytes."""

from __future__ import annotations

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.op import DeviceSteps, Operand

__all__ = ["GATHER", "KERNELS", "emit_gather"]

PIECES = (16, 4, 1)  # bytes that a thread moves
_RECORD = record_dtype(
    *((name, "i8") for name in ("x", "y", "index", "refused")),
    *((name, "i4") for name in ("n", "count", "extent", "inner")),
)
GATHER = {
    (piece, size): DeviceKernel(f"gather_b{piece}_i{8 * size}__cuda", _RECORD, "qrt.ops.movement.cuda_index:gather", (piece, size))
    for piece in PIECES
    for size in (4, 8)
}
KERNELS: tuple[DeviceKernel, ...] = tuple(GATHER.values())


def emit_gather(steps: DeviceSteps, x: Operand, index: Operand, y: Operand, extents: tuple[int, int, int], rule: str) -> None:
    """Appends Gather. `extents`: those of x before, on and behind the axis; `rule`: what indices have to be."""
    _, extent, inner = extents
    row = inner * x.spec.dtype.itemsize
    piece = next(piece for piece in PIECES if row % piece == 0)
    n = y.spec.nbytes // piece
    if max(n, extent) >= 2**31:
        raise UnsupportedOp(f"no kernel for CUDA gathers {n} pieces of {piece} bytes along an axis of {extent}")
    kernel = GATHER[piece, index.spec.dtype.itemsize]
    sizes = {"n": n, "count": index.spec.size, "extent": extent, "inner": row // piece}
    steps.launch(kernel, (-(-n // kernel.block), 1), x=x.ref, y=y.ref, index=index.ref, refused=steps.refused(rule), **sizes)
