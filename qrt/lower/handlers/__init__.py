"""ONNX spelling → typed ops: one file a family, each with a literal table; HANDLERS is their union."""

from __future__ import annotations

from qrt.lower.handlers import convolution, elementwise, gemm, movement, quantized, recurrent, reduction, spatial
from qrt.lower.lowering import Handler

__all__ = ["HANDLERS"]

HANDLERS: dict[tuple[str, str], Handler] = {
    **convolution.HANDLERS,
    **elementwise.HANDLERS,
    **gemm.HANDLERS,
    **movement.HANDLERS,
    **quantized.HANDLERS,
    **recurrent.HANDLERS,
    **reduction.HANDLERS,
    **spatial.HANDLERS,
}
