"""Rules for QOperator graphs, dynamic quantization and float graphs."""

from __future__ import annotations

from typing import Any

import fused
import numpy as np
import onnx
import onnxruntime
import pytest
from data import RESNET20, RESNET20_QDQ, RESNET20_QOPERATOR, cifar10, needs_data, normalised, ort_session
from graphs import F32, I8, I32, U8, codes, images, make, ops, prepared, reference

from qrt.graph import Model
from qrt.graph.passes import prepare
from qrt.graph.rules import fuse
from qrt.loaders import load

SCALES: dict[str, Any] = {
    "xs": 0.02,
    "xz": U8(120),
    "ws": images(4) ** 2 / 99 + F32(0.002),
    "wz": np.zeros(4, I8),
    "ys": 0.0513,
    "yz": U8(100),
    "bs": 0.013,
    "bz": U8(60),
    "cs": 0.0307,
    "cz": U8(110),
}
CONV = {"w": codes(4, 3, 3, 3), "b": codes(4, dtype=I32, limit=900)}
V = "com.microsoft"

# name → (graph, constants, the operators it becomes)
QOPERATORS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "QLinearConv": (
        "(uint8[1,3,8,8] x) => (uint8[1,4,6,6] y) { y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b) }",
        {**SCALES, **CONV},
        {"QConv": 1},
    ),
    "QLinearConv without bias": (
        "(uint8[1,3,8,8] x) => (uint8[1,4,3,3] y) { y = QLinearConv<strides: ints = [2,2]>(x, xs, xz, w, ws, wz, ys, yz) }",
        {**SCALES, **CONV},
        {"QConv": 1},
    ),
    "QLinearMatMul": (
        "(uint8[3,8] x) => (uint8[3,4] y) { y = QLinearMatMul(x, xs, xz, w, ws, wz, ys, yz) }",
        {**SCALES, "w": codes(8, 4), "ys": 0.3},
        {"QMatMul": 1},
    ),
    "QGemm": (
        f"(uint8[3,8] x) => (uint8[3,4] y) {{ y = {V}.QGemm<transB: int = 1>(x, xs, xz, w, ws, wz, b, ys, yz) }}",
        {**SCALES, "w": codes(4, 8), "b": CONV["b"], "ys": 0.3},
        {"QMatMul": 1},
    ),
    "QLinearAdd": (
        f"(uint8[1,3,8,8] x, uint8[1,3,8,8] b) => (uint8[1,3,8,8] y) {{ y = {V}.QLinearAdd(x, xs, xz, b, bs, bz, ys, yz) }}",
        SCALES,
        {"QAdd": 1},
    ),
    "QLinearMul": (
        f"(uint8[1,3,8,8] x, uint8[1,3,8,8] b) => (uint8[1,3,8,8] y) {{ y = {V}.QLinearMul(x, xs, xz, b, bs, bz, ys, yz) }}",
        SCALES,
        {"QMul": 1},
    ),
    "QLinearConcat": (
        f"(uint8[1,3,8,8] x, uint8[1,2,8,8] b) => (uint8[1,5,8,8] y) {{ "
        f"y = {V}.QLinearConcat<axis: int = 1>(ys, yz, x, xs, xz, b, bs, bz) }}",
        SCALES,
        {"QConcat": 1},
    ),
    "QLinearAveragePool": (
        f"(uint8[1,3,8,8] x) => (uint8[1,3,4,4] y) "
        f"{{ y = {V}.QLinearAveragePool<kernel_shape: ints = [2,2], strides: ints = [2,2]>(x, xs, xz, cs, cz) }}",
        SCALES,
        {"QAveragePool": 1},
    ),
    "QLinearGlobalAveragePool": (
        f"(uint8[1,16,8,8] x) => (uint8[1,16,1,1] y) {{ y = {V}.QLinearGlobalAveragePool<channels_last: int = 0>(x, xs, xz, cs, cz) }}",
        SCALES,
        {"QGlobalAveragePool": 1},
    ),
    "QLinearSigmoid": (f"(uint8[1,99] x) => (uint8[1,99] y) {{ y = {V}.QLinearSigmoid(x, xs, xz, bs, bz) }}", SCALES, {"QLut": 1}),
    "QLinearLeakyRelu": (
        f"(uint8[1,99] x) => (uint8[1,99] y) {{ y = {V}.QLinearLeakyRelu<alpha: float = 0.1>(x, xs, xz, cs, cz) }}",
        SCALES,
        {"QLut": 1},
    ),
    "QLinearSoftmax": (
        f"(uint8[3,9] x) => (uint8[3,9] y) {{ y = {V}.QLinearSoftmax<axis: int = 1, opset: int = 13>(x, xs, xz, es, ez) }}",
        {**SCALES, "es": 1 / 256, "ez": U8(0)},
        {"QSoftmax": 1},
    ),
}


