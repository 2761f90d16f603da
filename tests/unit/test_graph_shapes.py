"""Shapes that are learned, and what is folded because it is known."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper, parser
from passes import Arrays, check_same, ops, proto, runtime, shape

from qrt.core.errors import ModelError
from qrt.graph import constant, ir, new_initializer
from qrt.graph.passes import PASSES
from qrt.graph.passes._node_types import infer_node
from qrt.graph.passes.drop_dead import drop_dead
from qrt.graph.passes.fold_constants import fold_constants
from qrt.graph.passes.fold_shapes import fold_shapes
from qrt.graph.passes.infer_shapes import check_types, infer_shapes
from qrt.loaders import load

# ---- infer_shapes


def test_shapes_and_symbols_are_learned() -> None:
    model = load(
        proto(
            "g (float[N,3,8,8] x) => (y) { c = Conv (x, w) p = GlobalAveragePool (c) y = Flatten (p) }", w=np.ones((5, 3, 3, 3), np.float32)
        )
    )
    assert shape(model, "c") == ["N", 5, 6, 6]
    assert shape(model, "y") == ["N", 5]
    assert model.outputs[0].dtype == "tensor(float)"


def test_inference_wins_over_what_a_file_claims() -> None:
    model = load(proto("g (float[2,3] x) => (float[9,9] y) <float[7] a> { a = Relu (x) y = Neg (a) }"))
    assert shape(model, "a") == [2, 3]
    assert model.outputs[0].shape == (2, 3)


def test_a_claim_stands_where_nothing_is_inferred() -> None:
    model = load(proto("g (float[2,3] x, int64[2] s) => (float[K,6] y) { y = Reshape (x, s) }"))
    assert model.outputs[0].shape == ("K", 6)


def test_branches_of_different_shapes_have_the_common_one() -> None:
    text = """g (float[2,3] x, bool c) => (y) { y = If (c) <
        then_branch = t () => (a) { a = Relu (x) }, else_branch = e () => (b) { b = Concat <axis = 1> (x, x) }> }"""
    before = proto(text)
    for attribute in before.graph.node[0].attribute:
        attribute.g.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    assert shape(load(before), "y") == [2, None]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("nothing", [2, 6]),
        ("the target", [3, 4]),
        ("an attribute", [2, 3, 2]),
        ("the input", [4, 6]),
        ("what was learned", [2, 6]),
        ("the operator", [2, 3, 2]),
    ],
)
def test_a_node_is_inferred_again_when_anything_about_it_changed(change: str, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(proto("g (float[2,3,2] x) => (y) { y = Reshape <allowzero = 1> (x, s) }", s=np.array([2, 6])))
    asked: list[object] = []
    module = importlib.import_module("qrt.graph.passes.infer_shapes")
    monkeypatch.setattr(module, "infer_node", lambda *given: asked.append(given) or infer_node(*given))
    model = model.clone()  # a clone knows what its original does
    (node,), (x,) = model.graph, model.graph.inputs
    match change:
        case "the target":
            node.replace_input_with(1, new_initializer(model.graph, "t", np.array([3, 4])))
        case "an attribute":
            node.attributes.clear()
            node.replace_input_with(1, new_initializer(model.graph, "t", np.array([2, 0, 2])))
        case "the input":
            x.shape = ir.Shape([4, 3, 2])
            node.replace_input_with(1, new_initializer(model.graph, "t", np.array([4, 6])))
        case "what was learned":
            node.outputs[0].shape = None
        case "the operator":
            node.op_type = "Identity"
            node.attributes.clear()
            node.resize_inputs(1)
            node.outputs[0].shape = None
    assert infer_shapes(model) == (change != "nothing")
    assert len(asked) == (change != "nothing")
    assert shape(model, "y") == expected
    assert not infer_shapes(model)
    assert len(asked) == (change != "nothing")


LOOP = """g (int64 n, bool c, float[2,3] x) => (y, s) {{ y, s = Loop (n, c, x) <
    body = b (int64 i, bool k, v) => (bool k2, {made}, z) {{ k2 = Identity (k) w = {op} z = ReduceSum <keepdims = 0> (w) }}> }}"""


@pytest.mark.parametrize(
    ("op", "made", "expected"),
    [("Relu (v)", "w", [2, 3]), ("Concat <axis = 0> (v, v)", "w", [None, None]), ("Unsqueeze (v, zero)", "w", None)],
)
def test_a_loop_keeps_the_shape_that_its_body_keeps(op: str, made: str, expected: list[int | None] | None) -> None:
    before = parser.parse_model('<ir_version: 8, opset_import: ["" : 21]>\n' + LOOP.format(op=op, made=made))
    before.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "zero"))
    model = load(before)
    assert shape(model, "y") == expected
    assert shape(model, "s") == (None if expected is None else [None])
    if expected is None:
        with pytest.raises(ModelError, match="rank of value 'y'"):
            check_types(model)


def test_a_scan_takes_its_axis_off_and_puts_it_on() -> None:
    before = parser.parse_model("""<ir_version: 8, opset_import: ["" : 21]>
        g (float[4] h, float[T,4] x) => (hn, y) { hn, y = Scan (h, x) <num_scan_inputs = 1,
            body = b (float[4] s, v) => (t, o) { t = Add (s, v) o = Concat <axis = 0> (t, t) }> }""")
    model = load(before)
    assert shape(model, "hn") == [4]
    assert shape(model, "y") == ["T", 8]


def test_types_pass_through_vendor_operators() -> None:
    scalars = {"s": np.float32(0.1), "z": np.uint8(3)}
    before = proto(
        """g (uint8[N,4,8,8] a, uint8[N,4,8,8] b) => (uint8[N,8] y) {
            m = com.microsoft.QLinearAdd (a, s, z, b, s, z, s, z)
            c = com.microsoft.QLinearConcat <axis = 1> (s, z, m, s, z, b, s, z)
            p = com.microsoft.QLinearGlobalAveragePool (c, s, z, s, z)
            y = Flatten (p)
        }""",
        17,
        **scalars,
    )
    model = check_same(before, *PASSES, run=runtime, N=2)
    assert shape(model, "c") == ["N", 8, 8, 8]
    assert shape(model, "p") == ["N", 8, 1, 1]


# ---- fold_shapes, fold_constants


def test_known_pieces_of_a_shape_are_folded() -> None:
    before = proto(
        """g (float[N,3,8,6] x) => (float[M,K] y) {
            s = Shape (x) h = Gather (s, two) w = Gather (s, three) n = Gather (s, zero)
            p = Mul (h, w) n1 = Unsqueeze (n, zero1) p1 = Unsqueeze (p, zero1) m = Unsqueeze (minus, zero1)
            t = Concat <axis = 0> (n1, m, p1) r = Reshape (x, t) y = ReduceSum <keepdims = 0> (r, two1)
        }""",
        zero=np.int64(0),
        two=np.int64(2),
        three=np.int64(3),
        minus=np.int64(-1),
        zero1=np.zeros(1, np.int64),
        two1=np.array([2]),
    )
    model = check_same(before, fold_shapes, drop_dead, N=5)
    assert ops(model) == {"Reshape": 1, "ReduceSum": 1}
    reshape = next(n for n in model.graph if n.op_type == "Reshape")
    np.testing.assert_array_equal(constant(reshape.inputs[1]), [0, -1, 48])


def test_a_target_with_two_unknown_entries_stays() -> None:
    before = proto(
        "g (float[N,M,4] x) => (float[A,B] y) { s = Shape (x) m = Slice (s, one, two) n = Slice (s, zero, one) "
        "t = Concat <axis = 0> (m, n, four) r = Reshape (x, t) y = ReduceSum <keepdims = 0> (r, two) }",
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
        four=np.array([4]),
    )
    assert ops(check_same(before, fold_shapes, drop_dead, N=2, M=3))["Concat"] == 1


def test_slices_of_shapes_follow_onnx() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        start, end = (np.array([v]) for v in rng.integers(-7, 7, 2))
        step = np.array([rng.choice([-2, -1, 1, 2])])
        before = proto(
            "g (float[2,3,4,5] x) => (int64[K] y) { s = Shape (x) a = Slice (s, b, e, zero, t) y = Add (a, zero) }",
            b=start,
            e=end,
            t=step,
            zero=np.array([0]),
        )
        check_same(before, fold_shapes, run=runtime)


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    before = proto("g (float[2] x) => (float[2] y) { b = Exp (a) c = Add (a, b) y = Mul (x, c) }", a=np.array([1, 2], np.float32))
    model = check_same(before, fold_constants, drop_dead)
    assert ops(model) == {"Mul": 1}


def test_a_quantized_weight_stays_codes() -> None:
    before = proto(
        "g (float[1,2] x) => (float[1,2] y) { q = QuantizeLinear (w, s, z) d = DequantizeLinear (q, s, z) "
        "t = Transpose (d) y = MatMul (x, t) }",
        w=np.array([[1, 2], [3, 4]], np.float32),
        s=np.float32(0.1),
        z=np.int8(0),
    )
    model = check_same(before, fold_constants, drop_dead)
    assert ops(model) == {"DequantizeLinear": 1, "Transpose": 1, "MatMul": 1}
    codes = next(n for n in model.graph if n.op_type == "DequantizeLinear").inputs[0]
    np.testing.assert_array_equal(constant(codes), np.array([[10, 20], [30, 40]], np.int8))


@pytest.mark.parametrize(
    ("node", "tensors"),
    [
        ("Expand (a, n)", {"a": np.ones(1, np.float32), "n": np.array([5 << 20])}),
        ("ConstantOfShape (n)", {"n": np.array([1 << 12, 1 << 12])}),
        ("Tile (a, n)", {"a": np.ones(1, np.float32), "n": np.array([1 << 30])}),
    ],
)
def test_a_fold_never_makes_a_small_file_big(node: str, tensors: Arrays) -> None:
    model = load(proto(f"g (float[1] x) => (float[1] y) {{ b = {node} m = ReduceMax <keepdims = 0> (b) y = Add (x, m) }}", **tensors))
    assert not fold_constants(model)


def test_random_numbers_are_not_folded() -> None:
    model = load(proto("g (float[2] x) => (float[2] y) { r = RandomNormal <shape = [2]> () y = Add (x, r) }"))
    assert not fold_constants(model)
