"""HistogramObserver: clips outliers where that lowers the squared quantization error."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from qrt.core.errors import QrtWarning, QuantizationError
from qrt.observers._bins import Bins
from qrt.observers._histogram import count
from qrt.observers.base import F32, UniformQuantizationObserverBase
from qrt.observers.kernels import BLOCK, count_inside, count_uniform, rebin, search

__all__ = ["HistogramObserver"]

GROWTHS = 4  # how often the range may grow within an array before the rest is measured first


@dataclass(eq=False)
class HistogramObserver(UniformQuantizationObserverBase, Bins):
    """A histogram of all that was seen, and the part of its range that quantizes with the least squared error.

    `bins`: number of bins. The bins always span min_val..max_val: when the range grows, the old counts are sorted into
    the new bins. Equals torch.ao.quantization's observer of this name: it leaves infinities out, and gives a QrtWarning. Values beyond
    about 10¹² are better left to a MinMaxObserver: their squared errors overflow float32, and the search then cuts off half of the range.

    Merging keeps min_val, max_val and the number of values exactly. A value's bin may differ from that of the whole stream by one bin (and
    as many as lie between neighbouring float32 at the range's ends, where bins are narrower than that) for each time that either range
    grew, for that is how far one re-sorting moves it. Values beyond about 10³⁴, whose place overflows float32, are all
    counted in the first bin.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2:
            raise QuantizationError(f"bins must be at least 2, not {self.bins}")
        if self.is_dynamic:
            raise QuantizationError("HistogramObserver cannot be dynamic: use MovingAverageMinMaxObserver with averaging_constant=1")
        self.histogram = np.zeros(self.bins, F32)

    def _count_within(self, x: np.ndarray) -> int:
        """Counts `x` in one trip through memory, and once more what was counted before the range last grew."""
        x, low, high = x.reshape(-1), F32(self._min), F32(self._max)
        known = begin = 0
        for growth in range(1 + GROWTHS):
            with np.errstate(over="ignore"):
                if not 0 < high - low < np.inf:
                    break
            update, done = count_inside(x[begin:], self.bins, low, high)
            end = begin + done
            if growth == 0:
                known = end
            if end == x.size:
                if begin:
                    update += count_uniform(x[:begin], self.bins, low, high)
                self.histogram = update.astype(F32) + self._over(low, high)
                self._min, self._max = np.asarray(low), np.asarray(high)
                return end
            begin, wider = end, x[end : end + BLOCK]  # NaN passes through min and max, and ends this
            low, high = np.minimum(low, wider.min()), np.maximum(high, wider.max())
        return known

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
        self.histogram = update + self._over(new_low, new_high) if self._seen else update
        self._min, self._max = np.asarray(new_low), np.asarray(new_high)

    def _finite(self, x: np.ndarray, kind: str) -> np.ndarray:
        if kind != "infinity":
            return super()._finite(x, kind)
        warnings.warn(
            f"{self._where}: saw infinity, which its histogram leaves out; remove the sample or mend the model before this site",
            QrtWarning,
            stacklevel=4,
        )
        return np.asarray(x[np.isfinite(x)])

    def _over(self, new_low: np.float32, new_high: np.float32) -> np.ndarray:
        """The histogram over a range that takes in its own."""
        low, high = F32(self._min), F32(self._max)
        if new_low == low and new_high == high:
            return self.histogram
        if low == high:
            total = F32(self.histogram.sum(dtype=np.float64))
            return np.asarray(count(low.reshape(1), self.bins, new_low, new_high) * total)
        return rebin(self.histogram, low, high, new_low, new_high)

    def _merge(self, other: Self) -> None:
        low, high = np.minimum(F32(self._min), F32(other._min)), np.maximum(F32(self._max), F32(other._max))
        with np.errstate(over="ignore"):
            if np.isfinite(high - low):
                self.histogram = other._over(low, high) + self._over(low, high)
        self._min, self._max = np.asarray(low), np.asarray(high)

    def _counts(self, mergeable: bool) -> dict[str, np.ndarray]:
        return {"histogram": self.histogram.copy()}

    def _load_counts(self, state: Mapping[str, np.ndarray]) -> None:
        if state["histogram"].shape != self.histogram.shape:
            raise QuantizationError(f"{self._where}: a histogram of shape {state['histogram'].shape} does not fit {self.bins} bins")
        counts = state["histogram"].astype(F32)
        if not ((counts >= 0) & (counts < np.inf)).all():
            raise QuantizationError(f"{self._where}: the state's histogram holds numbers that count nothing: negative, NaN or infinite")
        self.histogram = counts

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(over="ignore"):
            width = F32(F32(self._max - self._min) / F32(self.bins))
        if not np.isfinite(width):
            return self._min, self._max
        start, end = search(self.histogram, F32(self._min), F32(self._max), 2**self.dtype.bits)
        return self._min + width * F32(start), self._min + width * F32(end + 1)
