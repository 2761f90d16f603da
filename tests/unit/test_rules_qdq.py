"""Rules for graphs in QDQ form: what they fuse to, and that the fused form computes what onnx.reference computes on the original."""

from __future__ import annotations

from typing import Any

import fused
import numpy as np
import pytest
from graphs import F32, I8, I32, U8, codes, images, make, ops, prepared, reference

from qrt.graph.rules import fuse

Z = U8(120)
CONV: dict[str, Any] = {
    "s": 0.02,
    "z": Z,
    "wq": codes(4, 3, 3, 3),
    "ws": images(4) ** 2 / 99 + F32(0.002),
    "wz": np.zeros(4, I8),
    "t": 0.05,
}
PAD = "pads: ints = [1,1,1,1]"
TURN = "e = Transpose<perm: ints = [0,1,3,2]>(d)"
POOL = "kernel_shape: ints = [2,2], strides: ints = [2,2]"
HEAD = "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)"
WEIGHT = "w = DequantizeLinear<axis: int = 0>(wq, ws, wz)"
TAIL = "p = QuantizeLinear(r, t, z)  y = DequantizeLinear(p, t, z)"
IMAGE = "(float[1,3,8,8] x) => (float[1,4,8,8] y)"
SAME = "(float[1,3,8,8] x) => (float[1,3,8,8] y)"
ENDS = {"QuantizeLinear": 1, "DequantizeLinear": 1}
BIAS = {"b": images(4, seed=3)}
TWO = f"{HEAD} {WEIGHT} c = Conv<{PAD}>(d, w)"
UNARY_SCALES = {"s": 0.04, "z": Z, "t": 0.01}
SUM = {
    **CONV,
    "wq": codes(3, 3, 3, 3),
    "ws": images(3) ** 2 / 99 + F32(0.002),
    "wz": np.zeros(3, I8),
    "sc": 0.07,
    "zc": U8(100),
    "t": 0.1,
}
CONV_SUM = f"{HEAD} {WEIGHT} c = Conv<{PAD}>(d, w) cq = QuantizeLinear(c, sc, zc) cd = DequantizeLinear(cq, sc, zc)"

