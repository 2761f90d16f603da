"""PercentileObserver: a range that keeps a given share of the values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrt.core.errors import QuantizationError
from qrt.observers.base import F32
from qrt.observers.counting import CountingObserver

__all__ = ["PercentileObserver"]


@dataclass(eq=False)
class _Share:
    """What the constructor takes before the options of its other base."""

    percentile: float = 99.99
    bins: int = 8192


@dataclass(eq=False)
class PercentileObserver(CountingObserver, _Share):
    """The range that keeps `percentile` percent of all values: both tails are cut alike, or, in a symmetric scheme, the
    largest magnitudes (Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 3.3.3).

    `percentile`: 0 < percentile ≤ 100. `bins`: bins on each side of zero, a power of two; the range is exact to one bin,
    which is at most 2 / bins of the largest magnitude. Merging is exact.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.percentile <= 100:
            raise QuantizationError(f"percentile must be in (0, 100], not {self.percentile}")
        self._count_in(self.bins)

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
