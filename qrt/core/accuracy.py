"""How near one array is to another, in the words of the field. All sums are float64."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["compute_sqnr", "decibels", "difference", "mean_squared_error"]


def decibels(signal: float, noise: float) -> float:
    """Signal to quantization noise of two energies: 10 · log10(signal / noise) in dB; inf without noise, −inf without signal."""
    if noise == 0.0:
        return math.inf
    ratio = signal / noise
    return 10.0 * math.log10(ratio) if ratio != 0.0 else -math.inf


def compute_sqnr(x: np.ndarray, y: np.ndarray) -> float:
    """Signal to quantization noise of `x` beside `y`, of one shape: 20 · log10(‖x‖ / ‖x − y‖) in dB.

    inf where they are equal.
    """
    with np.errstate(over="ignore"):
        signal = float(np.sum(np.asarray(x, np.float64) ** 2))
    return decibels(signal, float(np.sum(_squared_error(x, y))))


def mean_squared_error(x: np.ndarray, y: np.ndarray) -> float:
    """The mean of (x − y)², 0 for empty arrays."""
    return float(np.mean(_squared_error(x, y))) if np.size(x) else 0.0


def difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x − y in float64; 0 where they are equal, infinities (of masks) included."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(a == b, 0.0, a - b)


def _squared_error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return difference(x, y) ** 2
