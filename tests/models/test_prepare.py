"""Every real model loads, prepares, and computes in ONNX Runtime what its file computes."""

from __future__ import annotations

import time
from pathlib import Path

import data
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qrt.graph.passes import OPSET, PASSES, prepare
from qrt.loaders import load

MODELS = sorted(data.DATA.rglob("*.onnx")) if data.DATA.is_dir() else []

if not MODELS:
    pytest.skip("no test data (set QRT_TEST_DATA to the folder that holds it)", allow_module_level=True)

DTYPES = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(int32)": np.int32}


def session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds(original: ort.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    made = {}
    for value in original.get_inputs():
        shape = [d if isinstance(d, int) else batch for d in value.shape]
        dtype = DTYPES[value.type]
        made[value.name] = rng.normal(size=shape).astype(dtype) if dtype is np.float32 else rng.integers(0, 127, shape).astype(dtype)
    return made


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_a_prepared_model_computes_what_its_file_computes(path: Path) -> None:
    loaded = load(path)
    start = time.monotonic()
    prepared = prepare(loaded)
    assert time.monotonic() - start < 10
    proto = prepared.to_proto()
    onnx.checker.check_model(proto)
    original, clean = session(path.read_bytes()), session(proto.SerializeToString())
    for batch in (1, 3):
        inputs = feeds(original, batch)
        for name, x, y in zip([o.name for o in original.get_outputs()], original.run(None, inputs), clean.run(None, inputs), strict=True):
            assert x.shape == y.shape
            assert x.dtype == y.dtype
            np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-4 * np.abs(x).max(), err_msg=name)


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_a_prepared_model_is_clean(path: Path) -> None:
    loaded = load(path)
    prepared = prepare(loaded)
    assert [(i.name, i.shape, i.dtype) for i in prepared.inputs] == [(i.name, i.shape, i.dtype) for i in loaded.inputs]
    assert [(o.name, o.dtype) for o in prepared.outputs] == [(o.name, o.dtype) for o in loaded.outputs]
    assert prepared.ir.opset_imports[""] >= OPSET
    kinds = {n.op_type for n in prepared.graph}
    assert kinds.isdisjoint({"Constant", "Identity", "Dropout", "BatchNormalization"})
    assert len({n.name for n in prepared.graph}) == len(prepared.graph)
    assert all(v.shape is not None and v.dtype is not None for n in prepared.graph for v in n.outputs if v.name)
    assert not any(one(prepared) for one in PASSES)
