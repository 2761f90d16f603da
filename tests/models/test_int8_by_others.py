"""Models that other tools quantized: our codes are ONNX Runtime's, never more than one step apart and nearly always equal.

Layer by layer, from the same codes. Over a whole network a single code that falls the other way at a tie is carried on and multiplied:
ONNX Runtime computes some layers of a QDQ file in float, others in integers, as its fusions fall out, and so does not agree with itself
either (it gives other codes when an inner value is made an output). There the classes must agree.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from codes import assert_same_codes, layers, with_all_codes
from data import MLPERF_RESNET8_INT8, RESNET20_QDQ, RESNET20_QOPERATOR, cifar10, needs_data, normalised, ort_session

import qrt

MODELS = [
    pytest.param(RESNET20_QDQ, marks=needs_data("ort-quantized", "cifar10-data"), id="qdq_s8s8"),
    pytest.param(RESNET20_QOPERATOR, marks=needs_data("ort-quantized", "cifar10-data"), id="qoperator_u8s8"),
    pytest.param(MLPERF_RESNET8_INT8, marks=needs_data("mlperf-tiny", "cifar10-data"), id="mlperf_tiny"),
]


def _images(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = cifar10(1)
    x = (images ^ 128).view(np.int8) if path == MLPERF_RESNET8_INT8 else normalised(images)
    return x[:count], labels[:count]


@pytest.mark.parametrize("path", MODELS)
def test_codes_of_every_layer_equal_onnxruntime(path: Path) -> None:
    model = onnx.load(path)
    x, _ = _images(path, 16)
    whole = ort_session(with_all_codes(model).SerializeToString())
    outputs = [o.name for o in whole.get_outputs()]
    known = {whole.get_inputs()[0].name: x} | dict(zip(outputs, whole.run(None, {whole.get_inputs()[0].name: x}), strict=True))
    checked = 0
    for sources, name, layer in layers(model, known):
        with qrt.InferenceSession(layer) as session:
            (ours,) = session.run(None, {source: known[source] for source in sources})
        assert_same_codes(ours, known[name], name)
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("path", MODELS)
def test_classes_equal_onnxruntime(path: Path) -> None:
    theirs = ort_session(path)
    x, labels = _images(path, 1000)
    name = theirs.get_inputs()[0].name
    with qrt.InferenceSession(path) as session:
        ours = np.concatenate([session.run(None, {name: x[i : i + 250]})[0] for i in range(0, 1000, 250)])
    expected = theirs.run(None, {name: x})[0]
    assert (ours.argmax(1) == expected.argmax(1)).mean() >= 0.995
    assert abs(float((ours.argmax(1) == labels).mean()) - float((expected.argmax(1) == labels).mean())) <= 0.002


@needs_data("ort-quantized", "cifar10-data")
def test_codes_of_a_whole_integer_network_equal_onnxruntime() -> None:
    """In QOperator form ONNX Runtime has no choice but integers."""
    x, _ = _images(RESNET20_QOPERATOR, 1000)
    theirs = ort_session(RESNET20_QOPERATOR)
    name = theirs.get_inputs()[0].name
    with qrt.InferenceSession(RESNET20_QOPERATOR) as session:
        assert_same_codes(session.run(None, {name: x})[0], theirs.run(None, {name: x})[0])
