"""The kernels of qrt/observers/cpu.py once more, in NumPy."""

from __future__ import annotations

import numpy as np

from qrt.observers._histogram import fma

F32 = np.float32
STEP = 1e-5


def count_uniform(x: np.ndarray, bins: int, low: np.float32, high: np.float32) -> np.ndarray:
    with np.errstate(over="ignore"):
        steps = (x - low) * F32(bins)
    position = np.where(np.isinf(steps), F32(0), steps) / F32(high - low)
    return np.bincount(np.minimum(position, F32(bins - 1)).astype(np.int64), minlength=bins)


def count_exact(x: np.ndarray, bins: int, scale: float) -> np.ndarray:
    return np.bincount(np.floor(x.astype(np.float64) * scale).astype(np.int64) + bins // 2, minlength=bins)


def linspace(start: np.float32, stop: np.float32, n: int) -> np.ndarray:
    """`n` evenly spaced float32, each half counted from its own end with a fused multiply-add, as torch.linspace does."""
    step = F32(F32(stop - start) / F32(n - 1))
    i = np.arange(n, dtype=np.float64)
    lower = fma(np.float64(step), i[: n // 2], np.float64(start))
    upper = fma(-np.float64(step), n - 1 - i[n // 2 :], np.float64(stop))
    return np.concatenate([lower, upper])


def rebin(counts: np.ndarray, low: np.float32, high: np.float32, new_low: np.float32, new_high: np.float32) -> np.ndarray:
    bins, parts = counts.size, 16
    edges = linspace(new_low, new_high, bins + 1)
    middles = linspace(low, high, bins * parts + 1)[:-1] + F32(0.5) * F32(F32(high - low) / F32(bins * parts))
    bucket = np.clip(np.searchsorted(edges, middles, side="right") - 1, 0, bins - 1)
    sums = np.zeros(bins, F32)
    np.add.at(sums, bucket, np.repeat(counts / F32(parts), parts))
    return sums


def search(histogram: np.ndarray, low: np.float32, high: np.float32, levels: int) -> tuple[int, int]:
    """First and last bin of the range whose quantization to `levels` codes has the least squared error.

    Tails are cut step by step, always the one whose next quantile spans more bins, until the error grows. The error is a
    float32 per bin, summed in float64.
    """
    bins = histogram.size
    total = float(F32(histogram.sum(dtype=np.float64)))
    cumulated = np.cumsum(histogram, dtype=np.float64).astype(F32)
    width = (float(high) - float(low)) / bins
    alpha, beta, start, end, best = 0.0, 1.0, 0, bins - 1, np.inf
    while alpha < beta:
        next_alpha, next_beta = alpha + STEP, beta - STEP
        left, right = start, end
        while left < end and cumulated[left] < F32(next_alpha * total):
            left += 1
        while right > start and cumulated[right] > F32(next_beta * total):
            right -= 1
        next_start, next_end = start, end
        if left - start > end - right:
            next_start, alpha = left, next_alpha
        else:
            next_end, beta = right, next_beta
        if (next_start, next_end) == (start, end):
            continue
        error = quantization_error(histogram, width, next_start, next_end, levels)
        if error > best:  # not so where both overflow float32
            break
        best, start, end = error, next_start, next_end
    return start, end


def quantization_error(histogram: np.ndarray, width: float, start: int, end: int, levels: int) -> float:
    """Squared error of quantizing the histogram's data with `levels` codes over bins start..end (both included).

    Data are taken as uniform inside each bin of `width`; what lies outside goes to the nearest code.
    """
    step = width * (end - start + 1) / levels
    if step == 0.0:
        return 0.0
    w, d, half = F32(width), F32(step), F32(step / 2)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        begin = (np.arange(histogram.size) - start).astype(F32) * w
        stop = begin + w
        code_of_begin = np.clip(np.floor_divide(begin, d), F32(0), F32(levels - 1))
        code_of_stop = np.clip(np.floor_divide(stop, d), F32(0), F32(levels - 1))
        density = histogram / w
        norm = density * _cubes(begin - (code_of_begin + F32(0.5)) * d, half)
        norm += (code_of_stop - code_of_begin - F32(1)) * (density * _cubes(-half, half))
        norm += density * _cubes(-half, stop - (code_of_stop * d + half))
        return float(F32(np.cumsum(norm, dtype=np.float64)[-1]))


def _cubes(x0: np.ndarray | np.float32, x1: np.ndarray | np.float32) -> np.ndarray:
    """The integral of x² from x0 to x1."""
    return np.asarray(((x1 * x1) * x1 - (x0 * x0) * x0) / F32(3), F32)
