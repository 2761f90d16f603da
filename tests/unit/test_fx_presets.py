"""prepare_fx and prepare_qat_fx on a CNN: torch's presets, a setting for one layer, fake quantization."""

from __future__ import annotations

from typing import Any

import cnn
import numpy as np
import onnx
import pytest
from cnn import BATCHES, FUSED, X, everywhere, float_products, fused_ops, in_ort, in_qrt, scales, taught
from graphs import F32, images, make, ops

import qrt
from qrt.core.accuracy import compute_sqnr
from qrt.graph import constant, is_op
from qrt.loaders import load
from qrt.quantization import (
    FakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PreparedModel,
    QConfig,
    QConfigMapping,
    convert_fx,
    default_activation_only_qconfig,
    default_dynamic_qat_qconfig,
    default_per_channel_symmetric_qnnpack_qconfig,
    default_qconfig,
    default_qrt_qconfig,
    default_symmetric_qnnpack_qconfig,
    default_weight_only_qconfig,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    per_channel_dynamic_qconfig,
    prepare_fx,
    prepare_qat_fx,
    weight_observer_range_neg_127_to_127,
)

BACKENDS = ("x86", "fbgemm", "qnnpack", "onednn")


def codes_of(model: qrt.Model, weight: str) -> np.ndarray:
    """The codes that a weight became."""
    held = constant(model.graph.initializers[f"{weight}_quantized"])
    assert held is not None
    return held


# -- presets ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", BACKENDS)
def test_torchs_default_mappings(backend: str) -> None:
    int8 = convert_fx(taught(get_default_qconfig_mapping(backend)))
    assert fused_ops(int8) == FUSED
    real, theirs = in_ort(cnn.proto()), in_ort(int8)
    assert compute_sqnr(real, theirs) > 38
    assert compute_sqnr(theirs, in_qrt(int8)) > 100
    assert (codes_of(int8, "w").ndim, scales(int8)["q"]) == (4, (F32(1 / 256), np.uint8(0)))
    per_channel = constant(int8.graph.initializers["w_scale"])
    assert per_channel is not None
    assert per_channel.shape == (() if backend == "qnnpack" else (8,))


def test_x86_activations_use_seven_bits() -> None:
    prepared_ = taught(get_default_qconfig_mapping("x86"))
    assert {made.code_range for made in prepared_.observers.values()} == {(0, 127)}
    eight = taught(get_default_qconfig_mapping("onednn")).qparams()
    assert all(prepared_.qparams()[name].scale > 1.9 * eight[name].scale for name in prepared_.observers)


@pytest.mark.parametrize("qconfig", [default_symmetric_qnnpack_qconfig, default_per_channel_symmetric_qnnpack_qconfig])
def test_signed_activations(qconfig: QConfig) -> None:
    int8 = convert_fx(taught(everywhere(qconfig)))
    assert all(zero_point.dtype == np.int8 for _, zero_point in scales(int8).values())
    assert scales(int8)["q"] == (F32(1 / 256), np.int8(-128))
    assert fused_ops(int8)["QMatMulFloat"] == 1
    theirs = in_ort(int8)
    assert compute_sqnr(in_ort(cnn.proto()), theirs) > 38
    assert compute_sqnr(theirs, in_qrt(int8)) > 100


def test_dynamic_preset_needs_no_data() -> None:
    int8 = convert_fx(prepare_fx(cnn.cnn(), everywhere(per_channel_dynamic_qconfig), None))
    assert {op: n for op, n in fused_ops(int8).items() if op.startswith("Q")} == {"QConvFloat": 3, "QMatMulFloat": 1}
    theirs = in_ort(int8)
    assert compute_sqnr(in_ort(cnn.proto()), theirs) > 38
    assert compute_sqnr(theirs, in_qrt(int8)) > 100


def test_weights_alone() -> None:
    int8 = convert_fx(prepare_fx(cnn.cnn(), everywhere(default_weight_only_qconfig), None))
    assert not scales(int8)
    assert codes_of(int8, "w").dtype == np.int8
    # ONNX Runtime quantizes the input of such a Gemm by itself.
    reference = onnx.reference.ReferenceEvaluator(int8.to_proto()).run(None, {"x": X})[0]
    assert compute_sqnr(reference, in_qrt(int8)) > 100
    assert 30 < compute_sqnr(in_ort(cnn.proto()), reference) < 60


