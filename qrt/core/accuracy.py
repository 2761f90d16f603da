"""How near one array is to another, in the words of the field."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["compute_sqnr", "decibels"]


def decibels(signal: float, noise: float) -> float:
    """Signal to quantization noise of two energies: 10 · log10(signal / noise) in dB; inf without noise, −inf without signal."""
    if noise == 0.0:
        return math.inf
    ratio = signal / noise
    return 10.0 * math.log10(ratio) if ratio != 0.0 else -math.inf


def compute_sqnr(x: np.ndarray, y: np.ndarray) -> float:
    """Signal to quantization noise of `x` beside `y`, of one shape: 20 · log10(‖x‖ / ‖x − y‖) in dB, in float64.

    inf where they are equal.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return decibels(float(np.sum(a * a)), float(np.sum((a - b) ** 2)))
