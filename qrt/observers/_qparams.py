"""From an observed range to scale and zero point: the one place with this formula.

The arithmetic is that of torch.ao.quantization's observers (`UniformQuantizationObserverBase._calculate_qparams`), each
operation one float32 operation, so that qparams of 8 and 16 bits equal torch's bit for bit (of 32 bits too, save where
torch's int32 zero point overflows; here it is clamped):

    neg = min(min_val, 0)        pos = max(max_val, 0)
    affine:     scale = max((pos − neg) / (qmax − qmin), eps)          zero_point = clamp(qmin − rint(neg / scale))
    symmetric:  scale = max(max(−neg, pos) / ((qmax − qmin) / 2), eps) zero_point = the middle of the codes

The range always takes in zero, so that zero is exact; `eps` keeps the scale positive where all data are zero. Only the scheme
with float zero points leaves zero out: scale = (max_val − min_val) / (qmax − qmin), or 1 where that is eps or less, and
zero_point = −min_val / scale.
"""

from __future__ import annotations

import numpy as np

from qrt.core.dtypes import QDType, QScheme, per_channel_affine_float_qparams
from qrt.core.errors import CalibrationError, QuantizationError
from qrt.core.numerics import round_clamp
from qrt.core.qparams import QParams

__all__ = ["calculate_qparams", "quant_range"]

F32 = np.float32


def quant_range(dtype: QDType, qscheme: QScheme, reduce_range: bool, quant_min: int | None, quant_max: int | None) -> tuple[int, int]:
    """The codes (first, last) that observed values may take.

    A custom range (`quant_min` and `quant_max`, both or neither) must hold 0 and lie inside `dtype`. `reduce_range` drops
    one bit. Raises QuantizationError where the request contradicts itself.
    """
    if (quant_min is None) != (quant_max is None):
        raise QuantizationError("give both quant_min and quant_max, or neither")
    custom = quant_min is not None and quant_max is not None
    if reduce_range and qscheme.symmetric and not dtype.signed and not custom:
        raise QuantizationError(f"reduce_range leaves {dtype!r} no middle for {qscheme!r}: use a signed dtype")
    qmin, qmax = (quant_min, quant_max) if quant_min is not None and quant_max is not None else (dtype.qmin, dtype.qmax)
    if not (qmin <= 0 <= qmax and qmin < qmax):
        raise QuantizationError(f"code range {qmin}..{qmax} must hold 0 and more than one code")
    if qmin < dtype.qmin or qmax > dtype.qmax:
        raise QuantizationError(f"code range {qmin}..{qmax} is not inside {dtype!r} ({dtype.qmin}..{dtype.qmax})")
    if reduce_range and (custom or dtype.bits == 8):
        qmin, qmax = qmin // 2, qmax // 2
    return qmin, qmax


def calculate_qparams(
    min_val: np.ndarray,
    max_val: np.ndarray,
    *,
    dtype: QDType,
    qscheme: QScheme,
    qmin: int,
    qmax: int,
    custom: bool,
    eps: float,
    axis: int | None = None,
    site: str,
) -> QParams:
    """QParams whose codes qmin..qmax cover min_val..max_val and zero.

    `min_val`, `max_val`: float32, finite, shape () or (C,) with `axis`. `custom`: qmin..qmax was chosen by the user.
    `site`: where the range was observed, for the message.
    Raises CalibrationError if the range is wider than float32 can express.
    """
    neg = np.minimum(min_val, F32(0))
    pos = np.maximum(max_val, F32(0))
    with np.errstate(over="ignore"):
        if qscheme is per_channel_affine_float_qparams:
            scale = (max_val - min_val) / F32(qmax - qmin)
            scale = np.where(scale > F32(eps), scale, F32(1))
        elif qscheme.symmetric:
            scale = np.maximum(np.maximum(-neg, pos) / F32((qmax - qmin) / 2), F32(eps))
        else:
            scale = np.maximum((pos - neg) / F32(qmax - qmin), F32(eps))
    if not np.isfinite(scale).all():
        raise CalibrationError(f"{site}: the range {np.min(neg)}..{np.max(pos)} is too wide for float32; check the calibration data")
    if qscheme is per_channel_affine_float_qparams:
        zero_point = -min_val / scale
    elif qscheme.symmetric:
        zero_point = np.full(scale.shape, _middle(dtype, qmin, qmax, custom), np.int32)
    else:
        zero_point = round_clamp(-(neg / scale), np.asarray(qmin), qmin, qmax)
    return QParams(scale, zero_point, dtype, axis)


def _middle(dtype: QDType, qmin: int, qmax: int, custom: bool) -> int:
    """The zero point of a symmetric scheme: 0 for signed codes, else the middle of the codes."""
    if dtype.signed:
        return 0
    if custom and dtype.bits <= 8:
        return (qmin + qmax) // 2
    return (dtype.qmax + 1) // 2
