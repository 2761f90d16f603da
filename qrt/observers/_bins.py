"""Bins, the option; and GrowingHistogram: counts of values of any magnitude in a fixed number of bins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qrt.core.errors import QuantizationError
from qrt.observers.kernels import count_exact

__all__ = ["Bins", "GrowingHistogram"]

LEAST_EXPONENT = -148  # of the smallest float32 above zero, 2⁻¹⁴⁹ = ½ · 2⁻¹⁴⁸
MOST_EXPONENT = 128  # of the largest


@dataclass(eq=False)
class Bins:
    """The number of bins, for an observer whose constructor takes it before the options of its other base."""

    bins: int = 2048


class GrowingHistogram:
    """`bins` equal bins on each side of zero that reach to ±2**exponent.

    When a value lies outside, the range grows by powers of two and pairs of bins are merged. The edges are multiples of a
    power of two, so both binning and merging are exact: the counts do not depend on the order or the grouping of the data.
    `counts`: int64 (2·bins,), bin i holds values in [(i − bins)·width, (i − bins + 1)·width).
    """

    def __init__(self, bins: int) -> None:
        if bins < 2 or bins & (bins - 1):
            raise QuantizationError(f"bins must be a power of two, not {bins}")
        self.bins = bins
        self.exponent = LEAST_EXPONENT
        self.counts = np.zeros(2 * bins, np.int64)

    @property
    def width(self) -> float:
        """Width of one bin."""
        return float(np.ldexp(1.0, self.exponent)) / self.bins

    def update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        """Count `x`: float32 (n,), contiguous, finite, with smallest value `low` and largest `high`."""
        largest = max(-low, high)
        exponent = int(np.frexp(largest)[1])  # largest < 2**exponent
        if largest > 0 and exponent > self.exponent:
            self._grow(exponent - self.exponent)
        self.counts += count_exact(x, 2 * self.bins, 1 / self.width)

    def merge(self, other: GrowingHistogram) -> None:
        """Add the counts of `other`, which has as many bins."""
        wider = GrowingHistogram(self.bins)
        wider.exponent, wider.counts = other.exponent, other.counts.copy()
        wider._grow(max(0, self.exponent - other.exponent))
        self._grow(max(0, other.exponent - self.exponent))
        self.counts += wider.counts

    def state_dict(self) -> dict[str, np.ndarray]:
        """Counts, int64 (2·bins,), and exponent, int64 ()."""
        return {"counts": self.counts.copy(), "exponent": np.array(self.exponent, np.int64)}

    def load_state_dict(self, state: Mapping[str, np.ndarray], where: str) -> None:
        """Take over counts and exponent. Raises QuantizationError, naming `where`, for another number of bins."""
        if state["counts"].shape != self.counts.shape or state["exponent"].ndim:
            raise QuantizationError(f"{where}: counts of shape {state['counts'].shape} do not fit {self.bins} bins on each side of zero")
        counts, exponent = state["counts"].astype(np.int64), int(state["exponent"])
        if (counts < 0).any() or not LEAST_EXPONENT <= exponent <= MOST_EXPONENT:
            raise QuantizationError(f"{where}: the state holds negative counts, or bins of a width that no float32 asks for")
        self.counts, self.exponent = counts, exponent

    def _grow(self, doublings: int) -> None:
        """Make every bin 2**doublings times wider."""
        old = np.arange(-self.bins, self.bins) >> min(doublings, 62)
        counts = np.zeros_like(self.counts)
        np.add.at(counts, old + self.bins, self.counts)
        self.counts = counts
        self.exponent += doublings
