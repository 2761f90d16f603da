"""Models that other tools quantized: over whole networks our codes are ONNX Runtime's, never more than one step apart and nearly always
equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from codes import assert_same_codes
from data import MLPERF_RESNET8_INT8, RESNET20_QDQ, RESNET20_QOPERATOR, cifar10, needs_data, normalised, ort_session

import qrt


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(RESNET20_QDQ, marks=needs_data("ort-quantized", "cifar10-data"), id="qdq_s8s8"),
        pytest.param(RESNET20_QOPERATOR, marks=needs_data("ort-quantized", "cifar10-data"), id="qoperator_u8s8"),
        pytest.param(MLPERF_RESNET8_INT8, marks=needs_data("mlperf-tiny", "cifar10-data"), id="mlperf_tiny"),
    ],
)
def test_codes_equal_onnxruntime(path: Path) -> None:
    theirs = ort_session(path)
    node = theirs.get_inputs()[0]
    images, labels = cifar10(1)
    x = (images ^ 128).view(np.int8) if node.type == "tensor(int8)" else normalised(images)
    with qrt.InferenceSession(path) as session:
        ours = np.concatenate([session.run(None, {node.name: x[i : i + 250]})[0] for i in range(0, 1000, 250)])
    expected = theirs.run(None, {node.name: x})[0]
    assert_same_codes(ours, expected)
    assert abs(float((ours.argmax(1) == labels).mean()) - float((expected.argmax(1) == labels).mean())) <= 0.002