# name → (graph, constants, the operators it becomes besides the first Q and the last DQ)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "conv": (f"{IMAGE} {{ {TWO} r = Identity(c) {TAIL} }}", CONV, {"QConv": 1}),
    "conv_relu": (f"{IMAGE} {{ {TWO} r = Relu(c) {TAIL} }}", CONV, {"QConv": 1}),
    "conv_relu6": (f"{IMAGE} {{ {TWO} r = Clip(c, lo, hi) {TAIL} }}", {**CONV, "lo": 0.0, "hi": 1.5}, {"QConv": 1}),
    "conv_float_bias": (
        f"{IMAGE} {{ {HEAD} {WEIGHT} r = Conv<{PAD}>(d, w, b) {TAIL} }}",
        {**CONV, **BIAS},
        {"QConv": 1},
    ),
    "conv_int32_bias": (
        f"{IMAGE} {{ {HEAD} {WEIGHT} b = DequantizeLinear<axis: int = 0>(bq, bs) r = Conv<{PAD}>(d, w, b) {TAIL} }}",
        {**CONV, "bq": codes(4, dtype=I32, limit=900), "bs": F32(0.02) * CONV["ws"]},
        {"QConv": 1},
    ),
    "conv_bias_of_another_scale": (
        f"{IMAGE} {{ {HEAD} {WEIGHT} b = DequantizeLinear(bq, bs) r = Conv<{PAD}>(d, w, b) {TAIL} }}",
        {**CONV, "bq": codes(4, dtype=I32, limit=900), "bs": 0.001},
        {"QConv": 1},
    ),
    "conv_uint8_weight": (
        f"{IMAGE} {{ {HEAD} w = DequantizeLinear(wq, ws, wz) r = Conv<{PAD}>(d, w) {TAIL} }}",
        {**CONV, "wq": codes(4, 3, 3, 3, dtype=U8, limit=255), "ws": 0.0113, "wz": U8(131)},
        {"QConv": 1},
    ),
    "conv_scales_of_shape_1": (
        f"{IMAGE} {{ {HEAD} w = DequantizeLinear<axis: int = 0>(wq, ws) r = Conv<{PAD}>(d, w) {TAIL} }}",
        {**CONV, "s": np.array([0.02], F32), "z": np.array([120], U8), "ws": np.array([0.01], F32)},
        {"QConv": 1},
    ),
    "conv_same_upper": (
        f"(float[1,3,9,9] x) => (float[1,4,5,5] y) {{ {HEAD} {WEIGHT} "
        f'r = Conv<auto_pad: string = "SAME_UPPER", strides: ints = [2,2]>(d, w) {TAIL} }}',
        CONV,
        {"QConv": 1},
    ),
    "conv_transpose": (
        f"(float[1,3,8,8] x) => (float[1,4,17,17] y) {{ {HEAD} "
        f"w = DequantizeLinear<axis: int = 1>(wq, ws, wz) "
        f"r = ConvTranspose<strides: ints = [2,2]>(d, w) {TAIL} }}",
        {**CONV, "wq": codes(3, 4, 3, 3)},
        {"QConvTranspose": 1},
    ),
    "conv_without_end": (f"{IMAGE} {{ {HEAD} {WEIGHT} y = Conv<{PAD}>(d, w, b) }}", {**CONV, **BIAS}, {"QConvFloat": 1}),
    "conv_moved_before_end": (
        f"(float[1,3,8,8] x) => (float[1,256] y) {{ {TWO} f = Flatten(c) r = Relu(f) {TAIL} }}",
        CONV,
        {"QConv": 1, "Flatten": 1},
    ),
    "conv_pooled_before_end": (
        f"(float[1,3,8,8] x) => (float[1,4,4,4] y) {{ {TWO} r = MaxPool<{POOL}>(c) {TAIL} }}",
        CONV,
        {"QConv": 1, "MaxPool": 1},
    ),
    "gemm": (
        f"(float[2,8] x) => (float[2,4] y) {{ {HEAD} "
        f"w = DequantizeLinear<axis: int = 0>(wq, ws, wz) "
        f"r = Gemm<transB: int = 1>(d, w, b) {TAIL} }}",
        {**CONV, **BIAS, "wq": codes(4, 8)},
        {"QMatMul": 1},
    ),
    "gemm_without_end": (
        f"(float[2,8] x) => (float[2,4] y) {{ {HEAD} w = DequantizeLinear<axis: int = 0>(wq, ws, wz) y = Gemm<transB: int = 1>(d, w, b) }}",
        {**CONV, **BIAS, "wq": codes(4, 8)},
        {"QMatMulFloat": 1},
    ),
    "matmul_add_relu": (
        f"(float[2,5,8] x) => (float[2,5,4] y) {{ {HEAD} "
        f"w = DequantizeLinear<axis: int = 1>(wq, ws, wz) m = MatMul(d, w) "
        f"a = Add(b, m) r = Relu(a) {TAIL} }}",
        {**CONV, **BIAS, "wq": codes(8, 4)},
        {"QMatMul": 1},
    ),
    "matmul_transposed_weight": (
        f"(float[2,8] x) => (float[2,4] y) {{ {HEAD} wr = DequantizeLinear<axis: int = 0>(wq, ws, wz) "
        f"w = Transpose<perm: ints = [1,0]>(wr) r = MatMul(d, w) {TAIL} }}",
        {**CONV, "wq": codes(4, 8)},
        {"QMatMul": 1},
    ),
    "matmul_of_activations": (
        f"(float[2,8,8] x) => (float[2,8,8] y) {{ {HEAD} e = Transpose<perm: ints = [0,2,1]>(d) r = MatMul(d, e) {TAIL} }}",
        {"s": 0.02, "z": Z, "t": 0.1},
        {"QMatMul": 1, "Transpose": 1},
    ),
    "add": (
        f"{SAME} {{ {HEAD} {TURN} a = Add(d, e) r = Relu(a) {TAIL} }}",
        {"s": 0.021, "z": Z, "t": 0.033},
        {"QAdd": 1, "Transpose": 1},
    ),
    "add_constant": (f"{SAME} {{ {HEAD} e = DequantizeLinear(k, s) r = Add(d, e) {TAIL} }}", {**CONV, "k": codes(3, 1, 1)}, {"QAdd": 1}),
    "mul": (
        f"{SAME} {{ {HEAD} {TURN} r = Mul(d, e) {TAIL} }}",
        {"s": 0.02, "z": Z, "t": 0.03},
        {"QMul": 1, "Transpose": 1},
    ),
    "conv_add": (f"{SAME} {{ {CONV_SUM} a = Add(d, cd) r = Relu(a) {TAIL} }}", SUM, {"QConvAdd": 1}),
    "add_conv": (f"{SAME} {{ {CONV_SUM} r = Add(cd, d) {TAIL} }}", SUM, {"QConvAdd": 1}),
    "conv_read_twice": (
        f"(float[1,3,8,8] x) => (float[1,6,8,8] y) {{ {CONV_SUM} a = Add(d, cd) "
        f"aq = QuantizeLinear(a, t, z) ad = DequantizeLinear(aq, t, z) "
        f"r = Concat<axis: int = 1>(ad, cd) {TAIL} }}",
        SUM,
        {"QConv": 1, "QAdd": 1, "QConcat": 1},
    ),
    "concat": (
        f"(float[1,3,8,8] x) => (float[1,7,8,8] y) {{ {TWO} cq = QuantizeLinear(c, sc, zc) cd = DequantizeLinear(cq, sc, zc) "
        f"r = Concat<axis: int = 1>(d, cd) {TAIL} }}",
        {**CONV, "sc": 0.07, "zc": U8(100)},
        {"QConv": 1, "QConcat": 1},
    ),
    "average_pool": (
        f"(float[1,3,8,8] x) => (float[1,3,4,4] y) {{ {HEAD} r = AveragePool<{POOL}>(d) {TAIL} }}",
        {"s": 0.02, "z": Z, "t": 0.015},
        {"QAveragePool": 1},
    ),
    "global_average_pool": (
        f"(float[1,3,8,8] x) => (float[1,3,1,1] y) {{ {HEAD} r = GlobalAveragePool(d) {TAIL} }}",
        {"s": 0.02, "z": Z, "t": 0.004},
        {"QGlobalAveragePool": 1},
    ),
    "softmax": (f"(float[2,9] x) => (float[2,9] y) {{ {HEAD} r = Softmax(d) {TAIL} }}", {"s": 0.02, "z": Z, "t": 0.004}, {"QSoftmax": 1}),
    "reduce_mean": (
        f"(float[1,3,8,8] x) => (float[1,3] y) {{ {HEAD} r = ReduceMean<keepdims: int = 0>(d, axes) {TAIL} }}",
        {"s": 0.02, "z": Z, "t": 0.004, "axes": np.array([2, 3])},
        {"QReduceMean": 1},
    ),
    "resize": (
        f'(float[1,3,4,4] x) => (float[1,3,8,8] y) {{ {HEAD} r = Resize<mode: string = "linear">(d, , scales) {TAIL} }}',
        {"s": 0.02, "z": Z, "t": 0.03, "scales": np.array([1, 1, 2, 2], F32)},
        {"QResize": 1},
    ),
    "sigmoid": (f"{SAME} {{ {HEAD} r = Sigmoid(d) {TAIL} }}", UNARY_SCALES, {"QLut": 1}),
    "hardswish": (f"{SAME} {{ {HEAD} r = HardSwish(d) {TAIL} }}", UNARY_SCALES, {"QLut": 1}),
    "silu": (f"{SAME} {{ {HEAD} e = Sigmoid(d) r = Mul(e, d) {TAIL} }}", UNARY_SCALES, {"QLut": 1}),
    "silu_rounded_inside": (
        f"{SAME} {{ {HEAD} e = Sigmoid(d) eq = QuantizeLinear(e, se, ze) ed = DequantizeLinear(eq, se, ze) r = Mul(d, ed) {TAIL} }}",
        {**UNARY_SCALES, "se": 1 / 256, "ze": U8(0)},
        {"QLut": 1},
    ),
    "gelu_in_pieces": (
        f"{SAME} {{ {HEAD} a = Div(d, two) e = Erf(a) f = Add(e, one) g = Mul(d, f) r = Mul(g, half) {TAIL} }}",
        {**UNARY_SCALES, "two": 1.4142135, "one": 1.0, "half": 0.5},
        {"QLut": 1},
    ),
    "requantize": (f"{SAME} {{ {HEAD} r = Identity(d) {TAIL} }}", {"s": 0.02, "z": Z, "t": 0.03}, {"QLut": 1}),
    "nothing": (f"{SAME} {{ {HEAD} r = Identity(d) {TAIL} }}", {"s": 0.02, "z": Z, "t": 0.02}, {}),
    "slice_pad": (
        f"(float[1,3,8,8] x) => (float[1,5,4,8] y) {{ {HEAD} e = Slice(d, b, e0, a) "
        f"eq = QuantizeLinear(e, s, z) ed = DequantizeLinear(eq, s, z) "
        f"r = Pad(ed, pads, v) {TAIL} }}",
        {
            "s": 0.02,
            "z": Z,
            "t": 0.03,
            "v": 0.0,
            "b": np.array([2]),
            "e0": np.array([6]),
            "a": np.array([2]),
            "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
        },
        {"Slice": 1, "Pad": 1, "QLut": 1},
    ),
    "split": (
        f"(float[1,4,8,8] x) => (float[1,2,8,8] y) {{ {HEAD} e, f = Split<axis: int = 1, num_outputs: int = 2>(d) r = Add(e, f) {TAIL} }}",
        {"s": 0.02, "z": Z, "t": 0.03},
        {"Split": 1, "QAdd": 1},
    ),
}


