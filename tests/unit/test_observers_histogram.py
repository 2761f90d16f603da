"""HistogramObserver: its pieces against exact arithmetic, its kernels against NumPy bit for bit, its behaviour on streams."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import observer_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from observer_streams import STREAMS, stream

from qrt.core.errors import CalibrationError, QrtWarning, QuantizationError
from qrt.core.numerics import fake_quantize
from qrt.jit import host_target
from qrt.observers import HistogramObserver, MinMaxObserver, kernels

F32 = np.float32
ISAS = host_target().ladder


@pytest.fixture(params=ISAS)
def _isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRT_TARGET", request.param)


@pytest.mark.usefixtures("_isa")
@pytest.mark.parametrize("bins", [2, 3, 128, 2048])
def test_uniform_binning_equals_numpy(bins: int) -> None:
    rng = np.random.default_rng(bins)
    for n in (1, 2, 3, 5, 1000, 4099):
        x = (rng.standard_cauchy(n) * 10.0 ** rng.integers(-30, 30)).astype(F32)
        low = x.min()
        high = max(x.max(), np.nextafter(low, F32(np.inf)))
        counts = kernels.count_uniform(x, bins, low, high)
        np.testing.assert_array_equal(counts, reference.count_uniform(x, bins, low, high))
        assert counts.sum() == n


@pytest.mark.usefixtures("_isa")
@given(x=hnp.arrays(F32, st.integers(1, 40), elements=st.floats(-1, 1, width=32)), exponent=st.integers(-60, 60))
@settings(max_examples=50, deadline=None)
def test_exact_binning_equals_numpy(x: np.ndarray, exponent: int) -> None:
    x = np.nextafter(x, F32(0)) * F32(2.0**exponent)
    scale = 64 * 2.0**-exponent
    np.testing.assert_array_equal(kernels.count_exact(x, 128, scale), reference.count_exact(x, 128, scale))


@pytest.mark.usefixtures("_isa")
def test_no_value_can_reach_outside_the_table() -> None:
    # An observer never passes such values; another thread that writes to the array meanwhile could.
    x = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 0], F32)
    assert kernels.count_uniform(x, 8, F32(-1), F32(1)).sum() == x.size
    assert kernels.count_exact(x, 8, 4.0).sum() == x.size


@pytest.mark.usefixtures("_isa")
@pytest.mark.parametrize("n", [1, 127, 128, 129, 1000])
def test_counting_stops_at_what_lies_outside(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.uniform(-1, 1, n).astype(F32)
    counts, done = kernels.count_inside(x, 64, F32(-1), F32(1))
    assert done == n
    np.testing.assert_array_equal(counts, reference.count_uniform(x, 64, F32(-1), F32(1)))
    for outside in (np.nextafter(F32(1), F32(2)), F32(-1.5), F32(np.nan), F32(np.inf), F32(-np.inf)):
        for at in (0, n // 2, n - 1):
            bad = x.copy()
            bad[at] = outside
            counts, done = kernels.count_inside(bad, 64, F32(-1), F32(1))
            assert at - kernels.BLOCK < done <= at
            np.testing.assert_array_equal(counts, reference.count_uniform(bad[:done], 64, F32(-1), F32(1)))


@pytest.mark.usefixtures("_isa")
@pytest.mark.parametrize("bins", [2, 3, 64, 2048])
def test_rebinning_equals_numpy(bins: int) -> None:
    rng = np.random.default_rng(bins)
    for _ in range(20):
        counts = np.floor(rng.standard_exponential(bins) * 1000).astype(F32)
        low = F32(rng.normal() * 10.0 ** rng.integers(-30, 30))
        high = max(low + abs(low) * F32(10.0 ** rng.integers(-7, 3)), np.nextafter(low, F32(np.inf)))
        span = high - low
        ranges = (low, high, low - span * F32(rng.choice([0, 1e-3, 2])), high + span * F32(rng.choice([0, 1e-3, 2])))
        np.testing.assert_array_equal(kernels.rebin(counts, *ranges), reference.rebin(counts, *ranges))


@pytest.mark.usefixtures("_isa")
@pytest.mark.parametrize("levels", [16, 256, 65536])
def test_search_equals_numpy(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for i in range(25):
        bins = int(rng.integers(2, 300))
        histogram = np.floor(rng.standard_exponential(bins) * 10.0 ** rng.integers(0, 6)).astype(F32)
        histogram[rng.random(bins) < rng.random()] = 0
        histogram[0] += F32(1 / 16)
        low = F32(rng.normal() * 10.0 ** rng.integers(-10, 10))
        high = F32(low + np.abs(low) * 10.0 ** rng.integers(-2, 3))
        assert kernels.search(histogram, low, high, levels) == reference.search(histogram, low, high, levels), i


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1e-45), (-1e-40, 1e-40), (-1e38, 1e38), (1e20, 1e21), (-1, 1)])
def test_search_on_extreme_ranges_equals_numpy(low: float, high: float) -> None:
    histogram = np.arange(64, dtype=F32)
    found = kernels.search(histogram, F32(low), F32(high), 256)
    assert found == reference.search(histogram, F32(low), F32(high), 256)
    assert 0 <= found[0] <= found[1] < 64


def test_search_minimises_what_it_says() -> None:
    """The error of the search against the error of quantizing points spread evenly inside each bin."""
    histogram = np.array([1, 0, 2, 40, 90, 100, 70, 20, 5, 0, 0, 1], F32)
    bins, per_bin, width = histogram.size, 4000, 0.25
    points = (np.arange(bins * per_bin) + 0.5) / per_bin * width
    weights = np.repeat(histogram / per_bin, per_bin)
    for start, end in ((0, 11), (2, 8), (3, 7), (1, 11)):
        step = width * (end - start + 1) / 16
        code = np.clip(np.floor((points - start * width) / step), 0, 15)
        centre = start * width + (code + 0.5) * step
        expected = float((weights * (points - centre) ** 2).sum())
        assert reference.quantization_error(histogram, width, start, end, 16) == pytest.approx(expected, rel=1e-2)


@given(start=st.floats(-1000, 1000, width=32), span=st.floats(2.0**-10, 1000, width=32), n=st.sampled_from([2, 3, 17, 129]))
def test_linspace_has_one_rounding(start: float, span: float, n: int) -> None:
    stop = F32(start) + F32(span)
    step = Fraction(float((stop - F32(start)) / F32(n - 1)))
    exact = [Fraction(start) + step * i if i < n // 2 else Fraction(float(stop)) - step * (n - 1 - i) for i in range(n)]
    got = reference.linspace(F32(start), stop, n)
    assert got.dtype == F32
    for value, truth in zip(got, exact, strict=True):
        error = abs(Fraction(float(value)) - truth)
        for neighbour in (np.nextafter(value, F32(np.inf)), np.nextafter(value, F32(-np.inf))):
            assert error <= abs(Fraction(float(neighbour)) - truth)


def test_rebinning_keeps_the_mass_where_it_was() -> None:
    histogram = np.arange(1, 65, dtype=F32)
    wide = kernels.rebin(histogram, F32(0), F32(1), F32(-1), F32(3))
    np.testing.assert_array_equal(wide[:16], 0)
    np.testing.assert_array_equal(wide[32:], 0)
    np.testing.assert_allclose(wide[16:32], histogram.reshape(16, 4).sum(axis=1))


def test_bins_span_the_data() -> None:
    observer = HistogramObserver(bins=4)
    observer(np.array([0, 1, 2, 3, 4], F32))
    assert observer.histogram.tolist() == [1, 1, 1, 2]
    observer(np.array([8], F32))
    assert observer.histogram.tolist() == [2, 3, 0, 1]
    assert (float(observer.min_val), float(observer.max_val)) == (0, 8)


def test_a_single_value_first() -> None:
    observer = HistogramObserver(bins=4)
    observer(np.full(10, 0.5, F32))
    assert observer.histogram.tolist() == [0, 0, 10, 0]
    observer(np.array([0, 1], F32))
    assert observer.histogram.tolist() == [1, 0, 10, 1]


def test_no_count_is_lost() -> None:
    for seed in range(0, STREAMS, 7):
        observer, n = HistogramObserver(), 0
        for x in stream(seed):
            observer(x)
            n += x.size
        assert observer.histogram.sum() == pytest.approx(n)


def test_infinities_are_left_out_and_told_of() -> None:
    seen, clean = HistogramObserver(site="conv1/output"), HistogramObserver()
    x = stream(0)[0]
    clean(x)
    with pytest.warns(QrtWarning, match="conv1/output: saw infinity, which its histogram leaves out; remove the sample"):
        seen(np.concatenate([x, np.full((3, 2), [np.inf, -np.inf], F32)], axis=1))
    with pytest.warns(QrtWarning, match="infinity"):
        seen(np.full(4, 1e300))
    np.testing.assert_array_equal(tuple(seen.calculate_qparams()), tuple(clean.calculate_qparams()))
    np.testing.assert_array_equal(seen.histogram, clean.histogram)
    with pytest.raises(CalibrationError, match="saw NaN"):
        seen(np.array([np.inf, np.nan], F32))


def test_it_clips_tails_where_that_pays() -> None:
    rng = np.random.default_rng(1)
    x = rng.laplace(size=200_000).astype(F32)
    histogram, plain = HistogramObserver(), MinMaxObserver()
    errors = []
    for observer in (histogram, plain):
        observer(x)
        errors.append(np.square(fake_quantize(x, observer.calculate_qparams()) - x).mean())
    assert histogram.calculate_qparams().scale < 0.95 * plain.calculate_qparams().scale
    assert errors[0] < 0.95 * errors[1]


def test_a_million_equal_values() -> None:
    observer = HistogramObserver()
    for _ in range(20):
        observer(np.zeros(1_000_000, F32))
    observer(np.array([-1, 1], F32))
    assert observer.histogram.sum(dtype=np.float64) == 20_000_002
    assert np.isfinite(observer.calculate_qparams().scale)


@pytest.mark.parametrize("bins", [0, 1, -5])
def test_bins_are_checked(bins: int) -> None:
    with pytest.raises(QuantizationError, match="bins"):
        HistogramObserver(bins)


@pytest.mark.parametrize("outliers", [0, 1, 2, 4, 5, 9, 1000])
def test_a_range_that_grows_within_an_array(outliers: int) -> None:
    """However often it grows, and wherever: the whole array is counted over its final range, on top of the old counts re-sorted."""
    rng = np.random.default_rng(outliers)
    for _ in range(20):
        first, x = rng.uniform(-1, 1, 300).astype(F32), rng.uniform(-1, 1, int(rng.integers(1000, 3000))).astype(F32)
        at = np.sort(rng.choice(x.size, outliers, replace=False))
        x[at] = np.linspace(1.1, 5, outliers, dtype=F32) * np.where(rng.random(outliers) < 0.5, F32(-1), F32(1))
        observer = HistogramObserver(bins=64)
        observer(first)
        observer(x)
        low, high = min(first.min(), x.min()), max(first.max(), x.max())
        old = reference.count_uniform(first, 64, first.min(), first.max()).astype(F32)
        resorted = reference.rebin(old, first.min(), first.max(), low, high) if (low, high) != (first.min(), first.max()) else old
        np.testing.assert_array_equal(observer.histogram, reference.count_uniform(x, 64, low, high).astype(F32) + resorted)
        assert (observer.min_val, observer.max_val) == (low, high)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 700, 1499])
def test_a_number_that_is_not_one_after_the_range_grew(bad: float, at: int) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 1500).astype(F32)
    observer = HistogramObserver(bins=64)
    observer(x)
    before = observer.histogram.copy()
    wider = x.copy()
    wider[[300, 1000]] = 2, -2
    wider[at] = bad
    if np.isnan(bad):
        with pytest.raises(CalibrationError, match="NaN"):
            observer(wider)
        np.testing.assert_array_equal(observer.histogram, before)
    else:
        with pytest.warns(QrtWarning, match="infinity"):
            observer(wider)
        assert observer.histogram.sum() == x.size + wider.size - 1
