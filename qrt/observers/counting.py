"""CountingObserver: base of observers that choose a range from exact counts of all values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from qrt.observers._bins import GrowingHistogram
from qrt.observers.minmax import MinMaxObserver

__all__ = ["CountingObserver"]


@dataclass(eq=False)
class CountingObserver(MinMaxObserver):
    """Counts values in bins that grow with them. Subclasses have a field `bins`: how many on each side of zero. Merging is exact."""

    def _count_in(self, bins: int) -> None:
        """Begin with no counts."""
        self._counted = GrowingHistogram(bins)

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        super()._update(x, low, high)
        self._counted.update(x.reshape(-1), low, high)

    def _counts(self, mergeable: bool) -> dict[str, np.ndarray]:
        return self._counted.state_dict()

    def _load_counts(self, state: Mapping[str, np.ndarray]) -> None:
        self._counted.load_state_dict(state, self._where)

    def _merge(self, other: Self) -> None:
        super()._merge(other)
        self._counted.merge(other._counted)
