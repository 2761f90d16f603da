"""JIT mode on a loaded Model: its nine functions, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cnn
import numpy as np
import pytest
from cnn import BATCHES, in_ort, in_qrt
from graphs import F32, images, make, ops

import qrt
from qrt.core.accuracy import compute_sqnr
from qrt.graph import constant, is_op
from qrt.loaders import load
from qrt.observers import HistogramObserver, ObserverBase, PerChannelMinMaxObserver
from qrt.quantization import (
    PreparedModel,
    QConfig,
    convert_dynamic_jit,
    convert_jit,
    default_dynamic_qconfig,
    default_per_channel_qconfig,
    default_qconfig,
    default_qrt_qconfig,
    fuse_conv_bn_jit,
    per_channel_dynamic_qconfig,
    prepare_dynamic_jit,
    prepare_jit,
    quantize_dynamic,
    quantize_dynamic_jit,
    quantize_jit,
    script_qconfig,
    script_qconfig_dict,
)


def calibrate(model: Callable[[np.ndarray], Any], batches: list[np.ndarray]) -> None:
    for batch in batches:
        model(batch)


def file(model: qrt.Model) -> bytes:
    return model.to_proto().SerializeToString(deterministic=True)


def test_prepare_and_convert() -> None:
    model = cnn.cnn()
    before = file(model)
    observed = prepare_jit(model, {"": default_qrt_qconfig})
    assert isinstance(observed, PreparedModel)
    calibrate(observed, BATCHES)
    int8 = convert_jit(observed)
    assert file(int8) == file(quantize_jit(model, {"": default_qrt_qconfig}, calibrate, [BATCHES]))
    assert file(int8) == file(qrt.quantize(model, BATCHES, progress=False))
    assert file(model) == before
    assert compute_sqnr(in_ort(int8), in_qrt(int8)) > 100


@pytest.mark.parametrize("inplace", [True, False])
def test_inplace_prepares_an_object_of_its_own_all_the_same(inplace: bool) -> None:
    model = cnn.cnn()
    before = file(model)
    calibrate(prepare_jit(model, {"": default_qconfig}, inplace), BATCHES)
    assert file(model) == before


def test_inplace_quantizes_the_model_itself() -> None:
    model = cnn.cnn()
    other = quantize_jit(model, {"": default_qconfig}, calibrate, [BATCHES])
    assert "QuantizeLinear" not in ops(model)
    assert quantize_jit(model, {"": default_qconfig}, calibrate, [BATCHES], inplace=True) is model
    assert file(model) == file(other)
    model = cnn.cnn()
    assert quantize_dynamic_jit(model, {"": default_dynamic_qconfig}, inplace=True) is model
    assert ops(model)["MatMulInteger"] == 1


def test_modules_and_what_stays_float() -> None:
    int8 = quantize_jit(cnn.cnn(), {"": default_per_channel_qconfig, "head": None, "block.conv": default_qconfig}, calibrate, [BATCHES])
    scales = {}
    for node in int8.graph:
        if is_op(node, "Conv"):
            maker = node.inputs[1].producer() if node.inputs[1] is not None else None
            scale = None if maker is None else constant(maker.inputs[1])
            scales[node.name] = None if scale is None else scale.shape
    assert scales == {"stem.conv": (8,), "block.conv": (), "head.conv": None}
    assert compute_sqnr(in_ort(int8), in_qrt(int8)) > 100


def test_without_an_entry_for_all_the_rest_stays_float() -> None:
    int8 = quantize_jit(cnn.cnn(), {"fc": default_qconfig}, calibrate, [BATCHES])
    assert ops(int8)["QuantizeLinear"] == 1
    assert sum(is_op(node, "Conv") and constant(node.inputs[1]) is not None for node in int8.graph) == 3


def test_dynamic() -> None:
    model = cnn.cnn()
    int8 = convert_dynamic_jit(prepare_dynamic_jit(model, {"": per_channel_dynamic_qconfig}))
    assert file(int8) == file(quantize_dynamic_jit(model, {"": per_channel_dynamic_qconfig}))
    mine = QConfig(default_dynamic_qconfig.activation, default_qrt_qconfig.weight)
    assert file(quantize_dynamic_jit(model, {"": mine})) == file(quantize_dynamic(model))
    assert compute_sqnr(in_ort(int8), in_qrt(int8)) > 100
    some = quantize_dynamic_jit(model, {"": per_channel_dynamic_qconfig, "fc": None})
    assert "MatMulInteger" not in ops(some)


def test_fuse_conv_bn() -> None:
    statistics = {"s": images(6, seed=1), "o": images(6, seed=2), "u": images(6, seed=3), "z": np.abs(images(6, seed=4)) + F32(0.5)}
    text = "(float[N,3,8,8] x) => (float[N,6,6,6] y) { a = Conv(x, w) y = BatchNormalization(a, s, o, u, z) }"
    proto = make(text, w=images(6, 3, 3, 3), **statistics)
    model, x = load(proto), images(2, 3, 8, 8)
    fused = fuse_conv_bn_jit(model)
    assert (ops(fused), ops(model)) == ({"Conv": 1}, {"Conv": 1, "BatchNormalization": 1})
    np.testing.assert_allclose(in_ort(fused, x), in_ort(proto, x), atol=1e-4)
    assert fuse_conv_bn_jit(model, inplace=True) is model
    assert ops(model) == {"Conv": 1}


def test_script_qconfig_makes_the_observers() -> None:
    made = script_qconfig(default_qrt_qconfig)
    assert isinstance(made, QConfig)
    assert isinstance(made.activation, HistogramObserver)
    assert isinstance(made.weight, PerChannelMinMaxObserver)
    several = script_qconfig_dict({"": default_qrt_qconfig, "fc": None})
    assert several["fc"] is None
    assert several[""] is not None
    assert isinstance(several[""].activation, ObserverBase)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: prepare_jit(m, default_qconfig), "qconfig_dict is a QConfig: give a dict of module name → QConfig, with '' for all"),
        (lambda m: prepare_jit(m, {"": "x86"}), "'x86' is no QConfig"),
        (lambda m: prepare_jit(m, {0: default_qconfig}), "0 is no module name"),
        (lambda m: prepare_jit("m.onnx", {"": default_qconfig}), "the model is a str"),
        (convert_jit, "convert_jit takes what prepare_jit gives, not a Model"),
        (lambda m: prepare_jit(m, {"tail": default_qconfig}), "speaks of module name 'tail', and test has no such node"),
        (lambda m: prepare_jit(m, {}), "test: nothing to quantize"),
        (
            lambda m: prepare_jit(m, script_qconfig_dict({"": default_qconfig})),
            "the QConfig of 'stem.conv' holds a MinMaxObserver that is made already: give the class",
        ),
        (
            lambda m: prepare_dynamic_jit(m, {"": default_qconfig}),
            "'x' would be quantized statically: prepare_dynamic_jit takes dynamic QConfigs; or use prepare_jit",
        ),
    ],
    ids=["no dict", "no QConfig", "no name", "no model", "not prepared", "name of nothing", "empty", "observers", "static"],
)
def test_what_is_refused(call: Callable[[qrt.Model], Any], message: str) -> None:
    with pytest.raises(qrt.QrtError, match=message):
        call(cnn.cnn())


def test_an_observer_that_saw_nothing() -> None:
    with pytest.raises(qrt.CalibrationError, match="x: saw no data; give calibration data that reaches it"):
        convert_jit(prepare_jit(cnn.cnn(), {"": default_qconfig}))
