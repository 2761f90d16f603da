"""Models of float16 and bfloat16, computed in float32: the pass, and what sessions make of it, beside onnx.reference and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from cnn import BATCHES, FUSED, X, fused_ops, proto
from device.test_transformer import HEADS, feeds, weights
from graphs import make, ops
from halves import halved
from lowered import check_node, run_model
from onnx import TensorProto, parser
from onnx.reference import ReferenceEvaluator
from passes import runtime

import qrt
from benchmarks.minilm import encoder
from qrt.artifact import CompiledModel
from qrt.graph import Model, all_graphs, ir
from qrt.graph.passes import prepare
from qrt.graph.passes.widen_halves import HALVES, widen_halves
from qrt.loaders import load
from qrt.report.inspect import inspect_model

RNG = np.random.default_rng(0)
F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
ONE = "15360"  # 1 as the bits of a float16, which is how text holds one


def half(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float16)


def only_casts_have_16_bits(model: Model) -> bool:
    """Whether nothing but a Cast reads or makes 16 bits, bodies included."""
    for graph in all_graphs(model.graph):
        for node in graph:
            values = [value for value in (*node.inputs, *node.outputs) if value is not None]
            if node.op_type != "Cast" and any(value.dtype in HALVES for value in values):
                return False
    return all(value.dtype not in HALVES for graph in all_graphs(model.graph) for value in graph.initializers.values())


def check(model: onnx.ModelProto, feeds: dict[str, np.ndarray], rtol: float = 2e-3, atol: float = 2e-3) -> Model:
    """The prepared model, which computes in float32 and gives what onnx.reference does, in the same dtypes."""
    prepared = prepare(load(model))
    assert only_casts_have_16_bits(prepared)
    assert not widen_halves(prepared)
    assert [(v.name, v.dtype) for v in prepared.inputs] == [(v.name, v.dtype) for v in load(model).inputs]
    assert [(v.name, v.dtype) for v in prepared.outputs] == [(v.name, v.dtype) for v in load(model).outputs]
    onnx.checker.check_model(prepared.to_proto())
    with np.errstate(all="ignore"):
        wanted = ReferenceEvaluator(model).run(None, feeds)
    found = qrt.InferenceSession(model, num_threads=1).run(None, feeds)
    for ours, theirs in zip(found, map(np.asarray, wanted), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if ours.dtype in (F16, BF16):
            ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
        np.testing.assert_allclose(ours, theirs, rtol, atol)
    return prepared


# -- the pass -----------------------------------------------------------------------------------------------------------------
def test_casts_stand_at_the_ends_alone() -> None:
    text = "(float16[2, 8] x) => (float16[2, 4] y) { a = MatMul(x, w) b = Add(a, c) y = Relu(b) }"
    prepared = check(make(text, w=half(8, 4), c=half(4)), {"x": half(2, 8)})
    assert ops(prepared) == {"Cast": 2, "MatMul": 1, "Add": 1, "Relu": 1}
    weight = prepared.graph.initializers["w"].const_value
    assert weight is not None
    assert weight.dtype == ir.DataType.FLOAT


def test_constants_are_what_they_were() -> None:
    w = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    w = w[np.isfinite(w)]
    model = make(f"(float16[1] x) => (float16[{w.size}] y) {{ y = Mul(w, x) }}", w=w)
    (y,) = qrt.InferenceSession(model).run(None, {"x": np.ones(1, np.float16)})
    np.testing.assert_array_equal(y.view(np.uint16), w.view(np.uint16))


def test_a_model_without_16_bits_stays_as_it_is() -> None:
    model = prepare(load(make("(float[2] x) => (float[2] y) { y = Relu(x) }")))
    assert not widen_halves(model)
    assert ops(model) == {"Relu": 1}


def test_the_given_model_stays_as_it_is() -> None:
    model = load(make("(float16[2] x) => (float16[2] y) { y = Add(x, w) }", w=half(2)))
    before = model.to_proto().SerializeToString(deterministic=True)
    prepare(model)
    assert model.to_proto().SerializeToString(deterministic=True) == before


def test_weights_stored_in_16_bits_become_constants() -> None:
    """As language models are often kept: each weight has a Cast to float32 of its own."""
    text = "(float[2, 8] x) => (float[2, 4] y) { wide = Cast <to = 1> (w) y = MatMul(x, wide) }"
    for dtype in (F16, BF16):
        prepared = check(make(text, w=RNG.standard_normal((8, 4)).astype(dtype)), {"x": RNG.standard_normal((2, 8)).astype(np.float32)})
        assert ops(prepared) == {"MatMul": 1}


BODIES = [
    (
        "(bool c, float16[3] x) => (float16[3] y) { y = If (c) <then_branch = t () => (float16[3] a) { a = Mul(x, x) }, "
        f"else_branch = e () => (float16[3] b) {{ k = Constant <value = float16[1] {{{ONE}}}> () b = Add(x, k) }}> }}",
        {"c": np.array(False), "x": half(3)},
    ),
    (
        "(bool c, float16[1] x) => (float16[1] y) { y = If (c) <then_branch = t () => (float16[1] a) "
        f"{{ a = Constant <value = float16[1] {{{ONE}}}> () }}, else_branch = e () => (float16[1] b) {{ b = Identity(x) }}> }}",
        {"c": np.array(True), "x": half(1)},
    ),
    (
        "(int64 n, bool c, float16[3] x) => (float16[3] y, float16[M, 3] z) { y, z = Loop (n, c, x) <body = b (int64 i, bool ci, "
        "float16[3] s) => (bool co, float16[3] so, float16[3] sc) { co = Identity(ci) so = Add(s, x) sc = Mul(s, s) }> }",
        {"n": np.array(4), "c": np.array(True), "x": half(3)},
    ),
    (
        "(float16[3] s0, float16[5, 3] x) => (float16[3] y, float16[5, 3] z) { y, z = Scan <num_scan_inputs = 1, body = b (float16[3] s, "
        "float16[3] xi) => (float16[3] so, float16[3] sc) { so = Add(s, xi) h = Cast <to = 1> (so) sc = Cast <to = 10> (h) }> (s0, x) }",
        {"s0": half(3), "x": half(5, 3)},
    ),
]


@pytest.mark.parametrize(("text", "feeds"), BODIES)
def test_bodies(text: str, feeds: dict[str, np.ndarray]) -> None:
    check(make(text), feeds)


def test_functions() -> None:
    graph = "agraph (float16[3] x) => (float16[3] y) { y = own.twice(x) }"
    body = f"twice (a) => (b) {{ one = Constant <value = float16[1] {{{ONE}}}> () c = Add(a, one) b = Add(c, c) }}"
    text = f'<ir_version: 10, opset_import: ["" : 21, "own" : 1]> {graph} <domain: "own", opset_import: ["" : 21]> {body}'
    check(parser.parse_model(text), {"x": half(3)})


def test_sequences_within_bodies() -> None:
    body = "t () => (float16[6] a) { s = SequenceConstruct(x, x) a = ConcatFromSequence <axis = 0> (s) }"
    other = "e () => (float16[6] b) { b = Concat <axis = 0> (x, x) }"
    text = f"(bool c, float16[3] x) => (float16[6] y) {{ y = If (c) <then_branch = {body}, else_branch = {other}> }}"
    for branch in (True, False):
        check(make(text), {"c": np.array(branch), "x": half(3)})


def test_initializers_that_a_body_gives() -> None:
    text = "(bool c, float16[2] x) => (float16[2] y) { y = If (c) <then_branch = t () => (float16[2] a) { d = Neg(x) }, "
    model = make(text + "else_branch = e () => (float16[2] b) { b = Neg(x) }> }")
    model.graph.node[0].attribute[0].g.initializer.append(onnx.numpy_helper.from_array(half(2), "a"))
    for branch in (True, False):
        check(model, {"c": np.array(branch), "x": half(2)})


def test_nodes_keep_their_names() -> None:
    text = "(float16[3] x) => (float16[3] y) { a = Relu(x) y = Softmax(a) }"
    assert [node.name for node in prepare(load(make(text))).graph] == ["Cast_x_float32", "Relu_a", "Softmax_y", "Cast_y_float16"]


def test_nodes_that_need_the_bits() -> None:
    text = "(float16[3] x) => (int16[3] b, float16[3] y) { a = Neg(x) b = BitCast <to = 5> (a) c = BitCast <to = 10> (b) y = Neg(c) }"
    model, x = make(text, 26), half(3)
    (bits, y), why = run_model(model, {"x": x})
    np.testing.assert_array_equal(bits, (-x).view(np.int16))
    np.testing.assert_array_equal(y, x)
    assert set(why) == {"BitCast_b", "BitCast_c"}
    assert not widen_halves(prepare(load(model)))


NAMED = [
    ("(int64[2] s, float16[1] x) => (float16[A, B] y) { a = ConstantOfShape <value = float16[1] {15872}> (s) y = Add(a, x) }", 21),
    ("(int64[2] s, float16[1] x) => (float16[3, 3] y) { a = EyeLike <dtype = 10> (i) y = Add(a, x) }", 21),
    ("(int64[2] s, float16[1] x) => (float16[9] y) { n = Constant <value = int64 {9}> () a = HannWindow <output_datatype = 10> (n) "
     "y = Add(a, x) }", 21),
    ("(int64[2] s, float16[1] x) => (float16[2] y) { f = Cast <to = 1> (s) h = CastLike(f, x) y = Sqrt(h) }", 21),
    ("(int64[2] s, float16[1] x) => (int64[1] y) { t = Mul(x, x) y = CastLike(t, s) }", 21),
    ("(int64[2] s, float16[1] x) => (float16[2] y) { k = Cast <to = 3> (s) y = DequantizeLinear <output_dtype = 10> (k, c) }", 23),
]  # fmt: skip


@pytest.mark.parametrize(("text", "opset"), NAMED)
def test_attributes_that_name_a_dtype(text: str, opset: int) -> None:
    constants = {"i": np.zeros((3, 3), np.int64), "c": np.array(0.25, np.float32)}
    used = {name: array for name, array in constants.items() if f"({name})" in text or f", {name})" in text}
    check(make(text, opset, **used), {"s": np.array([2, 3]), "x": np.array([3.5], np.float16)})


def test_what_passes_through() -> None:
    check(make("(float16[3] x) => (float16[3] y, float16[3] z) { y = Identity(x) z = Relu(x) }"), {"x": half(3)})
    check(make("(float16[3] x) => (float[3] y, float16[3] z) { y = Cast <to = 1> (x) z = Cast <to = 10> (y) }"), {"x": half(3)})
    model = make("(float16[3] x) => (float16[3] k, float16[3] z) { z = Add(x, k) }", k=half(3))
    given = half(3)
    for ours, theirs in zip(
        qrt.InferenceSession(model).run(None, {"x": given}), ReferenceEvaluator(model).run(None, {"x": given}), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


OPERATORS = [
    ("Softmax", [half(3, 40)], {}),
    ("LayerNormalization", [half(2, 8), half(8), half(8)], {}),
    ("CumSum", [half(40), np.array(0)], {}),
    ("Clip", [half(40), np.array(-0.5, np.float16), np.array(0.25, np.float16)], {}),
    ("ReduceMean", [half(3, 40)], {"keepdims": 0}),
    ("Conv", [half(1, 3, 9, 9), half(4, 3, 3, 3), half(4)], {}),
    ("AveragePool", [half(1, 3, 9, 9)], {"kernel_shape": [2, 2]}),
    ("Gemm", [half(3, 5), half(5, 7), half(7)], {"alpha": 0.5}),
    ("Gelu", [half(3, 5)], {}),
    ("Pow", [np.abs(half(3, 5)), np.array(2.5, np.float16)], {}),
    ("Where", [RNG.random(40) < 0.5, half(40), half(40)], {}),
    ("ArgMax", [half(3, 40)], {"axis": 1}),
    ("Gather", [half(9, 4), np.array([2, 0])], {}),
    ("Concat", [half(3, 4), half(2, 4)], {"axis": 0}),
]


@pytest.mark.parametrize(("op_type", "inputs", "attributes"), OPERATORS, ids=[name for name, _, _ in OPERATORS])
def test_operators_have_kernels(op_type: str, inputs: list[np.ndarray], attributes: dict[str, object]) -> None:
    constants = (1, 2) if op_type in ("Conv", "Gemm") else ()
    check_node(op_type, inputs, constants, rtol=4e-3, atol=1e-2, **attributes)  # type: ignore[arg-type]


# -- where rounding stays -------------------------------------------------------------------------------------------------------
def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    found, why = run_model(model, feeds)
    assert not why
    return found


def expected(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, feeds)]


EDGES = np.array([1.0001, 2049, 70000, -1e9, 1e-9, 0.1, np.nan, -np.inf], np.float32)


@pytest.mark.parametrize("to", [10, 16])
def test_casts_of_the_model_round(to: int) -> None:
    text = f"(float[8] x) => (float[8] y, float[8] z) {{ a = Cast <to = {to}> (x) y = Cast <to = 1> (a) b = Neg(a) z = Cast <to = 1> (b) }}"
    y, z = run(make(text), x=EDGES)
    with np.errstate(over="ignore"):
        rounded = EDGES.astype(F16 if to == 10 else BF16).astype(np.float32)
    np.testing.assert_array_equal(y, rounded)
    np.testing.assert_array_equal(z, -rounded)


def test_what_is_cast_for_each_reader_is_rounded_once() -> None:
    nodes = "".join(f"c{k} = Cast <to = 10> (x) m{k} = MatMul(c{k}, w{k}) y{k} = Cast <to = 1> (m{k}) " for k in range(3))
    outputs = ", ".join(f"float[2, 4] y{k}" for k in range(3))
    model = make(f"(float[2, 8] x) => ({outputs}) {{ {nodes} }}", **{f"w{k}": half(8, 4) for k in range(3)})
    prepared = check(model, {"x": RNG.standard_normal((2, 8)).astype(np.float32)}, atol=1e-2)
    assert ops(prepared) == {"Cast": 2, "MatMul": 3}


def test_casts_of_integers_round() -> None:
    text = "(int64[5] n, uint8[3] b) => (float[5] y, float[3] z) { a = Cast <to = 10> (n) c = Abs(a) y = Cast <to = 1> (c) "
    model = make(text + "d = Cast <to = 16> (b) e = Abs(d) z = Cast <to = 1> (e) }")
    feeds = {"n": np.array([0, 2048, 2049, -70000, 70000]), "b": np.array([0, 129, 255], np.uint8)}
    for ours, theirs in zip(run(model, **feeds), expected(model, **feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # A byte is a number of 16 bits: that Cast need not round.
    assert sum(node.op_type == "Cast" and node.outputs[0].dtype in HALVES for node in prepare(load(model)).graph) == 1


def test_what_decides_is_rounded_before() -> None:
    """0.1 · 10 is 1 in float16, and less in float32: ONNX Runtime decides by the latter."""
    decide = "f = Floor(b) r = Ceil(b) i = Cast <to = 7> (b) e = Equal(b, one) l = Less(b, one) z = Cast <to = 9> (tiny) n = IsInf(big)"
    text = (
        "(float16[2] x) => (float16[2] f, float16[2] r, int64[2] i, bool[2] e, bool[2] l, bool[2] z, bool[2] n) "
        f"{{ b = Mul(x, ten) tiny = Mul(x, small) big = Mul(x, large) {decide} }}"
    )
    constants = {"ten": 10, "one": 1, "small": 1e-7, "large": 60000}
    model = make(text, **{name: np.array(number, np.float16) for name, number in constants.items()})
    x = np.array([0.1, 1.5], np.float16)
    for ours, theirs in zip(run(model, x=x), expected(model, x=x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert runtime(model, {"x": x})[0].tolist() != expected(model, x=x)[0].tolist()


def test_results_of_nodes_are_not_rounded() -> None:
    """As in ONNX Runtime: 60000 · 60000 is infinite in float16, and its root is not."""
    model = make("(float16[2] x) => (float16[2] y) { a = Mul(x, x) y = Sqrt(a) }")
    x = np.array([60000, 1e-4], np.float16)
    np.testing.assert_array_equal(run(model, x=x)[0], x)
    np.testing.assert_array_equal(runtime(model, {"x": x})[0], x)
    assert expected(model, x=x)[0].tolist() == [np.inf, 0]
    # At the end it is.
    model = make("(float16[2] x) => (float16[2] y) { y = Mul(x, x) }")
    assert run(model, x=x)[0].tolist() == [np.inf, 0]


# -- codes ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [0.0313, 0.05, 0.25])
def test_codes_are_onnx_runtimes(scale: float) -> None:
    """Which divides in float32, as its int8 kernels do; onnx.reference divides in float16, which makes ties of what was none."""
    model = make(
        "(float16[4096] x) => (uint8[4096] q, float16[4096] d) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) }",
        s=np.array(scale, np.float16),
        z=np.array(128, np.uint8),
    )
    x = (RNG.standard_normal(4096) * 4).astype(np.float16)
    q, d = run(model, x=x)
    codes, reals = runtime(model, {"x": x})
    np.testing.assert_array_equal(q, codes)
    np.testing.assert_array_equal(d, reals)
    reference, _ = expected(model, x=x)
    differs = q != reference
    assert np.abs(q.astype(int) - reference.astype(int)).max() <= 1
    ties = np.abs(np.abs((x / np.float16(scale)).astype(np.float32)) % 1 - 0.5) < 1e-6
    assert not differs[~ties].any()


@pytest.mark.parametrize(("dtype", "text"), [(ml_dtypes.int4, "axis = 0, block_size = 32"), (np.int8, "axis = 1")])
def test_weights_of_few_bits_with_scales_of_16(dtype: type, text: str) -> None:
    """As language models are kept; more precise than ONNX Runtime, which quantizes the activations too."""
    w = RNG.integers(-8, 8, (64, 32)).astype(dtype)
    s = (np.abs(half(2, 32) if dtype is not np.int8 else half(32)) / 16).astype(np.float16)
    model = make(f"(float16[4, 64] x) => (float16[4, 32] y) {{ d = DequantizeLinear <{text}> (w, s) y = MatMul(x, d) }}", w=w, s=s)
    x = half(4, 64)
    np.testing.assert_allclose(run(model, x=x)[0], expected(model, x=x)[0], 2e-3, 1e-2)


def test_a_precision_that_is_asked_for() -> None:
    text = "(float16[4096] x) => (uint8[4096] q) {{ q = QuantizeLinear <precision = {}> (x, s, z) }}"
    constants = {"s": np.array(0.0313, np.float16), "z": np.array(128, np.uint8)}
    x = (RNG.standard_normal(4096) * 4).astype(np.float16)
    for precision in (1, 10):
        model = make(text.format(precision), 23, **constants)
        found, why = run_model(model, {"x": x})
        np.testing.assert_array_equal(found[0], expected(model, x=x)[0])
        assert bool(why) == (precision == 10)


def network(dtype: np.dtype = F16) -> onnx.ModelProto:
    """That of the tests of quantization; from opset 22 on a convolution may be one of bfloat16."""
    model = halved(proto(), TensorProto.FLOAT16 if dtype == F16 else TensorProto.BFLOAT16)
    model.opset_import[0].version = 22
    return model


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_a_network_is_quantized_kept_and_compiled(dtype: np.dtype, tmp_path: Path, plans: Path) -> None:
    x, path = X.astype(dtype), tmp_path / "m.onnx"
    onnx.save(network(dtype), path)
    (wanted,) = qrt.InferenceSession(proto()).run(None, {"x": x.astype(np.float32)})
    first = qrt.InferenceSession(path)
    (y,) = first.run(None, {"x": x})
    assert y.dtype == dtype
    assert first.get_inputs()[0].type == f"tensor({dtype})"
    np.testing.assert_allclose(y.astype(np.float32), wanted, 0.02, 0.02)
    again = qrt.InferenceSession(path)
    assert isinstance(again._executable, CompiledModel)
    assert again.run(None, {"x": x})[0].tobytes() == y.tobytes()
    qrt.compile(path, tmp_path / "m.qrt", {"x": x.shape})
    assert qrt.InferenceSession(tmp_path / "m.qrt").run(None, {"x": x})[0].tobytes() == y.tobytes()

    int8 = qrt.quantize(load(path), [{"x": batch.astype(dtype)} for batch in BATCHES], progress=False)
    assert [v.dtype for v in (*int8.inputs, *int8.outputs)] == [f"tensor({dtype})"] * 2
    (z,) = qrt.InferenceSession(int8).run(None, {"x": x})
    np.testing.assert_allclose(z.astype(np.float32), wanted, 0, 0.1)
    assert fused_ops(int8) == FUSED | {"Cast": 2}
    if dtype == F16:
        np.testing.assert_allclose(z, runtime(int8.to_proto(), {"x": x})[0], 2e-3, 2e-2)


def test_inspect_says_why() -> None:
    why = {node.name: node.why for node in inspect_model(load(network()))}
    assert why["Cast_x_float32"] == "'x' is float16: qrt computes in float32"
    assert why["Cast_y_float16"] == "'y' is float16: qrt computes in float32"


def test_a_transformer() -> None:
    """Norms and Gelu spelled out, whose constants were rounded, and the mask of an attention."""
    model, given = halved(encoder(weights(), HEADS)), feeds(11, 7)
    (found,) = run(model, **given)
    (exact,) = run(encoder(weights(), HEADS), **given)
    for wanted in (runtime(model, given)[0], expected(model, **given)[0], exact):
        np.testing.assert_allclose(found.astype(np.float32), wanted.astype(np.float32), 0.02, 0.02)


# -- feeds ------------------------------------------------------------------------------------------------------------------------
def test_feeds_have_to_fit() -> None:
    for dtype, to in ((F16, TensorProto.FLOAT16), (BF16, TensorProto.BFLOAT16)):
        session = qrt.InferenceSession(halved(make("(float[2] x) => (float[2] y) { y = Relu(x) }"), to))
        module = "numpy" if dtype == F16 else "ml_dtypes"
        with pytest.raises(qrt.InvalidInput, match=rf"dtype float32: the model takes {dtype}; convert it with .astype\({module}.{dtype}\)"):
            session.run(None, {"x": np.ones(2, np.float32)})
        (y,) = session.run(None, {"x": [-1.5, 2]})
        assert (y.dtype, y.tolist()) == (dtype, [0, 2])
        (y,) = session.run(None, {"x": np.array([1, 9, -1, 9], dtype)[::2]})
        assert y.tolist() == [1, 0]


def test_old_opsets() -> None:
    """Opset 7 has the bounds of a Clip and the axes of a mean in attributes."""
    model = make(
        "(float16[2, 3] x) => (float16[2] y) { a = Clip <min = -0.5, max = 0.5> (x) y = ReduceMean <axes = [1], keepdims = 0> (a) }", 7
    )
    check(model, {"x": half(2, 3)})
