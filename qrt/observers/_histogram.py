"""Binning of the histogram observer, operation by operation as torch.ao.quantization does them."""

from __future__ import annotations

import numpy as np

from qrt.observers.kernels import count_uniform

__all__ = ["count", "fma"]

F32 = np.float32


def count(x: np.ndarray, bins: int, low: np.float32, high: np.float32) -> np.ndarray:
    """Counts of `x` in `bins` equal bins over low..high, as float32 (bins,). One value alone lies in the middle.

    `x`: float32 (n,), contiguous, every value inside low..high.
    """
    if low == high:
        low, high = F32(low - F32(1)), F32(high + F32(1))
    if low == high:  # the values are so large that ±1 is lost
        counts = np.zeros(bins, F32)
        counts[bins // 2] = x.size
        return counts
    return count_uniform(x, bins, low, high).astype(F32)


def fma(a: np.ndarray | np.float64, b: np.ndarray, c: np.ndarray | np.float64) -> np.ndarray:
    """a · b + c rounded once to float32, for float64 that hold float32 numbers, so that a · b is exact.

    The sum is first rounded to odd in float64 (Boldo & Melquiond 2008), which makes the second rounding harmless.
    """
    product = a * b
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    odd: np.ndarray = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(F32)