def _feed(text: str) -> np.ndarray:
    dims = text[text.index("[") + 1 : text.index("]")]
    return images(*(int(d) for d in dims.split(",")))


@pytest.mark.parametrize("signed", [False, True], ids=["uint8", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_fuses_and_computes_the_same(name: str, signed: bool) -> None:
    text, constants, expected = CASES[name]
    if signed:
        moved = {k: (v.astype(np.int16) - 128).astype(I8) for k, v in constants.items() if k in ("z", "zc", "ze")}
        constants = {**constants, **moved}
    model = make(text, **constants)
    x = _feed(text)
    expected_output = reference(model, x=x)[0]
    fused_model = prepared(model)
    report = fuse(fused_model)
    ends = ENDS if model.graph.node[-1].op_type == "DequantizeLinear" else {"QuantizeLinear": 1}
    assert ops(fused_model) == {**ends, **expected}
    assert report.misses == []
    output = fused.run(fused_model, {"x": x})[0]
    assert output.shape == expected_output.shape
    error = np.abs(output - expected_output)
    if "DequantizeLinear" not in ends:
        np.testing.assert_allclose(output, expected_output, rtol=1e-4, atol=1e-4 * np.abs(expected_output).max())
        return
    step = float(np.max(constants["t"]))
    assert error.max() <= step * 1.001, "more than one code apart"
    # Sums of equal scales meet many ties, which the fused form rounds as ONNX Runtime does; a bias in other units is rounded.
    assert (error > step / 2).mean() <= (0.05 if "QAdd" in expected or "QConvAdd" in expected or "bias" in name else 0.002)
    assert len(np.unique(output)) > 2


@pytest.mark.parametrize("name", ["conv_relu", "matmul_add_relu", "add", "conv_add"])
def test_relu_becomes_a_bound(name: str) -> None:
    text, constants, _ = CASES[name]
    model = prepared(make(text, **constants))
    fuse(model)
    (node,) = (n for n in model.graph if n.op_type.startswith("Q") and n.domain == "ai.qrt")
    assert node.attributes["qmin"].as_int() == 120
    assert node.attributes["qmax"].as_int() == 255


def test_clip_becomes_two_bounds() -> None:
    text, constants, _ = CASES["conv_relu6"]
    model = prepared(make(text, **constants))
    fuse(model)
    (node,) = (n for n in model.graph if n.op_type == "QConv")
    assert (node.attributes["qmin"].as_int(), node.attributes["qmax"].as_int()) == (120, 150)


def test_codes_keep_their_names() -> None:
    text, constants, _ = CASES["conv"]
    model = prepared(make(text, **constants))
    fuse(model)
    assert [v.name for node in model.graph for v in node.outputs] == ["q", "p", "y"]
    names = [node.name for node in model.graph]
    assert len(set(names)) == 3
    assert any("Conv" in (name or "") for name in names)


# name → (graph, constants, operator that stays, a part of the reason)
MISSES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "float_input": (f"{IMAGE} {{ {WEIGHT} y = Conv<{PAD}>(x, w) }}", CONV, "Conv", "'x' is float"),
    "float_weight": (
        f"{IMAGE} {{ {HEAD} y = Conv<{PAD}>(d, w) }}",
        {**CONV, "w": images(4, 3, 3, 3)},
        "Conv",
        "'w' is float",
    ),
    "wrong_axis": (
        f"{IMAGE} {{ {HEAD} w = DequantizeLinear<axis: int = 1>(wq, ws) r = Conv<{PAD}>(d, w) {TAIL} }}",
        {**CONV, "ws": np.full(3, 0.01, F32)},
        "Conv",
        "axis 1",
    ),
    "blocked_weight": (
        f"(float[2,8] x) => (float[2,4] y) {{ {HEAD} "
        f"w = DequantizeLinear<axis: int = 0, block_size: int = 4>(wq, ws) r = MatMul(d, w) {TAIL} }}",
        {**CONV, "wq": codes(8, 4), "ws": np.full((2, 4), 0.01, F32)},
        "MatMul",
        "block by block",
    ),
    "16_bits": (
        f"{IMAGE} {{ {HEAD} {WEIGHT} r = Conv<{PAD}>(d, w) {TAIL} }}",
        {**CONV, "z": np.uint16(30000), "s": 0.0002, "t": 0.0002},
        "Conv",
        "quint16",
    ),
    "per_channel_activation": (
        f"{IMAGE} {{ {HEAD} {WEIGHT} y = Conv<{PAD}>(d, w) }}",
        {**CONV, "s": np.full(3, 0.02, F32), "z": np.full(3, 120, U8)},
        "Conv",
        "scale per channel",
    ),
    "computed_scale": (
        f"{IMAGE} {{ n = ReduceMax<keepdims: int = 0>(x) q = QuantizeLinear(x, n, z) d = DequantizeLinear(q, n, z) {WEIGHT} "
        f"y = Conv<{PAD}>(d, w) }}",
        CONV,
        "Conv",
        "computed at run time",
    ),
    "transposed_first_input": (
        f"(float[8,2] x) => (float[2,4] y) {{ {HEAD} "
        f"w = DequantizeLinear<axis: int = 1>(wq, ws, wz) r = Gemm<transA: int = 1>(d, w) {TAIL} }}",
        {**CONV, "wq": codes(8, 4)},
        "Gemm",
        "transposed",
    ),
    "alpha": (
        f"(float[2,8] x) => (float[2,4] y) {{ {HEAD} "
        f"w = DequantizeLinear<axis: int = 1>(wq, ws, wz) r = Gemm<alpha: float = 0.5>(d, w) {TAIL} }}",
        {**CONV, "wq": codes(8, 4)},
        "Gemm",
        "alpha",
    ),
    "sum_read_in_float": (
        f"{SAME} {{ {HEAD} {TURN} r = Add(d, e) {TAIL.replace('y =', 'u =')} y = Sub(u, r) }}",
        {"s": 0.02, "z": Z, "t": 0.03},
        "Add",
        "read more than once",
    ),
    "sum_is_an_output": (
        f"(float[1,3,8,8] x) => (float[1,3,8,8] y, float[1,3,8,8] r) {{ {HEAD} {TURN} r = Add(d, e) {TAIL} }}",
        {"s": 0.02, "z": Z, "t": 0.03},
        "Add",
        "graph output",
    ),
    "pads_with_no_code": (
        f"(float[1,3,8,8] x) => (float[1,5,8,8] y) {{ {HEAD} y = Pad(d, pads, v) }}",
        {"s": 0.02, "z": Z, "v": 0.013, "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0])},
        "Pad",
        "no code",
    ),
    "sigmoid_without_end": (f"{SAME} {{ {HEAD} y = Sigmoid(d) }}", {"s": 0.02, "z": Z}, "Sigmoid", "graph output"),
    "zero_scale": (f"{SAME} {{ {HEAD} r = Add(d, d) {TAIL} }}", {"s": 0.0, "z": Z, "t": 0.02}, "Add", "not finite and positive"),
}


@pytest.mark.parametrize("name", MISSES)
def test_says_why_not(name: str) -> None:
    text, constants, op_type, reason = MISSES[name]
    model = make(text, **constants)
    fused_model = prepared(model)
    report = fuse(fused_model)
    (miss,) = (m for m in report.misses if m.op_type == op_type)
    assert reason in miss.reason
    assert report.why[miss.node] == miss.reason
    x = _feed(text)
    if name != "zero_scale":
        np.testing.assert_allclose(fused.run(fused_model, {"x": x})[0], reference(model, x=x)[0], rtol=1e-3, atol=1e-4)


def test_int8_graph_inputs_and_outputs_stay_int8() -> None:
    text = f"(int8[1,8,8,3] q) => (int8[1,4,8,8] p) {{ m = Transpose<perm: ints = [0,3,1,2]>(q) d = DequantizeLinear(m, s, z) {WEIGHT} "
    text += f"c = Conv<{PAD}>(d, w) p = QuantizeLinear(c, t, z) }}"
    model = make(text, **{**CONV, "z": I8(-8)})
    fused_model = prepared(model)
    fuse(fused_model)
    assert ops(fused_model) == {"Transpose": 1, "FlipSign": 2, "QConv": 1}
    x = codes(1, 8, 8, 3)
    output, expected = fused.run(fused_model, {"q": x})[0], reference(model, q=x)[0]
    assert output.dtype == np.int8
    assert fused_model.outputs[0].name == "p"
    np.testing.assert_array_equal(output, expected)


def test_codes_that_are_an_output_in_the_middle_stay_one() -> None:
    text, constants, _ = CASES["conv_relu"]
    text = text.replace("(float[1,4,8,8] y)", "(float[1,4,8,8] y, uint8[1,3,8,8] q)")
    model = make(text, **constants)
    fused_model = prepared(model)
    fuse(fused_model)
    x = images(1, 3, 8, 8)
    for output, expected in zip(fused.run(fused_model, {"x": x}), reference(model, x=x), strict=True):
        np.testing.assert_array_equal(output, expected)


def test_a_body_that_reads_a_float_result_keeps_it() -> None:
    text = f"(float[1,3,8,8] x, bool k) => (float[1,3,8,8] y, float[1,3,8,8] v) {{ {HEAD} {TURN} r = Add(d, e) {TAIL} "
    text += (
        "v = If(k) <then_branch = g1 () => (float[1,3,8,8] a) { a = Neg(r) }, else_branch = g2 () => (float[1,3,8,8] b) { b = Abs(r) }> }"
    )
    fused_model = prepared(make(text, s=0.02, z=Z, t=0.03))
    report = fuse(fused_model)
    assert "If" in ops(fused_model)
    (miss,) = report.misses
    assert (miss.op_type, miss.rule) == ("Add", "int8 sum or product")
    assert "Add" in ops(fused_model)


def test_fusing_twice_changes_nothing() -> None:
    text, constants, _ = CASES["conv_add"]
    model = prepared(make(text, **constants))
    fuse(model)
    before = ops(model)
    assert fuse(model).fused == {}
    assert ops(model) == before
