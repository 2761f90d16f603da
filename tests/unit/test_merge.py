"""Merging: any split of a stream into shards, observed apart and merged in order, is the whole stream observed.

Exactly where all that is kept are extremes and exact counts; within the bounds that the observers' docstrings state for averages and
histograms.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from observer_streams import STREAMS, stream
from observing import AVERAGES, EXACT, LEARNING, same, watch
from safetensors.numpy import load, save

from qrt import observers
from qrt.core.dtypes import per_tensor_symmetric, qint8, quint8
from qrt.core.errors import QuantizationError
from qrt.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
    AffineQuantizedObserverBase,
    EntropyObserver,
    Granularity,
    HistogramObserver,
    MappingType,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerAxis,
    PerBlock,
    PercentileObserver,
    PerChannelMinMaxObserver,
    PerGroup,
    PerRow,
    PerTensor,
    RecordingObserver,
    UniformQuantizationObserverBase,
)

F32 = np.float32
Stream = list[np.ndarray]
BLOCKS = [AffineQuantizedMinMaxObserver, AffineQuantizedMovingAverageMinMaxObserver]
GRANULARITIES = [PerTensor(), PerAxis(0), PerRow(), PerGroup(2), PerBlock((3, 2))]
CONSTANTS = [0.01, 0.3, 0.9, 1.0]


def numbers() -> st.SearchStrategy[float]:
    """Finite float32 of all magnitudes, with many that meet again."""
    return st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0**-140, -(2.0**-149), 2.0**100, -(2.0**100), 1000.0, 1000.0625]),
        st.floats(-8, 8, width=32),
        st.floats(-(2.0**100), 2.0**100, width=32),
    )


def arrays(shape: tuple[int, int] | None = None) -> st.SearchStrategy[Stream]:
    """One of the recorded streams, or new arrays of three rows; all of `shape`, if that is given."""
    shapes = st.tuples(st.just(3), st.integers(1, 9)) if shape is None else st.just(shape)
    new = st.lists(hnp.arrays(F32, shapes, elements=numbers()), min_size=1, max_size=7)
    if shape is not None:
        return new
    return st.one_of(st.integers(0, STREAMS - 1).map(stream), new)


@st.composite
def shards(draw: st.DrawFn, streams: st.SearchStrategy[Stream]) -> list[Stream]:
    """A stream cut into one to six shards, some of them empty."""
    whole = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def joined(parts: list[Stream]) -> Stream:
    return [array for part in parts for array in part]


def merged(make: Callable[..., Any], parts: list[Stream]) -> Any:
    """What one observer a shard learned, merged in order by way of their states, as files keep them."""
    whole = make()
    for part in parts:
        other = make()
        other.load_state_dict(load(save(watch(make, part).state_dict(mergeable=True))))
        whole.merge(other)
    return whole


def rounding(whole: Stream) -> float:
    """The bound that averages state: (n + 3) · 2⁻²² of the largest magnitude, and as many denormal steps."""
    n = len(whole) + 3
    return n * 2.0**-22 * max(float(np.abs(array).max()) for array in whole) + n * 2.0**-149


def assert_close(one: Any, other: Any, bound: float) -> None:
    for ours, theirs in ((one.min_val, other.min_val), (one.max_val, other.max_val)):
        np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=0, atol=bound)


def test_every_observer_that_learns_is_held_here() -> None:
    classes = [kind for kind in vars(observers).values() if inspect.isclass(kind) and not inspect.isabstract(kind)]
    learning = [kind for kind in classes if issubclass(kind, UniformQuantizationObserverBase | AffineQuantizedObserverBase)]
    assert set(learning) == {*LEARNING, *BLOCKS}


@pytest.mark.parametrize(
    "make",
    [
        *EXACT,
        MinMaxObserver.with_args(dtype=qint8, qscheme=per_tensor_symmetric),
        PerChannelMinMaxObserver.with_args(ch_axis=-2),
        PercentileObserver.with_args(percentile=90.0, bins=16),
        EntropyObserver.with_args(dtype=qint8, qscheme=per_tensor_symmetric, bins=256),
    ],
)
@given(parts=shards(arrays()))
@settings(max_examples=60, deadline=None)
def test_extremes_and_exact_counts(make: Callable[..., Any], parts: list[Stream]) -> None:
    one, other = merged(make, parts), watch(make, joined(parts))
    assert same(one.state_dict(mergeable=True), other.state_dict(mergeable=True))


@pytest.mark.parametrize("make", AVERAGES)
@given(parts=shards(arrays()), constant=st.sampled_from(CONSTANTS))
@settings(max_examples=100, deadline=None)
def test_averages(make: Callable[..., Any], parts: list[Stream], constant: float) -> None:
    def observer() -> Any:
        return make(averaging_constant=constant)

    assert_close(merged(observer, parts), watch(observer, joined(parts)), rounding(joined(parts)))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
@pytest.mark.parametrize("kind", BLOCKS)
@given(parts=shards(arrays((3, 4))), constant=st.sampled_from(CONSTANTS))
@settings(max_examples=40, deadline=None)
def test_blocks(kind: Any, granularity: Granularity, parts: list[Stream], constant: float) -> None:
    averaging = {"averaging_constant": constant} if kind is AffineQuantizedMovingAverageMinMaxObserver else {}

    def observer() -> Any:
        return kind(MappingType.ASYMMETRIC, quint8, granularity, **averaging)

    one, other = observer(), watch(observer, joined(parts))
    for part in parts:
        one.merge(watch(observer, part))
    assert_close(one, other, rounding(joined(parts)) if averaging else 0)


def growths(whole: Stream) -> int:
    """How often the range of a stream grows after its first array."""
    low = np.minimum.accumulate([a.min() for a in whole])
    high = np.maximum.accumulate([a.max() for a in whole])
    return int(((np.diff(low) != 0) | (np.diff(high) != 0)).sum())


def may_move(parts: list[Stream], observer: HistogramObserver) -> int:
    """How many bins the docstring allows: one and the spacing of float32, for each growth of the stream, of its shards and of the merge."""
    times = growths(joined(parts)) + sum(growths(part) for part in parts if part) + 2 * len(parts)
    low, high = float(observer.min_val), float(observer.max_val)
    spacing = float(np.spacing(F32(max(abs(low), abs(high)))))
    return times * (1 + int(np.ceil(spacing * observer.bins / (high - low))))


@pytest.mark.parametrize("bins", [64, 2048])
@given(parts=shards(arrays()))
@settings(max_examples=150, deadline=None)
def test_histograms(bins: int, parts: list[Stream]) -> None:
    def observer() -> Any:
        return HistogramObserver(bins)

    one, other = merged(observer, parts), watch(observer, joined(parts))
    assert one.min_val == other.min_val
    assert one.max_val == other.max_val
    a, b = np.cumsum(one.histogram, dtype=np.float64), np.cumsum(other.histogram, dtype=np.float64)
    assert a[-1] == pytest.approx(sum(x.size for x in joined(parts)), rel=1e-6)
    if one.min_val == one.max_val:
        assert same(one.state_dict(), other.state_dict())
        return
    moves, slack = min(may_move(parts, one), bins), 1e-5 * a[-1]
    shifted = np.concatenate([np.zeros(moves), b, np.full(moves, b[-1])])  # b a number of bins to the right, and to the left
    assert (a <= shifted[2 * moves :] + slack).all()
    assert (a >= shifted[:bins] - slack).all()


def test_histograms_over_one_range_merge_exactly() -> None:
    ends = np.array([-1, 1], F32)
    whole = [np.concatenate([ends, np.clip(stream(seed)[0].reshape(-1), -1, 1)]) for seed in (0, 1, 2)]
    assert same(merged(HistogramObserver, [[a] for a in whole]).state_dict(), watch(HistogramObserver, whole).state_dict())


@given(parts=shards(arrays()))
@settings(max_examples=20, deadline=None)
def test_recordings_follow_each_other(parts: list[Stream]) -> None:
    whole = RecordingObserver()
    for part in parts:
        whole.merge(watch(RecordingObserver, part))
    for ours, array in zip(whole.get_tensor_value(), joined(parts), strict=True):
        np.testing.assert_array_equal(ours, array)


@pytest.mark.parametrize("make", LEARNING)
def test_merging_with_what_saw_nothing(make: Callable[..., Any]) -> None:
    seen = watch(make, stream(30))
    before = seen.state_dict(mergeable=True)
    seen.merge(make())
    assert same(seen.state_dict(mergeable=True), before)
    empty = make()
    empty.merge(seen)
    assert same(empty.state_dict(mergeable=True), before)
    empty(np.full((3, 1), 1e6, F32))
    assert same(seen.state_dict(mergeable=True), before), "the source changed with its copy"


def test_merging_what_does_not_fit() -> None:
    with pytest.raises(QuantizationError, match="cannot merge a PerChannelMinMaxObserver"):
        MinMaxObserver().merge(PerChannelMinMaxObserver())  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="conv1: cannot merge an observer that differs in dtype"):
        MinMaxObserver(site="conv1").merge(MinMaxObserver(qint8))
    with pytest.raises(QuantizationError, match="2 channels into 3"):
        watch(PerChannelMinMaxObserver, [np.ones((3, 2), F32)]).merge(watch(PerChannelMinMaxObserver, [np.ones((2, 2), F32)]))
    plain = MovingAverageMinMaxObserver()
    plain.load_state_dict(watch(MovingAverageMinMaxObserver, stream(0)).state_dict())
    with pytest.raises(QuantizationError, match="mergeable=True"):
        watch(MovingAverageMinMaxObserver, stream(1)).merge(plain)
