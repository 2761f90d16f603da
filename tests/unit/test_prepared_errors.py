"""Qconfigs, data and states that a prepared model refuses: each its own message, which names the site and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cnn
import numpy as np
import pytest
from annotated import ACTIVATION, Annotated
from cnn import BATCHES, X
from graphs import F32, images, make
from safetensors.numpy import load_file, save_file

import qrt
from qrt.loaders import load
from qrt.observers import FakeQuantizeBase, get_observer_state_dict, load_observer_state_dict
from qrt.quantization import (
    MinMaxObserver,
    NoopObserver,
    QConfig,
    QConfigMapping,
    annotate_output_qspec,
    convert_fx,
    convert_pt2e,
    default_debug_qconfig,
    default_per_channel_qconfig,
    default_qconfig,
    default_qrt_qconfig,
    float16_dynamic_qconfig,
    float16_static_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    get_default_qat_qconfig_mapping,
    per_channel_weight_observer,
    prepare_fx,
    prepare_pt2e,
    prepare_qat_fx,
)


# -- qconfigs -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (QConfigMapping().set_module_name("stem.conv2", default_qconfig), "speaks of module name 'stem.conv2', and test has no such node"),
        (
            QConfigMapping().set_module_name_regex("tail.*", default_qconfig),
            r"speaks of module name regex 'tail\.\*', and test has no such",
        ),
        (QConfigMapping().set_object_type("LSTM", default_qconfig), "speaks of object type 'LSTM', and test has no such node"),
        (
            QConfigMapping().set_module_name_object_type_order("head", "Conv", 1, default_qconfig),
            "speaks of number 1 of type 'Conv' below 'head', and test has no such node, or none once the graph is cleaned: `qrt inspect`",
        ),
    ],
    ids=["name", "regex", "type", "order"],
)
def test_qconfigs_of_nothing(mapping: QConfigMapping, message: str) -> None:
    with pytest.raises(qrt.QuantizationError, match=message):
        prepare_fx(cnn.cnn(), mapping.set_global(default_qconfig), None)


@pytest.mark.parametrize(
    ("qconfig", "message"),
    [
        (float16_static_qconfig, r"'w' .* would become dtype\('float16'\), which its operator's rule does not support: the weight of Conv"),
        (float16_dynamic_qconfig, r"would become dtype\('float16'\), which its operator's rule does not support"),
        (
            float_qparams_weight_only_qconfig_4bit,
            "would become qrt.quint4x2, which its operator's rule does not support",
        ),
        (QConfig(MinMaxObserver.with_args(dtype=qrt.qint16), per_channel_weight_observer), "would become qrt.qint16, which its"),
        (QConfig(dict, per_channel_weight_observer), "the QConfig of 'stem.conv': <class 'dict'> makes a dict, which is neither"),
        (QConfig(lambda size: size, per_channel_weight_observer), "the QConfig of 'stem.conv': .* makes no observer: .*size"),
        (QConfig(NoopObserver, NoopObserver), "test: nothing to quantize"),
    ],
    ids=["float16", "float16 dynamic", "4 bits", "int16", "no observer", "arguments missing", "nothing"],
)
def test_qconfigs_that_are_refused(qconfig: QConfig, message: str) -> None:
    with pytest.raises(qrt.QuantizationError, match=message):
        prepare_fx(cnn.cnn(), QConfigMapping().set_global(qconfig), None)


def test_a_recorder_has_no_qparams() -> None:
    observed = prepare_fx(cnn.cnn(), QConfigMapping().set_global(default_debug_qconfig), None)
    observed(X)
    np.testing.assert_array_equal(observed.observers["x"].get_tensor_value()[0], X)  # type: ignore[union-attr]
    assert observed.observers["r"].get_tensor_value()[0].shape == (4, 8, 8, 8)  # type: ignore[union-attr]
    with pytest.raises(qrt.QuantizationError, match="x: a RecordingObserver has no qparams: it records arrays"):
        convert_fx(observed)


# -- data -----------------------------------------------------------------------------------------------------------------------
def test_an_observer_that_saw_nothing() -> None:
    observed = prepare_fx(cnn.cnn(), QConfigMapping().set_global(default_qconfig), None)
    with pytest.raises(qrt.CalibrationError, match="x: saw no data; give calibration data that reaches it"):
        convert_fx(observed)
    with pytest.raises(qrt.CalibrationError, match="no calibration data: give at least one batch"):
        observed.calibrate([])
    fake = prepare_qat_fx(cnn.cnn(), get_default_qat_qconfig_mapping(), None)
    with pytest.raises(qrt.CalibrationError, match="x: saw no data"):
        convert_fx(fake)


@pytest.mark.parametrize("fake", [False, True], ids=["observers", "fake-quantizes"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value: float, fake: bool) -> None:
    bad = X.copy()
    bad[0, 0, 0, 0] = value
    mapping = get_default_qat_qconfig_mapping() if fake else QConfigMapping().set_global(default_qconfig)
    observed = (prepare_qat_fx if fake else prepare_fx)(cnn.cnn(), mapping, None)
    with pytest.raises(qrt.CalibrationError, match="the call, input 'x' holds NaN or infinity; remove the sample"):
        observed(bad)


def test_a_weight_that_is_not_finite() -> None:
    weight = images(8, 5)
    weight[3, 2] = np.nan
    model = load(make("(float[N,8] x) => (float[N,5] y) { [one] y = MatMul(x, w) }", w=weight))
    with pytest.raises(qrt.CalibrationError, match=r"w: saw NaN; remove the sample or mend the model before this site"):
        prepare_fx(model, QConfigMapping().set_global(default_qconfig), None)


@pytest.mark.parametrize("fake", [False, True], ids=["observers", "fake-quantizes"])
def test_values_that_become_infinite_inside(fake: bool) -> None:
    model = make("(float[N,8] x) => (float[N,5] y) { [one] a = MatMul(x, w) [two] y = MatMul(a, v) }", w=images(8, 8), v=images(8, 5))
    mapping = get_default_qat_qconfig_mapping() if fake else QConfigMapping().set_global(default_qconfig)
    observed = (prepare_qat_fx if fake else prepare_fx)(load(model), mapping, None)
    with pytest.raises(qrt.CalibrationError, match=r"a: saw (infinity|NaN); remove the sample or mend the model before this site"):
        observed(np.full((1, 8), 3e38, F32))


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, X), {}, r"test takes 1 inputs \(x\); 2 were given"),
        ((), {"image": X}, r"the call lacks \['x'\]"),
        ((), {}, r"the call lacks \['x'\]; the inputs of test are x"),
        ((X[0],), {}, r"the call, input 'x' has shape \(3, 8, 8\), which does not fit"),
        ((X,), {"x": X}, "input 'x' of test was given twice, in order and by name"),
    ],
    ids=["too many", "other name", "none", "shape", "twice"],
)
def test_calls_that_do_not_fit(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    observed = prepare_fx(cnn.cnn(), QConfigMapping().set_global(default_qconfig), None)
    with pytest.raises(qrt.QrtError, match=message):
        observed(*args, **kwargs)


# -- states -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("qconfig", [default_qrt_qconfig, default_per_channel_qconfig], ids=["histogram", "min and max"])
def test_a_state_goes_through_safetensors(qconfig: QConfig, tmp_path: Path) -> None:
    mapping = QConfigMapping().set_global(qconfig)
    observed = prepare_fx(cnn.cnn(), mapping, None)
    for batch in BATCHES:
        observed(batch)
    save_file(get_observer_state_dict(observed), tmp_path / "state.safetensors")
    again = prepare_fx(cnn.cnn(), mapping, None)
    load_observer_state_dict(again, load_file(tmp_path / "state.safetensors"))
    assert _file(convert_fx(again)) == _file(convert_fx(observed))


def test_a_state_of_fake_quantizes() -> None:
    mapping = get_default_qat_qconfig_mapping("onednn", 0)
    observed = prepare_qat_fx(cnn.cnn(), mapping, None)
    for batch in BATCHES:
        observed(batch)
    observed.apply(qrt.quantization.disable_observer)
    again = prepare_qat_fx(cnn.cnn(), mapping, None)
    load_observer_state_dict(again, get_observer_state_dict(observed))
    assert _file(convert_fx(again)) == _file(convert_fx(observed))
    np.testing.assert_array_equal(again(X), observed(X))


def _file(model: qrt.Model) -> bytes:
    return model.to_proto().SerializeToString(deterministic=True)


def test_states_of_other_observers() -> None:
    observed = prepare_fx(cnn.cnn(), QConfigMapping().set_global(default_qrt_qconfig), None)
    observed(X)
    state = get_observer_state_dict(observed)
    other = prepare_fx(cnn.cnn(), QConfigMapping().set_global(default_per_channel_qconfig), None)
    with pytest.raises(qrt.QuantizationError, match=r"x: the state is not that of a MinMaxObserver: it holds .*histogram"):
        load_observer_state_dict(other, state)
    less = {key: array for key, array in state.items() if not key.startswith("h.")}
    with pytest.raises(qrt.QuantizationError, match="h: the state is not that of a HistogramObserver: it lacks"):
        load_observer_state_dict(observed, less)
    more = state | {"tail.activation_post_process.min_val": np.zeros(1, F32)}
    with pytest.raises(qrt.QuantizationError, match=r"holds 'tail.activation_post_process.min_val', and there is no such observer"):
        load_observer_state_dict(observed, more)


def test_a_model_is_not_prepared() -> None:
    for convert in (convert_fx, convert_pt2e):
        with pytest.raises(qrt.InvalidInput, match="gives, not a Model"):
            convert(cnn.cnn())  # type: ignore[arg-type]
    by_quantizer = prepare_pt2e(cnn.cnn(), Annotated(lambda nodes: annotate_output_qspec(nodes["stem.relu"], ACTIVATION)))
    with pytest.raises(qrt.InvalidInput, match="convert_fx takes what prepare_fx gives, not a PreparedModel"):
        convert_fx(by_quantizer)


# -- fake-quantizes of one's own ----------------------------------------------------------------------------------------------------
class Steps(FakeQuantizeBase):
    """A fixed grid of 1/16, without an observer inside."""

    def __init__(self, dtype: qrt.QDType = qrt.quint8) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.rint(x * F32(16)) / F32(16) if self.fake_quant_enabled[0] else x

    def calculate_qparams(self) -> qrt.QParams:
        return qrt.QParams(np.asarray(1 / 16, F32), np.asarray(128 if self.dtype == qrt.quint8 else 0), self.dtype)

    def state_dict(self, *, mergeable: bool = False) -> dict[str, np.ndarray]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        return None


def test_a_fake_quantize_of_ones_own() -> None:
    mapping = QConfigMapping().set_global(None).set_module_name("fc", QConfig(Steps, Steps.with_args(dtype=qrt.qint8)))
    observed = prepare_qat_fx(cnn.cnn(), mapping, None)
    # The bias is rounded to units of 1/256.
    np.testing.assert_allclose(observed(X), cnn.in_ort(convert_fx(observed)), atol=1 / 512 + 1e-5)
