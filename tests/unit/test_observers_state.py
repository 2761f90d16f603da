"""States of observers: torch's, those of many as one, and those of something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from observer_streams import stream
from observing import AVERAGES, LEARNING, same, watch
from safetensors.numpy import load, save

from qrt import quantization
from qrt.core.dtypes import per_channel_affine_float_qparams, per_channel_symmetric, qint8, qint32, quint8
from qrt.core.errors import CalibrationError, QuantizationError
from qrt.core.qparams import QParams
from qrt.observers import (
    FakeQuantize,
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    NoopObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    RecordingObserver,
    ReuseInputObserver,
    _DerivedObserverOrFakeQuantize,
    get_observer_state_dict,
    load_observer_state_dict,
)

F32 = np.float32
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "fake_quantize.npz")
TORCH = [
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "HistogramObserver",
    "default_fixed_qparams_range_0to1_observer",
    "PlaceholderObserver",
    "RecordingObserver",
]


@pytest.mark.parametrize("name", TORCH)
def test_states_are_torch_states(name: str) -> None:
    prefix = f"state/{name}/"
    saved = {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}
    make = getattr(quantization, name)
    seen = watch(make, stream(30))
    state = seen.state_dict()
    assert same(state, saved)
    assert [a.dtype for a in state.values()] == [a.dtype for a in saved.values()]
    loaded = make()
    loaded.load_state_dict(saved)
    assert same(loaded.state_dict(), saved)
    if saved:
        assert loaded.calculate_qparams().scale.tobytes() == seen.calculate_qparams().scale.tobytes()


@pytest.mark.parametrize("make", LEARNING)
def test_learning_goes_on_where_a_state_left_off(make: Callable[..., Any]) -> None:
    arrays = stream(80)
    halfway = make()
    halfway.load_state_dict(watch(make, arrays[:3]).state_dict())
    for array in arrays[3:]:
        halfway(array)
    assert same(halfway.state_dict(), watch(make, arrays).state_dict())
    fresh = make()
    fresh.load_state_dict(make().state_dict())
    with pytest.raises(CalibrationError):
        fresh.calculate_qparams()


@pytest.mark.parametrize("make", LEARNING)
def test_states_of_something_else_are_refused(make: Callable[..., Any]) -> None:
    state = watch(make, stream(30)).state_dict()
    observer = make(site="conv1")
    before = observer.state_dict()
    no_max = {key: array for key, array in state.items() if key != "max_val"}
    crossed = {**state, "min_val": state["max_val"] + 1}
    wrong_shape = {**state, "min_val": np.ones((2, 2), F32)}
    nan = {**state, "max_val": np.full_like(state["max_val"], np.nan)}
    broken_states = [no_max, {**state, "more": np.ones(1)}, wrong_shape, nan, FixedQParamsObserver(1.0, 0).state_dict()]
    if make not in AVERAGES:  # which rounding may bring so far
        broken_states.append(crossed)
    for broken in broken_states:
        with pytest.raises(QuantizationError, match="conv1"):
            observer.load_state_dict(broken)
    assert same(observer.state_dict(), before)
    for counts in {"histogram", "counts"} & state.keys():
        with pytest.raises(QuantizationError, match="bins"):
            observer.load_state_dict({**state, counts: np.ones(7)})


@pytest.mark.parametrize("make", AVERAGES)
def test_averages_that_rounding_has_crossed(make: Callable[..., Any]) -> None:
    """A narrow range after a wide one: the smallest ends above the largest, which is no reason to refuse the state."""
    seen = watch(lambda: make(averaging_constant=1.0), [np.array([[0, 1000]], F32), np.full((1, 2), 0.0011, F32)])
    assert (seen.min_val > seen.max_val).all()
    loaded = make(averaging_constant=1.0)
    loaded.load_state_dict(seen.state_dict())
    assert loaded.calculate_qparams().scale.tobytes() == seen.calculate_qparams().scale.tobytes()


def test_many_observers_as_one_dict() -> None:
    def site_observers() -> dict[str, Any]:
        return {"conv1": HistogramObserver(), "conv1.weight": PerChannelMinMaxObserver(), "add": FakeQuantize()}

    seen, fresh = site_observers(), site_observers()
    for observer in seen.values():
        observer(stream(3)[0])
    state = get_observer_state_dict(seen)
    assert "conv1.activation_post_process.min_val" in state
    assert "add.activation_post_process.activation_post_process.max_val" in state
    load_observer_state_dict(fresh, load(save(state)))
    assert same(get_observer_state_dict(fresh), state)
    with pytest.raises(QuantizationError, match="no such observer"):
        load_observer_state_dict(fresh, {**state, "conv2.activation_post_process.eps": np.ones(1, F32)})
    with pytest.raises(QuantizationError, match="lacks"):
        load_observer_state_dict(fresh, {key: array for key, array in state.items() if "histogram" not in key})


def test_modules_keep_their_observers_where_torch_does() -> None:
    fake, post = "weight_fake_quant", "activation_post_process"

    def module() -> tuple[Any, FakeQuantize]:
        weight, after = FakeQuantize(), MinMaxObserver()
        inner = (f"conv1.{fake}.{post}", weight.activation_post_process)
        parts: list[tuple[str, Any]] = [("", None), (f"conv1.{fake}", weight), inner, (f"conv1.{post}", after)]
        return SimpleNamespace(named_modules=lambda: parts), weight

    (mod, weight), (other, loaded) = module(), module()
    weight(stream(0)[0])
    state = get_observer_state_dict(mod)
    assert {key.rpartition(".")[0] for key in state} == {
        "conv1.weight_fake_quant.activation_post_process",
        "conv1.activation_post_process",
    }
    load_observer_state_dict(other, state)
    assert loaded.activation_post_process.state_dict()["max_val"] == stream(0)[0].max()
    own = get_observer_state_dict(weight)
    load_observer_state_dict(loaded, own)
    assert list(own) == [f"activation_post_process.{key}" for key in ("eps", "min_val", "max_val")]


def test_constructors_with_arguments() -> None:
    made = MinMaxObserver.with_args(dtype=qint8).with_args(eps=0.5).with_callable_args(site=lambda: "late")
    assert (made().dtype, made().eps, made().site) == (qint8, 0.5, "late")
    assert made(site="now", eps=0.25).site == "now"
    assert made.with_args(dtype=quint8)().dtype is quint8
    assert made() is not made()
    late = RecordingObserver.with_callable_args(dtype=lambda: qint8)
    assert late().dtype is qint8
    assert "MinMaxObserver" in repr(made)


def test_observers_that_only_mark() -> None:
    x = np.ones(3, F32)
    with pytest.warns(DeprecationWarning, match="is_dynamic"):
        old = PlaceholderObserver(compute_dtype=quint8)
    assert old.is_dynamic
    recording = RecordingObserver()
    for observer in (old, PlaceholderObserver(), NoopObserver(), ReuseInputObserver(), recording):
        assert observer(x) is x
        assert observer.state_dict() == {}
        with pytest.raises(QuantizationError, match="has no qparams"):
            observer.calculate_qparams()
        with pytest.raises(QuantizationError, match="does not know"):
            observer.load_state_dict({"eps": x})
    other = RecordingObserver()
    other(2 * x)
    recording.merge(other)
    x[:] = 7
    assert [array.tolist() for array in recording.get_tensor_value()] == [[1.0] * 3, [2.0] * 3]


def test_fixed_qparams() -> None:
    observer = FixedQParamsObserver(0.5, 10, qint8)
    scale, zero_point = observer.calculate_qparams()
    assert (float(scale), int(zero_point)) == (0.5, 10)
    other = FixedQParamsObserver(1.0, 0, qint8)
    with pytest.raises(QuantizationError, match="scale, zero_point"):
        other.merge(observer)
    other.load_state_dict(observer.state_dict())
    other.merge(observer)
    with pytest.raises(QuantizationError, match="one of each"):
        other.load_state_dict({"scale": np.ones(2, F32), "zero_point": np.zeros(2, np.int32)})
    with pytest.raises(QuantizationError, match="dynamic"):
        FixedQParamsObserver(1.0, 0, is_dynamic=True)
    with pytest.raises(QuantizationError, match="per_channel"):
        FixedQParamsObserver(1.0, 0, qscheme=per_channel_symmetric)


def test_derived_qparams() -> None:
    def bias(observers: Any) -> tuple[np.ndarray, np.ndarray]:
        scales = [observer.calculate_qparams().scale for observer in observers]
        scale = np.asarray(scales[0] * scales[1])
        return scale, np.zeros(scale.shape, np.int32)

    x, w = MinMaxObserver(), PerChannelMinMaxObserver(qscheme=per_channel_symmetric, dtype=qint8)
    x(np.array([0, 25.5], F32))
    w(np.array([[127.5], [255]], F32))
    derived = _DerivedObserverOrFakeQuantize(qint32, [x, w], bias, qscheme=per_channel_symmetric, ch_axis=0)
    np.testing.assert_allclose(derived.calculate_qparams().scale, [0.1, 0.2], rtol=1e-6)
    with pytest.raises(QuantizationError, match="do not fit axis None"):
        _DerivedObserverOrFakeQuantize(qint32, [x, w], bias).calculate_qparams()
    with pytest.raises(QuantizationError, match="needs a ch_axis"):
        _DerivedObserverOrFakeQuantize(qint32, [x, w], bias, qscheme=per_channel_symmetric)


def test_float_zero_points() -> None:
    observer = PerChannelMinMaxObserver(0, quint8, per_channel_affine_float_qparams)
    x = np.array([[1.0, 2.0], [3.0, 3.0]], F32)
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    np.testing.assert_allclose(scale, [1 / 255, 1], rtol=1e-6)
    np.testing.assert_allclose(zero_point, [-255, -3], rtol=1e-6)


def test_options_that_no_observer_takes() -> None:
    for make in (HistogramObserver, PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver, MovingAverageMinMaxObserver):
        with pytest.raises(QuantizationError, match="dynamic"):
            make(is_dynamic=True)
    assert MovingAverageMinMaxObserver(1.0, is_dynamic=True).is_dynamic
    with pytest.raises(QuantizationError, match="factory_kwargs"):
        MinMaxObserver(factory_kwargs={"device": "cpu"})  # type: ignore[arg-type]


def test_an_observer_of_ones_own() -> None:
    class LastValue(ObserverBase):
        """The last value seen is the scale."""

        def forward(self, array: np.ndarray) -> np.ndarray:
            self.scale = np.asarray(array[-1], F32)
            return array

        def calculate_qparams(self) -> QParams:
            return QParams(self.scale, np.asarray(0), quint8)

    made = LastValue.with_args(dtype=quint8)()
    made(np.array([1, 2, 3], F32))
    assert made.calculate_qparams().scale == 3
