"""HistogramObserver: clips outliers where that lowers the squared quantization error."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qrt.core.errors import QuantizationError
from qrt.observers._histogram import count, upscale
from qrt.observers.base import F32, Observer
from qrt.observers.kernels import search

__all__ = ["HistogramObserver"]


@dataclass(eq=False)
class HistogramObserver(Observer):
    """A histogram of all that was seen, and the part of its range that quantizes with the least squared error.

    `bins`: number of bins. The bins always span min_val..max_val: when the range grows, the old counts are sorted into
    the new bins. Equals torch.ao.quantization's observer of this name.
    """

    bins: int = field(default=2048, kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2:
            raise QuantizationError(f"bins must be at least 2, not {self.bins}")
        self.histogram = np.zeros(self.bins, F32)

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        x = x.reshape(-1)
        old_low, old_high = F32(self._min), F32(self._max)
        new_low, new_high = np.minimum(old_low, low), np.maximum(old_high, high)
        with np.errstate(over="ignore"):
            if not np.isfinite(new_high - new_low):
                # No bin can be placed; calculate_qparams reports the range.
                self._min, self._max = np.asarray(new_low), np.asarray(new_high)
                return
        update = count(x, self.bins, new_low, new_high)
        if not self._seen or (new_low == old_low and new_high == old_high):
            self.histogram += update
        elif old_low == old_high:
            total = F32(self.histogram.sum(dtype=np.float64))
            self.histogram = count(old_low.reshape(1), self.bins, new_low, new_high) * total + update
        else:
            self.histogram = update + upscale(self.histogram, old_low, old_high, new_low, new_high)
        self._min, self._max = np.asarray(new_low), np.asarray(new_high)

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(over="ignore"):
            width = F32(F32(self._max - self._min) / F32(self.bins))
        if not np.isfinite(width):
            return self._min, self._max
        start, end = search(self.histogram, F32(self._min), F32(self._max), 2**self.dtype.bits)
        return self._min + width * F32(start), self._min + width * F32(end + 1)
