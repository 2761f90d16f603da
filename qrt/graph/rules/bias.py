"""The bias of a quantized convolution or matrix product: int32 codes in units of the product of the scales of input and weight."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.core.dtypes import qint32
from qrt.core.errors import QuantizationError
from qrt.core.numerics import quantize
from qrt.core.qparams import QParams
from qrt.graph.nodes import constant
from qrt.graph.rules.quant import constant_of, dequantized
from qrt.graph.rules.rule import WhyNot

__all__ = ["bias_qparams", "float_bias", "int32_bias"]

# How far a file's own bias scale may be from the product of the scales to be that product, rounded elsewhere.
_SAME_SCALE = 1e-4


def bias_qparams(x: QParams, w: QParams) -> QParams:
    """The qparams of the bias: scale s_x · s_w in float32, zero point 0, along axis 0 if the weight has a scale per channel."""
    scale = x.scale * w.scale
    return QParams(scale, np.zeros(scale.shape, np.int32), qint32, None if scale.ndim == 0 else 0)


def int32_bias(value: ir.Value | None, x: QParams, w: QParams, channels: int) -> np.ndarray | WhyNot | None:
    """The int32 codes (channels,) of the bias `value`; None where there is none.

    A float bias is quantized, as ONNX Runtime does. Codes that are already in units of the product are taken as they are.
    """
    if value is None:
        return None
    try:
        wanted = bias_qparams(x, w)
        codes = _codes(value, wanted, channels)
        if codes is not None:
            return codes
        real = float_bias(value, channels)
        return real if real is None or isinstance(real, WhyNot) else quantize(real, wanted)
    except QuantizationError as error:
        return WhyNot(f"its bias cannot be quantized: {error}")


def _codes(value: ir.Value, wanted: QParams, channels: int) -> np.ndarray | None:
    """The codes (channels,) of a constant in units of `wanted`; None for any other."""
    found = dequantized(value)
    if isinstance(found, WhyNot) or found.qparams.dtype != qint32 or found.qparams.zero_point.any():
        return None
    if found.qparams.scale.size not in (1, channels):
        return None
    codes = constant(found.codes)
    if codes is None or codes.size != channels or codes.shape[-1:] not in ((), (channels,)) or not channels:
        return None
    near = np.abs(found.qparams.scale - wanted.scale) <= _SAME_SCALE * wanted.scale
    return codes.reshape(channels) if near.all() else None


def float_bias(value: ir.Value | None, channels: int) -> np.ndarray | WhyNot | None:
    """The float32 contents (channels,) of the bias `value`; None where there is none."""
    if value is None:
        return None
    real = constant_of(value)
    if real is None:
        return WhyNot(f"its bias {value.name!r} is computed at run time")
    if real.dtype != np.float32:
        return WhyNot(f"its bias {value.name!r} is {real.dtype}")
    if not channels:
        return WhyNot("the number of its channels is not known")
    if real.size not in (1, channels) or (real.ndim and real.shape[-1] != real.size):
        return WhyNot(f"its bias {value.name!r} of shape {real.shape} is not one number for each of {channels} channels")
    return np.ascontiguousarray(np.broadcast_to(real.reshape(-1), (channels,)))