def test_activations_alone() -> None:
    int8 = convert_fx(taught(everywhere(default_activation_only_qconfig._replace(activation=MinMaxObserver))))
    assert float_products(int8) == ["stem.conv", "block.conv", "head.conv", "fc"]
    # ONNX Runtime quantizes the weights between codes by itself.
    reference = onnx.reference.ReferenceEvaluator(int8.to_proto()).run(None, {"x": X})[0]
    assert compute_sqnr(reference, in_qrt(int8)) > 100
    assert 30 < compute_sqnr(in_ort(cnn.proto()), reference) < 60


# -- one layer at a time --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mapping", "left"),
    [
        (lambda m: m.set_module_name("stem.conv", None), ["stem.conv"]),
        (lambda m: m.set_module_name("head", None), ["head.conv"]),
        (lambda m: m.set_module_name_regex(r"(stem|head)\.", None), ["stem.conv", "head.conv"]),
        (lambda m: m.set_object_type("Conv", None), ["stem.conv", "block.conv", "head.conv"]),
        (lambda m: m.set_object_type("linear", None), ["fc"]),
        (lambda m: m.set_module_name_object_type_order("", "Conv", 1, None), ["block.conv"]),
        (lambda m: m.set_module_name_object_type_order("head", "Conv", 0, None), ["head.conv"]),
    ],
    ids=["name", "module", "regex", "type", "torch's type", "order", "order below a module"],
)
def test_a_layer_left_float(mapping: Any, left: list[str]) -> None:
    int8 = convert_fx(taught(mapping(everywhere(default_qrt_qconfig))))
    assert float_products(int8) == left
    theirs = in_ort(int8)
    assert compute_sqnr(in_ort(cnn.proto()), theirs) > 38
    assert compute_sqnr(theirs, in_qrt(int8)) > 100


def test_a_layer_with_a_qconfig_of_its_own() -> None:
    signed = QConfig(MinMaxObserver.with_args(dtype=qrt.qint8), weight_observer_range_neg_127_to_127)
    mapping = everywhere(default_qrt_qconfig).set_module_name("block.conv", signed)
    observed = taught(mapping)
    int8 = convert_fx(observed)
    # A value is quantized once, as the one that makes it says: block.conv reads what stem.conv gives.
    assert {name: zero_point.dtype for name, (_, zero_point) in scales(int8).items() if name in "rs"} == {"r": np.uint8, "s": np.int8}
    assert isinstance(observed.observers["s"], MinMaxObserver)
    scale = constant(int8.graph.initializers["v_scale"])
    assert scale is not None
    assert scale.shape == ()
    assert compute_sqnr(in_ort(int8), in_qrt(int8)) > 40  # sums of int8 and uint8 codes become tables of their own


def test_a_dynamic_layer_in_a_static_model() -> None:
    int8 = convert_fx(taught(everywhere(default_qrt_qconfig).set_module_name("fc", per_channel_dynamic_qconfig)))
    assert ops(int8)["DynamicQuantizeLinear"] == ops(int8)["MatMulInteger"] == 1
    assert compute_sqnr(in_ort(int8), in_qrt(int8)) > 100


def test_a_mapping_may_be_a_dict() -> None:
    by_dict = convert_fx(taught({"": default_qconfig, "module_name": [("fc", None)]}))
    by_object = convert_fx(taught(everywhere(default_qconfig).set_module_name("fc", None)))
    assert by_dict.to_proto().SerializeToString() == by_object.to_proto().SerializeToString()
    assert float_products(by_dict) == ["fc"]


def test_one_weight_of_two_layers_with_different_qconfigs() -> None:
    model = make("(float[N,8] x) => (float[N,8] y) { [one] a = MatMul(x, w) [two] y = MatMul(a, w) }", w=images(8, 8))
    mapping = everywhere(default_qconfig).set_module_name("one", default_qrt_qconfig)
    observed = prepare_fx(load(model), mapping, None)
    assert sorted(observed.weight_observers) == ["w.one", "w.two"]
    observed(images(4, 8, seed=1))
    int8 = convert_fx(observed)
    weights = {node.name: node.inputs[1] for node in int8.graph if is_op(node, "MatMul")}
    makers = {name: value.producer() for name, value in weights.items() if value is not None}
    shapes = {name: constant(maker.inputs[1]).shape for name, maker in makers.items()}  # type: ignore[union-attr]
    assert shapes == {"one": (8,), "two": ()}
    assert compute_sqnr(in_ort(int8, images(4, 8, seed=1)), in_qrt(int8, images(4, 8, seed=1))) > 40


