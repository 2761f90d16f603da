"""Fake quantization and presets against the recorded answers of torch 2.13.0 (tools/make_golden_fake_quantize.py)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from observer_streams import CHOOSERS, FAKE_CONFIGS, FAKE_QUANTS, PRESETS, chooser_ranges, comparable, stream
from qconfigs import fake_quantize

from qrt import quantization
from qrt.core.dtypes import per_channel_affine, qint8
from qrt.core.errors import QuantizationError
from qrt.core.qparams import QParams
from qrt.observers import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    RecordingObserver,
)
from qrt.observers._chooser import choose_qparams

F32 = np.float32
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "fake_quantize.npz")
X = np.array([-0.06, -0.04, 0.0, 0.3, 12.7, 25.4, 25.6], F32)


def fixed(**options: Any) -> FakeQuantize:
    """A fake-quantize with scale 0.1 and zero point 0."""
    made = FakeQuantize(**options)
    made.disable_observer()
    made.scale = np.array([0.1], F32)
    return made


@pytest.mark.filterwarnings("ignore:.*saw infinity")
@pytest.mark.parametrize("preset", [*FAKE_QUANTS, *FAKE_CONFIGS])
def test_fake_quantize_equals_torch(preset: str) -> None:
    scales, zero_points = GOLDEN[f"{preset}/scale"], GOLDEN[f"{preset}/zero_point"]
    outputs, masks = GOLDEN[f"{preset}/output_crc32"], GOLDEN[f"{preset}/mask_crc32"]
    wrong: list[object] = []
    for seed in comparable("histogram" in preset):
        made = fake_quantize(preset)
        output = mask = 0
        for array in stream(seed):
            output = zlib.crc32(made(array).tobytes(), output)
            mask = zlib.crc32(made.gradient_mask(array).tobytes(), mask)
        assert made.zero_point.dtype == zero_points.dtype
        if not (np.array_equal(made.scale, scales[seed]) and np.array_equal(made.zero_point, zero_points[seed])):
            wrong.append((seed, "qparams", made.scale, scales[seed], made.zero_point, zero_points[seed]))
        if output != outputs[seed] or mask != masks[seed]:
            wrong.append((seed, "output" if output != outputs[seed] else "mask"))
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*saw infinity")
@pytest.mark.parametrize("preset", PRESETS)
def test_observer_presets_equal_torch(preset: str) -> None:
    wrong = []
    for seed in comparable("histogram" in preset):
        observer = getattr(quantization, preset)()
        for array in stream(seed):
            observer(array)
        scale, zero_point = observer.calculate_qparams()
        same = np.array_equal(np.atleast_1d(scale), GOLDEN[f"{preset}/scale"][seed])
        if not (same and np.array_equal(np.atleast_1d(zero_point), GOLDEN[f"{preset}/zero_point"][seed])):
            wrong.append((seed, scale, zero_point))
    assert not wrong


@pytest.mark.parametrize("case", CHOOSERS)
def test_the_chooser_equals_torch(case: str) -> None:
    qmin, qmax, symmetric = CHOOSERS[case]
    low, high = chooser_ranges()
    scale, zero_point = choose_qparams(low, high, qmin, qmax, preserve_sparsity=symmetric, single=True)
    np.testing.assert_array_equal(scale.astype(F32), GOLDEN[f"chooser {case}/scale"])
    np.testing.assert_array_equal(zero_point, GOLDEN[f"chooser {case}/zero_point"])


@pytest.mark.parametrize("reduce_range", [False, True])
def test_the_chooser_of_dynamic_quantization_equals_torch(reduce_range: bool) -> None:
    low, high = chooser_ranges()
    scale, zero_point = choose_qparams(low, high, 0, 255, reduce_range=reduce_range)
    np.testing.assert_array_equal(scale, GOLDEN[f"dynamic {reduce_range}/scale"])
    np.testing.assert_array_equal(zero_point, GOLDEN[f"dynamic {reduce_range}/zero_point"])


def test_the_chooser_reduces_its_range_towards_zero() -> None:
    low, high = np.array([-1.0], F32), np.array([1.0], F32)
    reduced, wanted = choose_qparams(low, high, -127, 127, reduce_range=True), choose_qparams(low, high, -63, 63)
    np.testing.assert_array_equal(reduced[0], wanted[0])


def test_switches() -> None:
    x = np.linspace(-1, 1, 11, dtype=F32)
    made = FakeQuantize()
    quantization.disable_fake_quant(made)
    assert made(x) is x
    assert made.gradient_mask(x * 1e6).all()
    scale = made.scale.copy()
    quantization.disable_observer(made)
    quantization.enable_fake_quant(made)
    assert not np.array_equal(made(x * 3), x * 3)
    np.testing.assert_array_equal(made.scale, scale)
    quantization.enable_observer(made)
    made(x * 3)
    assert made.scale > scale
    for function in (quantization.enable_observer, quantization.disable_fake_quant):
        function(object())  # made for module.apply, which meets everything


def test_straight_through_where_codes_are_not_clamped() -> None:
    made = fixed(observer=MinMaxObserver)
    assert made.gradient_mask(X).tolist() == [False, True, True, True, True, True, False]
    np.testing.assert_allclose(made(X), [0, 0, 0, 0.3, 12.7, 25.4, 25.5], rtol=1e-6)
    ends = np.array([np.inf, -np.inf, np.nan, 1e30], F32)
    np.testing.assert_allclose(made(ends), [25.5, 0, 0, 25.5], rtol=1e-6)
    assert not made.gradient_mask(ends).any()


def test_empty_arrays_teach_nothing() -> None:
    made = FakeQuantize()
    assert made(np.zeros((0, 3), F32)).shape == (0, 3)
    assert made.scale == 1


def test_each_observer_keeps_its_options() -> None:
    made = FakeQuantize(HistogramObserver, -100, 100, dtype=qint8, bins=64)
    assert (made.quant_min, made.quant_max, made.ch_axis, made.is_per_channel) == (-100, 100, -1, False)
    assert isinstance(made.activation_post_process, HistogramObserver)
    assert made.activation_post_process.bins == 64
    channels = FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, qscheme=per_channel_affine).with_args(ch_axis=1)()
    channels(np.arange(12, dtype=F32).reshape(3, 4))
    assert channels.scale.shape == channels.zero_point.shape == (4,)
    with pytest.raises(QuantizationError, match="4 scales along axis 1 do not fit"):
        channels.gradient_mask(np.zeros((3, 5), F32))


def test_what_cannot_fake_quantize() -> None:
    with pytest.raises(QuantizationError, match="not a RecordingObserver"):
        FakeQuantize(lambda is_dynamic: RecordingObserver())
    with pytest.raises(QuantizationError, match="FixedQParamsObserver"):
        FixedQParamsFakeQuantize(MinMaxObserver)
    with pytest.raises(QuantizationError, match="averages"):
        FusedMovingAvgObsFakeQuantize(MinMaxObserver)
    with pytest.raises(QuantizationError, match="not inside"):
        FakeQuantize(quant_min=0, quant_max=300)


@pytest.mark.parametrize("preset", FAKE_QUANTS)
def test_a_state_saved_by_torch_loads(preset: str) -> None:
    prefix = f"state/{preset}/"
    saved = {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}
    seen = getattr(quantization, preset)()
    for array in stream(30):
        seen(array)
    state = seen.state_dict()
    assert list(state) == list(saved)
    for key, array in saved.items():
        assert state[key].dtype == array.dtype, key
        np.testing.assert_array_equal(state[key], array)
    loaded = getattr(quantization, preset)()
    loaded.load_state_dict(saved)
    x = stream(31)[0]
    loaded.disable_observer(), seen.disable_observer()
    np.testing.assert_array_equal(loaded(x), seen(x))
    assert isinstance(loaded.calculate_qparams(), QParams)


def test_a_state_of_something_else() -> None:
    state = FakeQuantize().state_dict()
    for broken in (
        {},
        {**state, "more": np.ones(1)},
        {**state, "scale": np.ones(2)},
        {k: v for k, v in state.items() if "min_val" not in k},
    ):
        with pytest.raises(QuantizationError):
            FakeQuantize().load_state_dict(broken)
