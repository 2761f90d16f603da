"""Dynamic quantization on small models."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from data import ort_session
from graphs import F32, images, make, ops, prepared

from qrt.core.errors import QuantizationError
from qrt.graph import constant, is_op
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower import Executable
from qrt.quantization import quantize_dynamic

WEIGHTS: dict[str, Any] = {"m": images(8, 5), "d": images(5, seed=1), "w": images(6, 3, 3, 3, seed=2), "b": images(6, seed=3)}
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "matmul": ("(float[N,4,8] x) => (float[N,4,5] y) { y = MatMul(x, m) }", {"QMatMulFloat": 1}),
    "matmul and bias": ("(float[N,4,8] x) => (float[N,4,5] y) { a = MatMul(x, m) y = Add(d, a) }", {"QMatMulFloat": 1}),
    "gemm": ("(float[N,8] x) => (float[N,5] y) { y = Gemm(x, m, d) }", {"QMatMulFloat": 1}),
    "gemm, transposed": ("(float[N,5] x) => (float[N,8] y) { y = Gemm<transB: int = 1>(x, m) }", {"QMatMulFloat": 1}),
    "conv": ("(float[N,3,8,8] x) => (float[N,6,6,6] y) { a = Conv(x, w, b) y = Relu(a) }", {"QConvFloat": 1, "Relu": 1}),
    "two readers": (
        "(float[N,4,8] x) => (float[N,4,5] y) { a = MatMul(x, m) c = MatMul(x, m) y = Mul(a, c) }",
        {"QMatMulFloat": 2, "Mul": 1},
    ),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_models_are_close_and_run_in_onnxruntime(name: str, per_channel: bool) -> None:
    text, expected = CASES[name]
    model = make(text, **WEIGHTS)
    int8 = quantize_dynamic(load(model), per_channel=per_channel)
    proto = int8.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    x = images(3, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]), seed=7)
    (real,) = ort_session(model.SerializeToString()).run(None, {"x": x})
    (theirs,) = ort_session(proto.SerializeToString()).run(None, {"x": x})
    assert np.abs(theirs - real).max() < 0.05 * np.abs(real).max()
    fused = prepared(proto)
    fuse(fused)
    assert ops(fused) == {"DynamicQuantizeLinear": 1, **expected}
    (ours,) = Executable(fused, host_target(), 1).run({"x": x})
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_weights_are_int8_with_a_scale_per_column() -> None:
    int8 = quantize_dynamic(load(make(CASES["matmul"][0], **WEIGHTS)))
    (product,) = (node for node in int8.graph if is_op(node, "MatMulInteger"))
    codes = constant(product.inputs[1])
    assert codes is not None
    scale = np.abs(WEIGHTS["m"]).max(axis=0) / F32(127)
    np.testing.assert_allclose(codes * scale, WEIGHTS["m"], atol=float(scale.max()) / 2)


def test_exclude() -> None:
    proto = make(CASES["two readers"][0], **WEIGHTS)
    proto.graph.node[0].name = "query"
    int8 = quantize_dynamic(load(proto), exclude=["qu*"])
    assert ops(int8)["MatMul"] == 1
    assert ops(int8)["MatMulInteger"] == 1
    with pytest.raises(QuantizationError, match="no node"):
        quantize_dynamic(load(proto), exclude=["key"])
    with pytest.raises(QuantizationError, match="nothing to quantize"):
        quantize_dynamic(load(proto), exclude=["*"])


def test_the_model_given_is_not_changed() -> None:
    model = load(make(CASES["gemm"][0], **WEIGHTS))
    before = model.to_proto().SerializeToString()
    quantize_dynamic(model)
    assert model.to_proto().SerializeToString() == before