def _inputs(model: onnx.ModelProto) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the inputs."""
    return [(i.name, tuple(d.dim_value for d in i.type.tensor_type.shape.dim)) for i in model.graph.input]


@pytest.mark.parametrize("name", QOPERATORS)
def test_qoperators_are_what_onnxruntime_computes(name: str) -> None:
    text, constants, expected = QOPERATORS[name]
    model = make(text, **constants)
    feeds = {name: codes(*shape, dtype=U8, limit=255, seed=k) for k, (name, shape) in enumerate(_inputs(model))}
    (wanted,) = ort_session(model.SerializeToString()).run(None, feeds)
    fused_model = prepared(model)
    report = fuse(fused_model)
    assert ops(fused_model) == expected
    assert report.misses == []
    (output,) = fused.run(fused_model, feeds)
    difference = np.abs(output.astype(int) - wanted.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.01
    assert len(np.unique(wanted)) > 2


def test_int8_qlinear_conv_is_flipped() -> None:
    text = "(int8[1,3,8,8] x) => (int8[1,4,6,6] y) { y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b) }"
    model = make(text, **{**{k: SCALES[k] for k in ("xs", "ws", "wz", "ys")}, **CONV, "xz": I8(-8), "yz": I8(-28)})
    fused_model = prepared(model)
    fuse(fused_model)
    assert ops(fused_model) == {"FlipSign": 2, "QConv": 1}
    x = codes(1, 3, 8, 8)
    np.testing.assert_array_equal(fused.run(fused_model, {"x": x})[0], reference(model, x=x)[0])


def test_a_pool_whose_channels_are_last_is_turned() -> None:
    text = f"(uint8[1,8,8,3] x) => (uint8[1,1,1,3] y) {{ y = {V}.QLinearGlobalAveragePool<channels_last: int = 1>(x, xs, xz, ys, yz) }}"
    model = Model(prepared(make(text, **{k: SCALES[k] for k in ("xs", "xz", "ys", "yz")})).ir)
    fuse(model)
    assert ops(model) == {"Transpose": 2, "QGlobalAveragePool": 1}


DYNAMIC = "q, s, z = DynamicQuantizeLinear(x)"
DYNAMICS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "matmul": (
        f"(float[5,8] x) => (float[5,4] y) {{ {DYNAMIC} i = MatMulInteger(q, w, z, wz) f = Cast<to: int = 1>(i) "
        "p = Mul(s, ws) y = Mul(f, p) }",
        {"w": codes(8, 4), "ws": SCALES["ws"], "wz": np.zeros(4, I8)},
        {"QMatMulFloat": 1},
    ),
    "matmul with bias, scales the other way round": (
        f"(float[2,5,8] x) => (float[2,5,4] y) {{ {DYNAMIC} i = MatMulInteger(q, w, z) f = Cast<to: int = 1>(i) p = Mul(ws, s) "
        "m = Mul(p, f) y = Add(b, m) }",
        {"w": codes(8, 4), "ws": 0.01, "b": images(4)},
        {"QMatMulFloat": 1},
    ),
    "uint8 weight": (
        f"(float[5,8] x) => (float[5,4] y) {{ {DYNAMIC} i = MatMulInteger(q, w, z, wz) f = Cast<to: int = 1>(i) "
        "p = Mul(s, ws) y = Mul(f, p) }",
        {"w": codes(8, 4, dtype=U8, limit=255), "ws": 0.01, "wz": U8(117)},
        {"QMatMulFloat": 1},
    ),
    "conv": (
        f"(float[1,3,8,8] x) => (float[1,4,8,8] y) {{ {DYNAMIC} i = ConvInteger<pads: ints = [1,1,1,1]>(q, w, z) f = Cast<to: int = 1>(i) "
        "p = Mul(s, ws) m = Mul(f, p) y = Add(m, b) }",
        {"w": codes(4, 3, 3, 3), "ws": SCALES["ws"].reshape(4, 1, 1), "b": images(4, 1, 1)},
        {"QConvFloat": 1},
    ),
    "DynamicQuantizeMatMul": (
        f"(float[5,8] x) => (float[5,4] y) {{ y = {V}.DynamicQuantizeMatMul(x, w, ws, wz, b) }}",
        {"w": codes(8, 4), "ws": SCALES["ws"], "wz": np.zeros(4, I8), "b": images(4)},
        {"QMatMulFloat": 1},
    ),
}


@pytest.mark.parametrize("name", DYNAMICS)
def test_dynamic_products(name: str) -> None:
    text, constants, expected = DYNAMICS[name]
    model = make(text, **constants)
    x = images(*_inputs(model)[0][1])
    (wanted,) = ort_session(model.SerializeToString()).run(None, {"x": x})
    fused_model = prepared(model)
    assert fuse(fused_model).misses == []
    assert ops(fused_model) == {"DynamicQuantizeLinear": 1, **expected}
    np.testing.assert_allclose(fused.run(fused_model, {"x": x})[0], wanted, rtol=1e-5, atol=1e-5)


def test_product_of_two_dynamic_operands_stays_as_it_is() -> None:
    text = "(float[5,8] x, float[8,4] t) => (float[5,4] y) { q, s, z = DynamicQuantizeLinear(x) r, u, v = DynamicQuantizeLinear(t) "
    text += "i = MatMulInteger(q, r, z, v) f = Cast<to: int = 1>(i) p = Mul(s, u) y = Mul(f, p) }"
    model = prepared(make(text))
    report = fuse(model)
    assert ops(model) == {"DynamicQuantizeLinear": 2, "MatMulInteger": 1, "Cast": 1, "Mul": 2}
    assert any("not a constant" in miss.reason for miss in report.misses)


def test_bare_integer_products_stay() -> None:
    text = "(uint8[5,8] x) => (int32[5,4] y, int32[1,2,6,6] c, uint8[1,3,8,8] u) "
    text += "{ y = MatMulInteger(x, w) u = Cast<to: int = 2>(k) c = ConvInteger(u, v) }"
    model = make(text, w=codes(8, 4), k=codes(1, 3, 8, 8, dtype=I32), v=codes(2, 3, 3, 3))
    fused_model = prepared(model)
    report = fuse(fused_model)
    assert "MatMulInteger" in ops(fused_model)
    assert any("not only cast" in miss.reason for miss in report.misses)


WEIGHTS: dict[str, Any] = {"w": images(4, 3, 3, 3), "b": images(4), "v": images(8, 4), "c": images(4, 1, 1), "lo": -0.5, "hi": 0.8}
FLOATS: dict[str, tuple[str, dict[str, int], str]] = {
    "conv_relu": ("(float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv(x, w, b) y = Relu(a) }", {"FusedConv": 1}, "Relu"),
    "conv_clip": ("(float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv(x, w, b) y = Clip(a, lo, hi) }", {"FusedConv": 1}, "Clip"),
    "conv_leaky": ("(float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv(x, w) y = LeakyRelu(a) }", {"FusedConv": 1}, "LeakyRelu"),
    "conv_hardswish": ("(float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv(x, w, b) y = HardSwish(a) }", {"FusedConv": 1}, "HardSwish"),
    "conv_silu": ("(float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv(x, w, b) s = Sigmoid(a) y = Mul(s, a) }", {"FusedConv": 1}, "SiLU"),
    "conv_sigmoid": ("(float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv(x, w, b) y = Sigmoid(a) }", {"FusedConv": 1}, "Sigmoid"),
    "conv_bias": ("(float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv(x, w) y = Add(c, a) }", {"FusedConv": 1}, ""),
    "conv_residual": (
        "(float[1,3,8,8] x, float[1,4,6,6] r) => (float[1,4,6,6] y) { a = Conv(x, w, b) t = Add(r, a) y = Relu(t) }",
        {"FusedConv": 1},
        "Relu",
    ),
    "conv_transpose": (
        "(float[1,4,8,8] x) => (float[1,3,10,10] y) { a = ConvTranspose(x, w) y = Relu(a) }",
        {"FusedConvTranspose": 1},
        "Relu",
    ),
    "gemm": ("(float[3,8] x) => (float[3,4] y) { a = Gemm(x, v, b) y = Relu(a) }", {"FusedGemm": 1}, "Relu"),
    "matmul": ("(float[2,3,8] x) => (float[2,3,4] y) { a = MatMul(x, v) t = Add(a, b) y = Relu(t) }", {"FusedMatMul": 1}, "Relu"),
    "read_twice": (
        "(float[1,3,8,8] x) => (float[1,4,6,6] y) { a = Conv(x, w, b) t = Relu(a) y = Add(a, t) }",
        {"Conv": 1, "Relu": 1, "Add": 1},
        "",
    ),
    "broadcast_residual": (
        "(float[1,3,8,8] x, float[1,4,1,1] r) => (float[1,4,6,6] y) { a = Conv(x, w, b) y = Add(a, r) }",
        {"Conv": 1, "Add": 1},
        "",
    ),
}


@pytest.mark.parametrize("name", FLOATS)
def test_float_fusions(name: str) -> None:
    text, expected, activation = FLOATS[name]
    model = make(text, **WEIGHTS)
    fused_model = prepared(model)
    report = fuse(fused_model)
    assert ops(fused_model) == expected
    assert report.misses, "every float product says why it is not int8"
    node = fused_model.graph[0]
    assert node.domain != "ai.qrt" or node.attributes["activation"].as_string() == activation
    feeds = {name: images(*shape, seed=k) for k, (name, shape) in enumerate(_inputs(model))}
    np.testing.assert_allclose(fused.run(fused_model, feeds)[0], reference(model, **feeds)[0], rtol=1e-4, atol=1e-4)


@needs_data("ort-quantized", "cifar10-data")
@pytest.mark.parametrize("path", [RESNET20_QDQ, RESNET20_QOPERATOR], ids=["qdq", "qoperator"])
def test_a_foreign_resnet_fuses_whole_with_equal_codes(path: Any) -> None:
    model = prepare(load(path))
    report = fuse(model)
    assert report.misses == []
    found = ops(model)
    assert (found["QConv"], found["QConvAdd"], found["QMatMul"]) == (10, 9, 1)
    assert not {"Conv", "Add", "Gemm", "AveragePool"} & set(found)
    x = normalised(cifar10(1)[0][:2])
    # On x86 ONNX Runtime computes int8 Q/DQ models in float unless it is told not to.
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    (wanted,) = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"input": x})
    np.testing.assert_array_equal(fused.run(model, {"input": x})[0], wanted)


@needs_data("cifar10-resnets")
def test_a_float_resnet_fuses_bias_residual_and_relu() -> None:
    model = prepare(load(RESNET20))
    fuse(model)
    assert ops(model)["FusedConv"] == 19
    assert not {"Relu", "Add", "Conv"} & set(ops(model))


def test_the_fused_form_imports_its_domain() -> None:
    model = prepared(make(FLOATS["gemm"][0], **WEIGHTS))
    fuse(model)
    assert model.ir.opset_imports["ai.qrt"] == 1
    assert isinstance(model.to_proto(), onnx.ModelProto)
