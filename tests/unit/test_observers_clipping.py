"""PercentileObserver, EntropyObserver and the growing histogram beneath them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qrt.core.dtypes import per_tensor_symmetric, qint8, qint16
from qrt.core.errors import QuantizationError
from qrt.observers import EntropyObserver, MinMaxObserver, PercentileObserver, UniformQuantizationObserverBase
from qrt.observers._bins import GrowingHistogram
from qrt.observers.entropy import _best_threshold, _divergence

F32 = np.float32
values = st.floats(-(2.0**60), 2.0**60, width=32)


def learned(observer: UniformQuantizationObserverBase, *arrays: np.ndarray) -> tuple[float, float]:
    for x in arrays:
        observer(x.astype(F32))
    low, high = observer._range()
    return float(low), float(high)


def counted(bins: int, arrays: list[np.ndarray]) -> GrowingHistogram:
    histogram = GrowingHistogram(bins)
    for x in arrays:
        histogram.update(x, x.min(), x.max())
    return histogram


@settings(deadline=None)
@given(data=st.lists(hnp.arrays(F32, st.integers(1, 10), elements=values), min_size=1, max_size=5))
def test_growing_histogram_is_exact_and_knows_no_order(data: list[np.ndarray]) -> None:
    histogram = counted(16, data)
    everything = np.concatenate(data)
    largest = float(np.abs(everything).max())
    assert largest < 2.0**histogram.exponent
    assert largest == 0 or largest >= 2.0 ** (histogram.exponent - 1)
    expected = np.zeros(32, np.int64)
    for x in everything:
        expected[math.floor(float(x) / histogram.width) + 16] += 1
    np.testing.assert_array_equal(histogram.counts, expected)
    for other in (counted(16, data[::-1]), counted(16, [everything])):
        np.testing.assert_array_equal(other.counts, expected)
        assert other.exponent == histogram.exponent


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-38, 1.0, 3.4e38])
def test_growing_histogram_takes_every_magnitude(largest: float) -> None:
    x = np.array([largest, -largest, 0, largest / 2], F32)
    histogram = counted(64, [np.zeros(3, F32), x])
    assert histogram.counts.sum() == 7
    assert histogram.counts.size == 128
    histogram.update(np.array([3e38], F32), F32(3e38), F32(3e38))
    assert histogram.counts.sum() == 8


@pytest.mark.parametrize("make", [GrowingHistogram, lambda bins: PercentileObserver(bins=bins), lambda bins: EntropyObserver(bins=bins)])
@pytest.mark.parametrize("bins", [0, 1, -4, 1000])
def test_bins_must_be_a_power_of_two(make: Callable[[int], object], bins: int) -> None:
    with pytest.raises(QuantizationError, match="bins"):
        make(bins)


@settings(deadline=None)
@given(x=hnp.arrays(F32, st.integers(1, 200), elements=st.floats(-100, 100, width=32)), percentile=st.floats(50, 100))
def test_percentile_keeps_its_share(x: np.ndarray, percentile: float) -> None:
    low, high = learned(PercentileObserver(percentile), x)
    width = 2 * np.abs(x).max() / 8192  # of a bin, at most
    allowed = (1 - percentile / 100) * x.size / 2 + 1e-6
    assert (x < low).sum() <= allowed
    assert (x > high).sum() <= allowed
    # One more bin would have cut too much.
    assert (x <= low + 2 * width).sum() > allowed - 1e-5
    assert (x >= high - 2 * width).sum() > allowed - 1e-5


def test_percentile_of_a_known_distribution() -> None:
    x = np.random.default_rng(2).permutation(np.linspace(-1, 3, 100_001))
    low, high = learned(PercentileObserver(99.0), *np.array_split(x, 7))
    assert low == pytest.approx(-0.98, abs=1e-3)
    assert high == pytest.approx(2.98, abs=1e-3)
    low, high = learned(PercentileObserver(90.0, dtype=qint8, qscheme=per_tensor_symmetric), x)
    assert (low, high) == pytest.approx((-1.0, 2.6), abs=1e-3)


def test_one_hundred_percent_is_everything() -> None:
    x = np.random.default_rng(2).standard_cauchy(1000).astype(F32)
    assert learned(PercentileObserver(100.0), x) == learned(MinMaxObserver(), x)


@pytest.mark.parametrize("percentile", [0, -1, 100.1, np.nan])
def test_percentile_is_checked(percentile: float) -> None:
    with pytest.raises(QuantizationError, match="percentile"):
        PercentileObserver(percentile)


def slow_divergence(negative: list[float], positive: list[float], kept: int, levels: int) -> float:
    """The definition once more, one bin at a time."""
    inside = negative[:kept][::-1] + positive[:kept]
    p = list(inside)
    p[0] += sum(negative[kept:])
    p[-1] += sum(positive[kept:])
    groups = min(levels, len(p))
    q = [0.0] * len(p)
    for g in range(groups):
        members = range(g * len(p) // groups, (g + 1) * len(p) // groups)
        filled = [i for i in members if p[i] > 0]
        for i in filled:
            q[i] = sum(inside[j] for j in members) / len(filled)
    mass, total = sum(q), sum(p)
    q = [(1 - 1e-4) * v / mass + 1e-4 / len(q) for v in q]
    return sum(v / total * math.log(v / total / w) for v, w in zip(p, q, strict=True) if v > 0)


@given(data=st.data())
def test_divergence_is_the_definition(data: st.DataObject) -> None:
    side = st.lists(st.integers(0, 50).map(float), max_size=30)
    negative, positive = data.draw(side), data.draw(side)
    longest = max(len(negative), len(positive))
    kept = data.draw(st.integers(1, max(longest, 1)))
    levels = data.draw(st.integers(2, 9))
    if not any(negative[:kept] + positive[:kept]):
        return
    got = _divergence(np.array(negative), np.array(positive), kept, levels)
    assert got == pytest.approx(slow_divergence(negative, positive, kept, levels), abs=1e-9)


def test_divergence_is_zero_when_nothing_is_lost() -> None:
    flat = np.ones(64)
    assert _divergence(np.zeros(0), flat, 64, 8) == pytest.approx(0, abs=1e-12)
    assert _best_threshold(np.zeros(0), flat, 8) == 64


SHAPES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda rng: rng.normal(size=50_000),
    "relu": lambda rng: np.maximum(rng.normal(size=50_000), 0),
    "negative": lambda rng: -np.abs(rng.normal(size=50_000)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"dtype": qint8, "qscheme": per_tensor_symmetric}])
def test_entropy_clips_an_outlier_and_keeps_the_bulk(shape: str, options: dict[str, object]) -> None:
    x = SHAPES[shape](np.random.default_rng(4))
    x[0] = 30 * np.sign(x[np.abs(x).argmax()])
    low, high = learned(EntropyObserver(**options), *np.array_split(x, 5))
    reach = max(-low, high)
    assert 3 < reach < 12
    assert low >= x.min()
    assert high <= x.max()


@pytest.mark.parametrize("options", [{}, {"dtype": qint8, "qscheme": per_tensor_symmetric}])
def test_entropy_keeps_an_even_distribution_whole(options: dict[str, object]) -> None:
    x = np.random.default_rng(4).uniform(0, 5, 200_000).astype(F32)
    low, high = learned(EntropyObserver(**options), x)
    assert low == x.min()
    assert high == pytest.approx(x.max(), rel=0.02)


def test_zeros_do_not_weigh() -> None:
    x = np.abs(np.random.default_rng(4).normal(size=50_000))
    few, many = (learned(EntropyObserver(), x, np.zeros(n))[1] for n in (1, 5_000_000))
    assert few == many


def test_entropy_is_for_few_codes() -> None:
    with pytest.raises(QuantizationError, match="2048 bins are too few for 65536 codes"):
        EntropyObserver(dtype=qint16)