# -- fake quantization ----------------------------------------------------------------------------------------------------------
def trained(mapping: QConfigMapping) -> PreparedModel:
    """The CNN, fake-quantized, after all batches, its observers off."""
    observed = prepare_qat_fx(cnn.cnn(), mapping, (X,))
    for batch in BATCHES:
        observed(batch)
    return observed.apply(disable_observer)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_torchs_fake_quantizes_give_is_what_the_model_will(backend: str, version: int) -> None:
    observed = trained(get_default_qat_qconfig_mapping(backend, version))
    fake, int8 = observed(X), convert_fx(observed)
    assert fused_ops(int8) == FUSED
    theirs = in_ort(int8)
    # torch's symmetric scale, range / 127.5, puts the largest weight of each channel on a tie, which falls by either rounding to
    # another side; and (version 1) its fused operator has other scales than its observer.
    assert compute_sqnr(theirs, fake) > 35
    assert compute_sqnr(theirs, in_qrt(int8)) > 100


FAKE = QConfig(
    FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255),
    FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-127,
        quant_max=127,
        dtype=qrt.qint8,
        qscheme=qrt.per_channel_symmetric,
        ch_axis=0,
    ),
)


def test_without_ties_the_fake_quantized_model_is_the_quantized_one() -> None:
    observed = trained(everywhere(FAKE))
    int8 = convert_fx(observed)
    # The first batch taught the averages most, so that its extremes lie on ties.
    errors = np.concatenate([np.abs(observed(batch) - in_ort(int8, batch)).max(axis=1) for batch in BATCHES[1:]])
    # What is left is the bias, which only the quantized model rounds, to units of 1e-4 and less; now and then it tips a code over.
    assert np.mean(errors < 1e-4) >= 0.9
    assert errors.max() < 0.02


def test_switches() -> None:
    observed = prepare_qat_fx(cnn.cnn(), everywhere(FAKE), (X,))
    real = in_ort(cnn.proto())
    observed(X)
    observed.apply(disable_observer)
    fake = observed(X)
    assert 20 < compute_sqnr(real, fake) < 60
    np.testing.assert_allclose(observed.apply(disable_fake_quant)(X), real, atol=1e-5)
    np.testing.assert_array_equal(observed.apply(enable_fake_quant)(X), fake)
    before = observed.qparams()
    observed(100 * X)
    assert {name: p.scale.tobytes() for name, p in observed.qparams().items()} == {name: p.scale.tobytes() for name, p in before.items()}


def test_weights_are_fake_quantized() -> None:
    mapping = everywhere(None).set_module_name("fc", QConfig(FAKE.activation, FAKE.weight))
    observed = prepare_qat_fx(cnn.cnn(), mapping, (X,))
    observed(X)
    fake = observed.weight_observers["m"]
    steps = fake(cnn.WEIGHTS["m"]) / fake.scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert np.abs(np.rint(steps)).max() == 127
    before = observed(X)
    fake.disable_fake_quant()
    assert (observed(X) != before).any()


def test_dynamic_fake_quantize() -> None:
    observed = prepare_qat_fx(cnn.cnn(), everywhere(default_dynamic_qat_qconfig), (X,))
    int8 = convert_fx(observed)
    assert fused_ops(int8)["DynamicQuantizeLinear"] == 4
    fake = observed(X)
    assert compute_sqnr(in_ort(int8), fake) > 45
    observed.apply(disable_fake_quant)
    np.testing.assert_allclose(observed(X), in_ort(cnn.proto()), atol=1e-5)
    assert compute_sqnr(observed(X), fake) < 45


def test_nothing_to_fake_quantize() -> None:
    with pytest.raises(qrt.QuantizationError, match=r"nothing in test would be fake-quantized: use get_default_qat_qconfig_mapping"):
        prepare_qat_fx(cnn.cnn(), everywhere(default_qconfig), None)
