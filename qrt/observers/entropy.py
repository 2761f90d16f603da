"""EntropyObserver: the clipping threshold that loses the least information."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrt.core.errors import QuantizationError
from qrt.observers._bins import Bins
from qrt.observers.base import F32
from qrt.observers.counting import CountingObserver

__all__ = ["EntropyObserver"]

CANDIDATES = 256  # thresholds tried
SMOOTHING = 1e-4  # share of the quantized distribution spread evenly, so that the divergence stays finite


@dataclass(eq=False)
class EntropyObserver(CountingObserver, Bins):
    """The threshold t for which the data clipped to ±t and their quantized form differ least in Kullback-Leibler
    divergence (Migacz, "8-bit Inference with TensorRT", GTC 2017).

    `bins`: bins on each side of zero, a power of two and at least the number of codes. An affine scheme quantizes the part
    of −t..t in which there are data; a symmetric one the magnitudes, with half of the codes. Merging is exact.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._levels = self._qmax - self._qmin + 1
        if self.qscheme.symmetric:
            self._levels = (self._levels + 1) // 2
        if self.bins < self._levels:
            raise QuantizationError(f"{self.bins} bins are too few for {self._levels} codes: give more bins")
        self._count_in(self.bins)

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        positive = self._counted.counts[self.bins :].astype(np.float64)
        negative = self._counted.counts[self.bins - 1 :: -1].astype(np.float64)
        if self.qscheme.symmetric:
            positive, negative = positive + negative, np.zeros(0)
        positive, negative = np.trim_zeros(positive, "b"), np.trim_zeros(negative, "b")
        for side in (positive, negative):
            if side.size > 1:  # zero is exact however many there are (after a Relu, most): its bin counts as its neighbour
                side[0] = side[1]
        threshold = F32(_best_threshold(negative, positive, self._levels) * self._counted.width)
        return np.maximum(self._min, -threshold), np.minimum(self._max, threshold)


def _best_threshold(negative: np.ndarray, positive: np.ndarray, levels: int) -> int:
    """How many bins on each side of zero to keep.

    `negative`, `positive`: counts by magnitude, from zero outwards, up to the last bin that is not empty.
    """
    longest = max(negative.size, positive.size)
    candidates = np.unique(np.linspace(min(levels, longest), longest, CANDIDATES).astype(np.int64))
    divergences = [_divergence(negative, positive, int(kept), levels) for kept in candidates]
    # The widest of equals: clipping must pay.
    return int(candidates[::-1][np.argmin(divergences[::-1])])


def _divergence(negative: np.ndarray, positive: np.ndarray, kept: int, levels: int) -> float:
    """KL(P ‖ Q): P, the data with what is clipped added to the outermost bins; Q, the kept data quantized to `levels`."""
    kept_data = np.concatenate([negative[:kept][::-1], positive[:kept]])
    p = kept_data.copy()
    p[0] += negative[kept:].sum()
    p[-1] += positive[kept:].sum()
    if not kept_data.any():
        return np.inf
    edges = np.arange(min(levels, p.size)) * p.size // min(levels, p.size)
    filled = p > 0
    mass = np.add.reduceat(kept_data, edges)
    used = np.add.reduceat(filled.astype(np.float64), edges)
    spread = np.divide(mass, used, out=np.zeros_like(mass), where=used > 0)
    q = np.where(filled, np.repeat(spread, np.diff(np.append(edges, p.size))), 0.0)
    p /= p.sum()
    q = (1 - SMOOTHING) * q / q.sum() + SMOOTHING / q.size
    return float(np.sum(p[filled] * np.log(p[filled] / q[filled])))
