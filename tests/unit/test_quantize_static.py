"""Static quantization on small models: where Q/DQ goes, what weights and biases become, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import pytest
from data import ort_session
from graphs import F32, I8, images, make, ops, prepared

from qrt.core.errors import CalibrationError, InvalidInput, QrtWarning, QuantizationError
from qrt.graph import Model, constant, is_op
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower import Executable
from qrt.observers import MinMaxObserver, PerChannelMinMaxObserver
from qrt.quantization import (
    QConfig,
    QConfigMapping,
    default_qrt_qconfig,
    get_default_qrt_qconfig_mapping,
    quantize,
    weight_observer_range_neg_127_to_127,
)

PAD = "pads: ints = [1,1,1,1]"
WEIGHTS: dict[str, Any] = {
    "w": images(8, 3, 3, 3) / 3,
    "b": images(8, seed=1) / 4,
    "v": images(8, 8, 3, 3, seed=2) / 8,
    "c": images(8, seed=3) / 4,
    "m": images(8, 5, seed=4),
    "d": images(5, seed=5),
    "lo": 0.0,
    "hi": 6.0,
    "u": images(8, 1, 3, 3, seed=6),
}
CONV = f"a = Conv<{PAD}>(x, w, b) r = Relu(a)"
IMAGE = "(float[N,3,8,8] x)"
TAIL = "g = GlobalAveragePool(e) f = Flatten(g) y = Gemm(f, m, d)"

# name → (graph, what the fused int8 graph holds besides QuantizeLinear)
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "conv": (f"{IMAGE} => (float[N,8,8,8] y) {{ y = Conv<{PAD}>(x, w, b) }}", {"QConvFloat": 1}),
    "convs": (f"{IMAGE} => (float[N,8,8,8] y) {{ {CONV} y = Conv<{PAD}>(r, v) }}", {"QConv": 1, "QConvFloat": 1}),
    "classifier": (
        f"{IMAGE} => (float[N,5] y) {{ {CONV} e = Clip(r, lo, hi) {TAIL} }}",
        {"QConv": 1, "QLut": 1, "QGlobalAveragePool": 1, "Flatten": 1, "QMatMulFloat": 1},
    ),
    "residual": (
        f"{IMAGE} => (float[N,5] y) {{ {CONV} s = Conv<{PAD}>(r, v, c) t = Add(s, r) e = Relu(t) {TAIL} }}",
        {"QConv": 1, "QConvAdd": 1, "QGlobalAveragePool": 1, "Flatten": 1, "QMatMulFloat": 1},
    ),
    "depthwise": (
        f"{IMAGE} => (float[N,8,4,4] y) {{ {CONV} s = Conv<{PAD}, group: int = 8, strides: ints = [2,2]>(r, u) t = Clip(s, lo, hi) "
        f"y = Conv<{PAD}>(t, v) }}",
        {"QConv": 2, "QConvFloat": 1},
    ),
    "silu": (
        f"{IMAGE} => (float[N,8,8,8] y) {{ {CONV} s = Sigmoid(a) t = Mul(a, s) y = Conv<{PAD}>(t, v) }}",
        {"QConv": 1, "QLut": 1, "QConvFloat": 1},
    ),
    "concat": (
        f"{IMAGE} => (float[N,8,8,8] y) {{ {CONV} s = Conv<{PAD}>(r, v) k = Concat<axis: int = 1>(r, s) y = Conv<{PAD}>(k, k16) }}",
        {"QConv": 2, "QConcat": 1, "QConvFloat": 1},
    ),
    "pools": (
        f"{IMAGE} => (float[N,8,4,4] y) {{ {CONV} s = MaxPool<kernel_shape: ints = [2,2], strides: ints = [2,2]>(r) "
        f"t = AveragePool<kernel_shape: ints = [3,3], {PAD}>(s) y = Conv<{PAD}>(t, v) }}",
        {"QConv": 1, "MaxPool": 1, "QAveragePool": 1, "QConvFloat": 1},
    ),
    "resize": (
        f'{IMAGE} => (float[N,8,16,16] y) {{ {CONV} t = Resize<mode: string = "nearest">(r, , scales) y = Conv<{PAD}>(t, v) }}',
        {"QConv": 1, "QResize": 1, "QConvFloat": 1},
    ),
    "transposed": (
        f"{IMAGE} => (float[N,8,10,10] y) {{ {CONV} s = ConvTranspose(r, v) y = Identity(s) }}",
        {"QConv": 1, "QConvTranspose": 1, "DequantizeLinear": 1},
    ),
    "mlp": (
        "(float[N,8] x) => (float[N,5] y) { a = MatMul(x, m) s = Add(a, d) r = Relu(s) y = MatMul(r, m5) }",
        {"QMatMul": 1, "QMatMulFloat": 1},
    ),
    "attention": (
        "(float[N,6,8] x) => (float[N,6,5] y) { q = MatMul(x, m) k = MatMul(x, m) t = Transpose<perm: ints = [0,2,1]>(k) "
        "s = MatMul(q, t) p = Softmax(s) y = MatMul(p, q) }",
        {"QMatMul": 4, "Transpose": 1, "QSoftmax": 1, "DequantizeLinear": 1},
    ),
    "moved input": (
        f"(float[N,8,8,3] x) => (float[N,8,8,8] y) {{ t = Transpose<perm: ints = [0,3,1,2]>(x) y = Conv<{PAD}>(t, w, b) }}",
        {"Transpose": 1, "QConvFloat": 1},
    ),
    "float head": (
        f"{IMAGE} => (float[N,512] y) {{ {CONV} s = Conv<{PAD}>(r, v) f = Flatten(s) y = Softmax(f) }}",
        {"QConv": 1, "QConvFloat": 1, "Flatten": 1, "Softmax": 1},
    ),
    "bias as Add": (f"{IMAGE} => (float[N,8,8,8] y) {{ a = Conv<{PAD}>(x, w) y = Add(a, c3) }}", {"QConvFloat": 1}),
}
MORE = {
    "k16": images(8, 16, 3, 3, seed=7) / 12,
    "scales": np.array([1, 1, 2, 2], F32),
    "m5": images(5, 5, seed=8),
    "c3": images(8, 1, 1, seed=9),
}


def _model(name: str) -> onnx.ModelProto:
    return make(CASES[name][0], **WEIGHTS, **MORE)


def _batches(model: onnx.ModelProto, count: int = 8, size: int = 4) -> list[np.ndarray]:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return [images(size, *shape, seed=10 + k) for k in range(count)]


def _sqnr(real: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((real.astype(np.float64) ** 2).sum() / max(((real.astype(np.float64) - found) ** 2).sum(), 1e-30)))


@pytest.mark.parametrize("name", CASES)
def test_int8_models_are_close_and_run_in_onnxruntime(name: str) -> None:
    model = _model(name)
    batches = _batches(model)
    int8 = quantize(load(model), batches, progress=False)
    proto = int8.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    x = batches[0]
    (real,) = ort_session(model.SerializeToString()).run(None, {"x": x})
    (theirs,) = ort_session(proto.SerializeToString()).run(None, {"x": x})
    assert _sqnr(real, theirs) > 20
    fused = prepared(proto)
    fuse(fused)
    assert ops(fused) == {"QuantizeLinear": 1, **CASES[name][1]}
    (ours,) = Executable(fused, host_target(), 1).run({"x": x})
    assert _sqnr(theirs, ours) > 40


def _weights(model: Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Codes and scales of every constant behind a DequantizeLinear, by the operator and input they feed."""
    found = {}
    for node in model.graph:
        if is_op(node, "DequantizeLinear") and constant(node.inputs[0]) is not None:
            use = next(iter(node.outputs[0].uses()))
            codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
            assert codes is not None
            assert scale is not None
            found[f"{use.node.op_type}{use.idx}"] = (codes, scale)
    return found


