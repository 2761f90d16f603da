"""PercentileObserver: a range that keeps a given share of the values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qrt.core.errors import QuantizationError
from qrt.observers._bins import GrowingHistogram
from qrt.observers.base import F32, Observer

__all__ = ["PercentileObserver"]


@dataclass(eq=False)
class PercentileObserver(Observer):
    """The range that keeps `percentile` percent of all values: both tails are cut alike, or, in a symmetric scheme, the
    largest magnitudes (Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 3.3.3).

    `percentile`: 0 < percentile ≤ 100. `bins`: bins on each side of zero, a power of two; the range is exact to one bin,
    which is at most 2 / bins of the largest magnitude.
    """

    percentile: float = field(default=99.99, kw_only=False)
    bins: int = field(default=8192, kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.percentile <= 100:
            raise QuantizationError(f"percentile must be in (0, 100], not {self.percentile}")
        self._counted = GrowingHistogram(self.bins)

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        self._counted.update(x.reshape(-1), low, high)
        self._min = np.minimum(self._min, low)
        self._max = np.maximum(self._max, high)

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        counts, bins, width = self._counted.counts, self.bins, self._counted.width
        cut = (1 - self.percentile / 100) * float(counts.sum())
        if self.qscheme.symmetric:
            magnitudes = counts[bins:] + counts[bins - 1 :: -1]
            reach = bins - _cut_bins(magnitudes[::-1], cut)
            first, last = -reach, reach
        else:
            first = _cut_bins(counts, cut / 2) - bins
            last = bins - _cut_bins(counts[::-1], cut / 2)
        # Edges of bins may lie outside what was seen, and may cross where nearly all is cut.
        low, high = F32(first * width), F32(max(first, last) * width)
        return np.asarray(np.clip(low, self._min, self._max)), np.asarray(np.clip(high, self._min, self._max))


def _cut_bins(counts: np.ndarray, cut: float) -> int:
    """How many of the first bins may go so that no more than `cut` values go with them."""
    return int(np.searchsorted(np.cumsum(counts), cut, side="right"))
