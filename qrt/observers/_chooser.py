"""The other formula for scale and zero point: that of torch's dynamic quantization and fused fake-quantize.

Source: FBGEMM's `ChooseQuantizationParams`. It differs from the observers' (`_qparams.py`): float64 arithmetic, another floor
of the scale, and a symmetric range that reaches −128.
"""

from __future__ import annotations

import numpy as np

from qrt.core.numerics import nearest

__all__ = ["choose_qparams"]

F32 = np.float32
SMALLEST = float(F32(6.1e-5))  # the smallest scale


def choose_qparams(
    min_val: np.ndarray,
    max_val: np.ndarray,
    qmin: int,
    qmax: int,
    *,
    preserve_sparsity: bool = False,
    reduce_range: bool = False,
    single: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float64) and zero point (int32) of codes qmin..qmax for min_val..max_val; all of one shape.

    `min_val`, `max_val`: float32, finite. `preserve_sparsity`: zero in the middle of the codes wherever the range has both signs.
    `reduce_range`: use one bit less. `single`: the scale is rounded to float32 before the zero point is computed, as fused
    fake-quantize does, and dynamic quantization does not.
    """
    if reduce_range:
        qmin, qmax = int(qmin / 2), int(qmax / 2)
    low, high = np.asarray(min_val, F32), np.asarray(max_val, F32)
    both = (low < 0) & (high > 0) & preserve_sparsity
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        first, last = -((qmax - qmin) // 2 + 1), (qmax - qmin) // 2
        reach = np.maximum(np.abs(low / F32(first)), np.abs(high / F32(last))).astype(np.float64)
        low = np.minimum(np.where(both, (reach * first).astype(F32), low), F32(0))
        high = np.maximum(np.where(both, (reach * last).astype(F32), high), F32(0))
        scale = (high.astype(np.float64) - low) / (qmax - qmin)
        scale = np.where((scale.astype(F32) == 0) | np.isinf(F32(1) / scale.astype(F32)), 0.1, scale)
        low, high, scale = _raise_scale(low, high, scale, qmin, qmax)
        if single:
            scale = scale.astype(F32).astype(np.float64)
        near, far = low.astype(np.float64) / scale, high.astype(np.float64) / scale
    from_low = abs(qmin) - np.abs(near) < abs(qmax) - np.abs(far)
    zero_point = np.where(from_low, qmin - near, qmax - far)
    zero_point = np.where((low < 0) & (high > 0) & preserve_sparsity, (qmin + qmax) / 2, zero_point)
    return scale, np.clip(nearest(zero_point), qmin, qmax).astype(np.int32)


def _raise_scale(low: np.ndarray, high: np.ndarray, scale: np.ndarray, qmin: int, qmax: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Range and scale where the scale is at least the smallest: a smaller one takes the range with it."""
    small = scale < SMALLEST
    wider = F32(SMALLEST) / scale.astype(F32)
    least = F32(F32(SMALLEST) * F32(qmax - qmin))
    new_low = np.where(low == 0, low, np.where(high == 0, -least, low * wider))
    new_high = np.where(low == 0, least, np.where(high == 0, high, high * wider))
    return np.where(small, new_low, low), np.where(small, new_high, high), np.where(small, SMALLEST, scale)