def test_weights_are_symmetric_per_channel_and_biases_in_units_of_the_product() -> None:
    model = _model("conv")
    int8 = quantize(load(model), _batches(model), progress=False)
    constants = _weights(int8)
    codes, scale = constants["Conv1"]
    assert codes.dtype == np.int8
    assert scale.shape == (8,)
    np.testing.assert_allclose(scale, np.abs(WEIGHTS["w"]).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    assert codes.min() >= -127
    np.testing.assert_array_equal(np.abs(codes.astype(int)).max(axis=(1, 2, 3)), 127)
    bias, bias_scale = constants["Conv2"]
    assert bias.dtype == np.int32
    input_scale = next(constant(n.inputs[1]) for n in int8.graph if is_op(n, "QuantizeLinear"))
    np.testing.assert_array_equal(bias_scale, input_scale * scale)
    np.testing.assert_allclose(bias * bias_scale, WEIGHTS["b"], atol=float(bias_scale.max()))


def test_per_tensor_weights() -> None:
    model = _model("conv")
    mapping = QConfigMapping().set_global(QConfig(MinMaxObserver, weight_observer_range_neg_127_to_127))
    codes, scale = _weights(quantize(load(model), _batches(model), mapping, progress=False))["Conv1"]
    assert scale.shape == ()
    assert np.abs(codes.astype(int)).max() == 127


def test_a_dead_channel_keeps_its_bias() -> None:
    w = WEIGHTS["w"].copy()
    w[2] = 0
    b = WEIGHTS["b"].copy()
    b[2] = 300.0
    model = make(CASES["conv"][0], w=w, b=b)
    batches = _batches(model)
    int8 = quantize(load(model), batches, progress=False)
    (y,) = ort_session(int8.to_proto().SerializeToString()).run(None, {"x": batches[0]})
    np.testing.assert_allclose(y[:, 2], 300.0, rtol=1e-4)


def test_moved_values_share_qparams() -> None:
    model = _model("pools")
    int8 = quantize(load(model), _batches(model), progress=False)
    scales = {n.inputs[0].name: constant(n.inputs[1]) for n in int8.graph if is_op(n, "QuantizeLinear") and n.inputs[0] is not None}
    np.testing.assert_array_equal(scales["r"], scales["s"])
    assert scales["t"] != scales["s"]


def test_softmax_between_products_has_its_natural_range() -> None:
    model = _model("attention")
    int8 = quantize(load(model), _batches(model), progress=False)
    scales = {n.inputs[0].name: constant(n.inputs[1]) for n in int8.graph if is_op(n, "QuantizeLinear") and n.inputs[0] is not None}
    assert float(scales["p"]) == 1 / 256  # type: ignore[arg-type]


def test_the_model_given_is_not_changed() -> None:
    model = load(_model("residual"))
    before = model.to_proto().SerializeToString()
    quantize(model, _batches(_model("residual")), progress=False)
    assert model.to_proto().SerializeToString() == before


def test_exclude_leaves_nodes_float() -> None:
    proto = _model("convs")
    proto.graph.node[0].name, proto.graph.node[2].name = "stem", "head/conv"
    batches = _batches(proto)
    fused = prepared(quantize(load(proto), batches, exclude=["st*"], progress=False).to_proto())
    report = fuse(fused)
    assert ops(fused) == {"FusedConv": 1, "QuantizeLinear": 1, "QConvFloat": 1}
    assert "is float" in report.why["stem"]
    with pytest.raises(QuantizationError, match=r"no node .* is called 'nothing\*'"):
        quantize(load(proto), batches, exclude=["nothing*"], progress=False)
    with pytest.raises(QuantizationError, match="nothing to quantize"):
        quantize(load(proto), batches, exclude=["*"], progress=False)


def test_a_mapping_may_leave_out_an_operator_or_a_node() -> None:
    proto = _model("classifier")
    mapping = get_default_qrt_qconfig_mapping().set_object_type("Gemm", None)
    fused = prepared(quantize(load(proto), _batches(proto), mapping, progress=False).to_proto())
    fuse(fused)
    assert ops(fused)["Gemm"] == 1
    proto.graph.node[0].name = "stem"
    mapping = get_default_qrt_qconfig_mapping().set_module_name("stem", None)
    fused = prepared(quantize(load(proto), _batches(proto), mapping, progress=False).to_proto())
    fuse(fused)
    assert ops(fused)["FusedConv"] == 1


def test_dict_batches_and_several_inputs() -> None:
    text = f"(float[N,3,8,8] x, float[N,8,8,8] r) => (float[N,8,8,8] y) {{ a = Conv<{PAD}>(x, w, b) s = Add(a, r) y = Conv<{PAD}>(s, v) }}"
    model = make(text, **WEIGHTS)
    batches = [{"x": images(2, 3, 8, 8, seed=k), "r": images(2, 8, 8, 8, seed=k + 9)} for k in range(4)]
    int8 = quantize(load(model), batches, progress=False)
    (real,) = ort_session(model.SerializeToString()).run(None, batches[0])
    assert _sqnr(real, ort_session(int8.to_proto().SerializeToString()).run(None, batches[0])[0]) > 20
    with pytest.raises(CalibrationError, match="give dicts"):
        quantize(load(model), [batches[0]["x"]], progress=False)


def _with(x: np.ndarray, value: float) -> np.ndarray:
    bad = x.copy()
    bad.flat[5] = value
    return bad


GOOD = images(2, 3, 8, 8)
BAD: dict[str, tuple[Iterable[Any], str]] = {
    "no data": ([], "no calibration data"),
    "nan": ([GOOD, _with(GOOD, np.nan)], "batch 1, input 'x' holds NaN or infinity"),
    "infinity": ([_with(GOOD, np.inf)], "input 'x' holds NaN or infinity"),
    "dtype": ([GOOD.astype(np.float64)], "dtype float64: give float32"),
    "rank": (GOOD, "shape \\(3, 8, 8\\), which does not fit"),
    "extent": ([images(2, 4, 8, 8)], "shape \\(2, 4, 8, 8\\)"),
    "unknown name": ([{"x": GOOD, "z": GOOD}], "names \\['z'\\]"),
    "missing name": ([{}], "lacks \\['x'\\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calibration_data_is_refused(name: str) -> None:
    data, message = BAD[name]
    model = make(CASES["convs"][0], **{**WEIGHTS, "w": WEIGHTS["w"] * 100})
    with pytest.raises(CalibrationError, match=message):
        quantize(load(model), data, progress=False)


def test_a_model_that_overflows_inside_is_told_of() -> None:
    model = load(make(CASES["convs"][0], **{**WEIGHTS, "w": WEIGHTS["w"] * 100}))
    extremes = QConfigMapping().set_global(default_qrt_qconfig._replace(activation=MinMaxObserver))
    with pytest.raises(CalibrationError, match=r": saw (NaN|infinity); remove the sample or mend the model"):
        quantize(model, [GOOD * F32(1e37)], extremes, progress=False)
    with pytest.warns(QrtWarning, match=": saw infinity, which its histogram leaves out; remove the sample"):
        quantize(model, [GOOD, GOOD * F32(1e37)], progress=False)


def test_empty_batches_teach_nothing() -> None:
    with pytest.raises(CalibrationError, match="saw no data"):
        quantize(load(_model("conv")), [np.zeros((0, 3, 8, 8), F32)], progress=False)


def test_observers_that_do_not_fit_are_refused() -> None:
    model = load(_model("convs"))
    batches = _batches(_model("convs"))
    with pytest.raises(QuantizationError, match="activations take"):
        quantize(
            model, batches, QConfigMapping().set_global(default_qrt_qconfig._replace(activation=PerChannelMinMaxObserver)), progress=False
        )
    with pytest.raises(QuantizationError, match=r"the weight of Conv .* may be qrt\.qint8"):
        quantize(model, batches, QConfigMapping().set_global(default_qrt_qconfig._replace(weight=MinMaxObserver)), progress=False)


@pytest.mark.parametrize("model", ["convs", "classifier", "attention"])
def test_quantizing_twice_is_refused(model: str) -> None:
    proto = _model(model)
    int8 = quantize(load(proto), _batches(proto), progress=False)
    with pytest.raises(QuantizationError, match="nothing to quantize"):
        quantize(int8, _batches(proto), progress=False)


def test_codes_stay_in_int8_where_a_value_is_an_output_too() -> None:
    text = f"{IMAGE} => (float[N,8,8,8] y, float[N,8,8,8] r) {{ {CONV} y = Conv<{PAD}>(r, v) }}"
    model = make(text, **WEIGHTS)
    batches = _batches(model)
    int8 = quantize(load(model), batches, progress=False)
    assert [v.name for v in int8.outputs] == ["y", "r"]
    theirs = ort_session(int8.to_proto().SerializeToString()).run(None, {"x": batches[0]})
    fused = prepared(int8.to_proto())
    fuse(fused)
    assert ops(fused) == {"QuantizeLinear": 1, "QConv": 1, "DequantizeLinear": 1, "QConvFloat": 1}
    for a, b in zip(Executable(fused, host_target(), 1).run({"x": batches[0]}), theirs, strict=True):
        assert _sqnr(b, a) > 40


def test_int8_zero_points_are_zero() -> None:
    model = _model("conv")
    int8 = quantize(load(model), _batches(model), progress=False)
    for value in int8.graph.initializers.values():
        array = constant(value)
        if array is not None and array.dtype == I8 and array.ndim == 1:
            assert not array.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "m.onnx"}, "the model is a str"),
        ({"calibration_data": None}, "calibration_data is a NoneType"),
        ({"qconfig_mapping": {"Conv": None}}, "qconfig_mapping is a dict"),
        ({"exclude": "conv*"}, r"exclude is 'conv\*'"),
        ({"exclude": [5]}, "exclude holds 5"),
    ],
)
def test_arguments_of_other_types(arguments: dict[str, Any], message: str) -> None:
    model = load(make("(float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }", w=np.ones((3, 4), np.float32)))
    with pytest.raises(InvalidInput, match=message):
        quantize(**({"model": model, "calibration_data": [np.ones((1, 3), np.float32)], "progress": False} | arguments))
