"""The one definition of rounding: quantize, dequantize, requantize, fake-quantize, in NumPy float32.

Each formula follows the ONNX operator of the same name: divide (or multiply) in float32, round half to even, add the zero
point, clamp. The sum and the clamp are exact, in integers, and defined for every float: infinity becomes the bound of its
sign, NaN the lower bound (as an x86 `maxps` gives it). A kernel may clamp before it adds the zero point: the bounds are
integers, so the code is the same. Every kernel on every ISA equals these functions bit for bit.
"""

from __future__ import annotations

import numpy as np

from qrt.core.dtypes import QDType
from qrt.core.qparams import QParams

__all__ = ["dequantize", "fake_quantize", "nearest", "quantize", "requantize", "round_clamp"]

F32 = np.float32
FAR = F32(2.0**40)  # past every code and zero point, and safe to convert to int64


def round_clamp(x: np.ndarray, zero_point: np.ndarray, qmin: int, qmax: int) -> np.ndarray:
    """clamp(rint(x) + zero_point, qmin, qmax) as int32.

    `x`: float32 in units of one code, any shape; `zero_point`: int32, broadcastable. Ties go to even; NaN gives `qmin`.
    """
    codes: np.ndarray = np.clip(nearest(np.asarray(x, F32)) + zero_point, qmin, qmax).astype(np.int32)
    return codes


def nearest(x: np.ndarray) -> np.ndarray:
    """rint(x) as int64, for floats of any precision: ties go to even, beyond ±2⁴⁰ and for infinity ±2⁴⁰, for NaN −2⁴⁰."""
    r = np.rint(x)
    r = np.where(r > -FAR, r, -FAR)  # NaN is not greater
    r = np.where(r < FAR, r, FAR)
    integers: np.ndarray = r.astype(np.int64)
    return integers


def quantize(x: np.ndarray, qparams: QParams) -> np.ndarray:
    """Codes of `x` (ONNX QuantizeLinear): clamp(rint(x / scale) + zero_point), in the storage dtype.

    A float zero point is added before rounding: clamp(rint(x / scale + zero_point)).

    `x`: float32 of any shape whose `qparams.axis` has as many entries as there are scales.
    """
    x = np.asarray(x, F32)
    scale, zero_point = qparams.along(x.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = x / scale
        if zero_point.dtype.kind == "f":
            steps, zero_point = steps + zero_point, np.zeros((), np.int32)
    return round_clamp(steps, zero_point, qparams.dtype.qmin, qparams.dtype.qmax).astype(qparams.dtype.storage)


def dequantize(q: np.ndarray, qparams: QParams) -> np.ndarray:
    """Real values of codes (ONNX DequantizeLinear): float32(code − zero_point) · scale, float32."""
    q = np.asarray(q)
    scale, zero_point = qparams.along(q.shape)
    if zero_point.dtype.kind == "f":
        return np.asarray((q.astype(F32) - zero_point) * scale)
    # The difference wraps in int32 as it does in the kernels; no code of 16 bits or fewer comes near that.
    steps = (q.astype(np.int64) - zero_point).astype(np.int32).astype(F32)
    with np.errstate(over="ignore"):
        return np.asarray(steps * scale)


def requantize(acc: np.ndarray, multiplier: np.ndarray, zero_point: np.ndarray, dtype: QDType) -> np.ndarray:
    """Codes of int32 accumulators: clamp(rint(float32(acc) · multiplier) + zero_point), in the storage dtype.

    `acc`: int32; `multiplier`: float32, the input scales' product over the output scale, broadcastable to `acc`.
    """
    with np.errstate(over="ignore"):
        steps = acc.astype(F32) * np.asarray(multiplier, F32)
    return round_clamp(steps, np.asarray(zero_point, np.int32), dtype.qmin, dtype.qmax).astype(dtype.storage)


def fake_quantize(x: np.ndarray, qparams: QParams) -> np.ndarray:
    """What `x` becomes by quantizing and dequantizing it: float32 of the same shape."""
    return dequantize(quantize(x, qparams), qparams)
