"""fx, pt2e, jit and qrt.quantize are doors to one room: equivalent settings give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from data import ASSETS, MOBILENET_V1, digits, imagenet_like, needs_data
from minilm import feeds, minilm, needs_minilm

import qrt
from qrt.quantization import (
    QConfig,
    QConfigMapping,
    QrtQuantizer,
    convert_fx,
    convert_jit,
    convert_pt2e,
    default_dynamic_qconfig,
    default_per_channel_qconfig,
    default_qrt_qconfig,
    get_default_qat_qconfig_mapping,
    prepare_fx,
    prepare_jit,
    prepare_pt2e,
    prepare_qat_fx,
    prepare_qat_pt2e,
    quantize_dynamic_jit,
    quantize_jit,
)

Feeds = list[dict[str, np.ndarray]]
Door = Callable[[qrt.Model, QConfig, Feeds], qrt.Model]


def _by_quantize(model: qrt.Model, qconfig: QConfig, data: Feeds) -> qrt.Model:
    return qrt.quantize(model, data, QConfigMapping().set_global(qconfig), progress=False)


def _by_fx(model: qrt.Model, qconfig: QConfig, data: Feeds) -> qrt.Model:
    observed = prepare_fx(model, QConfigMapping().set_global(qconfig), data[0])
    for feed in data:
        observed(feed)
    return convert_fx(observed)


def _by_pt2e(model: qrt.Model, qconfig: QConfig, data: Feeds) -> qrt.Model:
    observed = prepare_pt2e(model, QrtQuantizer(QConfigMapping().set_global(qconfig)))
    for feed in data:
        observed(**feed)
    return convert_pt2e(observed)


def _by_jit(model: qrt.Model, qconfig: QConfig, data: Feeds) -> qrt.Model:
    def run(observed: Callable[..., Any], feeds: Feeds) -> None:
        for feed in feeds:
            observed(feed)

    return quantize_jit(model, {"": qconfig}, run, [data])


DOORS: dict[str, Door] = {"quantize": _by_quantize, "fx": _by_fx, "pt2e": _by_pt2e, "jit": _by_jit}


def _digits() -> tuple[qrt.Model, Feeds]:
    x = digits()["calibration"][0]
    return qrt.load(ASSETS / "digits.onnx"), [{"image": x[i : i + 50]} for i in range(0, 200, 50)]


def _outputs(model: qrt.Model, feeds: Feeds) -> list[bytes]:
    session = qrt.InferenceSession(model)
    return [array.tobytes() for feed in feeds for array in session.run(None, feed)]


def _check_doors(model: qrt.Model, qconfig: QConfig, data: Feeds) -> None:
    """The same files, and so the same outputs, which are not the float model's."""
    found = {name: door(model, qconfig, data) for name, door in DOORS.items()}
    files = {name: _file(int8) for name, int8 in found.items()}
    assert files == dict.fromkeys(files, files["quantize"])
    assert _outputs(found["fx"], data[:1]) == _outputs(found["jit"], data[:1]) != _outputs(model, data[:1])


@pytest.mark.parametrize("qconfig", [default_qrt_qconfig, default_per_channel_qconfig], ids=["qrt", "torch"])
def test_the_doors_agree_on_the_embedded_cnn(qconfig: QConfig) -> None:
    model, data = _digits()
    _check_doors(model, qconfig, data)


@needs_data("imagenet-mobilenetv1-025", "ultraface")
def test_the_doors_agree_on_a_mobilenet() -> None:
    model = qrt.load(MOBILENET_V1)
    _check_doors(model, default_qrt_qconfig, [{model.inputs[0].name: x[None]} for x in imagenet_like()[:3]])


@needs_minilm
@pytest.mark.parametrize("qconfig", [default_qrt_qconfig, default_dynamic_qconfig], ids=["static", "dynamic"])
def test_the_doors_agree_on_a_transformer(qconfig: QConfig) -> None:
    data = [feeds([text]) for text in ("my card has not arrived", "how do I change my PIN?")]
    model = qrt.load(minilm())
    if qconfig is default_dynamic_qconfig:
        found = [_outputs(model_, data) for model_ in (_by_fx(model, qconfig, data), quantize_dynamic_jit(model, {"": qconfig}))]
        assert found[0] == found[1] == _outputs(_by_pt2e(model, qconfig, data), data)
    else:
        _check_doors(model, qconfig, data)


def test_dynamic_doors_are_quantize_dynamic() -> None:
    model, data = _digits()
    qconfig = QConfig(default_dynamic_qconfig.activation, default_qrt_qconfig.weight)
    assert _outputs(_by_fx(model, qconfig, data), data) == _outputs(qrt.quantize_dynamic(model), data)


def test_the_doors_agree_where_a_layer_has_a_setting_of_its_own() -> None:
    model, data = _digits()
    mapping = (
        QConfigMapping()
        .set_global(default_qrt_qconfig)
        .set_module_name("conv_3", default_per_channel_qconfig)
        .set_module_name("gemm_21", None)
    )
    by_fx, by_pt2e = prepare_fx(model, mapping, None), prepare_pt2e(model, QrtQuantizer(mapping))
    by_jit = prepare_jit(model, {"": default_qrt_qconfig, "conv_3": default_per_channel_qconfig, "gemm_21": None})
    for observed in (by_fx, by_pt2e, by_jit):
        for feed in data:
            observed(feed)
    found = [_file(convert_fx(by_fx)), _file(convert_pt2e(by_pt2e)), _file(convert_jit(by_jit))]
    assert found == [_file(qrt.quantize(model, data, mapping, progress=False))] * 3


def test_the_doors_agree_on_fake_quantization() -> None:
    model, data = _digits()
    mapping = get_default_qat_qconfig_mapping("onednn")
    by_fx, by_pt2e = prepare_qat_fx(model, mapping, data[0]), prepare_qat_pt2e(model, QrtQuantizer(mapping))
    for feed in data:
        np.testing.assert_array_equal(by_fx(feed), by_pt2e(feed))
    assert _file(convert_fx(by_fx)) == _file(convert_pt2e(by_pt2e))


def _file(model: qrt.Model) -> str:
    """The digest of what is saved."""
    return sha256(model.to_proto().SerializeToString(deterministic=True)).hexdigest()
