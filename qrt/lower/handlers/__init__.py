"""ONNX spelling → typed ops: one file a family, each with a literal table; HANDLERS is their union."""

from __future__ import annotations

from qrt.lower.handlers import elementwise, gemm, movement, quantized, reduction, spatial, recurrent
from qrt.lower.lowering import Handler

__all__ = ["HANDLERS"]

HANDLERS: dict[tuple[str, str], Handler] = {
    **elementwise.HANDLERS,
    **gemm.HANDLERS,
    **movement.HANDLERS,
    **quantized.HANDLERS,
    **recurrent.HANDLERS,
    **reduction.HANDLERS,
    **spatial.HANDLERS,
}
