"""Each pass: what it ensures, that the graph stays valid, and that it computes what it computed, by onnx's reference or ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.graph import Model, constant
from qrt.graph.passes import OPSET, PASSES, prepare
from qrt.graph.passes.convert_opset import convert_opset
from qrt.graph.passes.drop_dead import drop_dead
from qrt.graph.passes.drop_identity import drop_identity
from qrt.graph.passes.fold_batchnorm import fold_batchnorm
from qrt.graph.passes.fold_constants import fold_constants
from qrt.graph.passes.fold_shapes import fold_shapes
from qrt.graph.passes.infer_shapes import check_types, infer_shapes
from qrt.graph.passes.inline_functions import inline_functions
from qrt.graph.passes.lift_constants import lift_constants
from qrt.graph.passes.name_everything import name_everything
from qrt.graph.passes.split_batchnorm import split_batchnorm
from qrt.loaders import load

Arrays = dict[str, np.ndarray]


def proto(text: str, opset: int = OPSET, **tensors: np.ndarray) -> onnx.ModelProto:
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{text}')
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    return made


def feeds(model: onnx.ModelProto, **sizes: int) -> Arrays:
    """Random inputs; `sizes` are those of symbolic dimensions."""
    rng = np.random.default_rng(7)
    found: Arrays = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param, 3) for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        found[value.name] = np.asarray(rng.normal(size=shape) * (1 if dtype == np.float32 else 20)).astype(dtype)
    return found


def runtime(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, inputs)


def reference(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, inputs)


def same(
    before: onnx.ModelProto,
    *passes: Callable[[Model], bool],
    run: Callable[[onnx.ModelProto, Arrays], list[np.ndarray]] = reference,
    **sizes: int,
) -> Model:
    """The model after `passes`, once it is seen to be valid, to keep its inputs and outputs and to compute the same."""
    model = load(before)
    for one in passes:
        one(model)
    after = model.to_proto()
    onnx.checker.check_model(after)
    assert [v.name for v in after.graph.input] == [v.name for v in before.graph.input]
    assert [v.name for v in after.graph.output] == [v.name for v in before.graph.output]
    inputs = feeds(before, **sizes)
    for x, y in zip(run(before, inputs), run(after, inputs), strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)
    return model


def ops(model: Model) -> Counter[str]:
    return Counter(n.op_type for n in model.graph)


def shape(model: Model, name: str) -> list[int | str | None] | None:
    value = next(v for n in model.graph.all_nodes() for v in n.outputs if v.name == name)
    return None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]


# ---- inline_functions, lift_constants, name_everything


def test_functions_are_written_out() -> None:
    text = """<ir_version: 8, opset_import: ["" : 21, "f" : 1]>
        g (float[2] x) => (float[2] y) { a = f.twice (x) b = f.twice (a) y = Neg (b) }
        <domain: "f", opset_import: ["" : 21]> twice (a) => (c) { k = Constant <value = float {2.0}> () c = Mul (a, k) }"""
    model = same(parser.parse_model(text), inline_functions)
    assert not model.ir.functions
    assert ops(model)["Mul"] == 2


def test_constants_become_initializers() -> None:
    model = same(
        proto("""g (float[2] x) => (float[2] y, float c) {
            a = Constant <value = float[2] {1.0, 2.0}> ()
            b = Constant <value_float = 3.0> ()
            n = Constant <value_ints = [2]> ()
            c = Constant <value_float = 4.0> ()
            s = Add (x, a) m = Mul (s, b) y = Reshape (m, n)
        }"""),
        lift_constants,
    )
    assert ops(model)["Constant"] == 1  # it is an output of the graph itself
    assert set(model.graph.initializers) == {"a", "b", "n"}


def test_constants_of_subgraphs_move_to_the_top() -> None:
    before = proto("""g (float[2] x, bool c) => (float[2] y) {
        k = Constant <value_float = 9.0> ()
        y = If (c) <
            then_branch = t () => (float[2] a) { k1 = Constant <value_float = 3.0> () a = Mul (x, k1) },
            else_branch = e () => (float[2] b) { k2 = Constant <value_float = 5.0> () h = Mul (x, k2) b = Mul (h, k) }
        >
    }""")
    model = same(before, lift_constants)
    assert not any(n.op_type == "Constant" for n in model.graph.all_nodes())
    assert len(model.graph.initializers) == 3


def test_nodes_and_values_get_names_of_their_own() -> None:
    before = proto("g (float[2] x) => (float[2] y) { a = Relu (x) b = Neg (a) y = Abs (b) }")
    before.graph.node[0].name = before.graph.node[1].name = "twin"
    model = same(before, name_everything)
    assert [n.name for n in model.graph] == ["twin", "twin_1", "Abs_y"]
    assert not name_everything(model)


# ---- convert_opset: operators whose spelling or meaning changed, against ONNX Runtime, which runs every opset


OLD: dict[str, tuple[int, str, Arrays]] = {
    "Upsample-7": (7, 'g (float[1,2,3,4] x) => (float[N,C,H,W] y) { y = Upsample <mode = "nearest", scales = [1.0,1.0,2.0,2.0]> (x) }', {}),
    "Upsample-9": (
        9,
        'g (float[1,2,3,4] x) => (float[N,C,H,W] y) { y = Upsample <mode = "linear"> (x, s) }',
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Resize-10": (
        10,
        'g (float[1,2,3,4] x) => (float[N,C,H,W] y) { y = Resize <mode = "nearest"> (x, s) }',
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Slice-1": (9, "g (float[4,6] x) => (float[N,M] y) { y = Slice <axes = [1], starts = [-4], ends = [1000]> (x) }", {}),
    "Pad-2": (10, 'g (float[2,3] x) => (float[N,M] y) { y = Pad <mode = "constant", pads = [0,1,2,0], value = 1.5> (x) }', {}),
    "Clip-6": (10, "g (float[2,3] x) => (float[2,3] y) { y = Clip <min = -0.5, max = 0.5> (x) }", {}),
    "TopK-1": (9, "g (float[2,6] x) => (float[N,M] y, int64[N,M] i) { y, i = TopK <k = 2, axis = 1> (x) }", {}),
    "Softmax-11 flattens": (11, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax <axis = 1> (x) }", {}),
    "Softmax-11 of a free rank 4": (11, "g (float[N,3,2,2] x) => (float[N,3,2,2] y) { y = LogSoftmax <axis = 1> (x) }", {}),
    "Squeeze and Unsqueeze-11": (
        11,
        "g (float[2,1,3] x) => (float[A,B,C] y) { a = Squeeze <axes = [1]> (x) y = Unsqueeze <axes = [0]> (a) }",
        {},
    ),
    "Hardmax-11 along the last axis": (11, "g (float[2,6] x) => (float[2,6] y) { y = Hardmax (x) }", {}),
    "RoiAlign-10": (
        11,
        "g (float[1,2,8,8] x) => (float[A,B,C,D] y) { y = RoiAlign <output_height = 3, output_width = 3, sampling_ratio = 2> (x, r, b) }",
        {"r": np.array([[1, 1, 6, 6], [0.3, 2.2, 5, 7]], np.float32), "b": np.array([0, 0])},
    ),
    "GridSample-16": (
        16,
        'g (float[1,2,5,5] x, float[1,3,3,2] at) => (float[A,B,C,D] y) { y = GridSample <mode = "bicubic"> (x, at) }',
        {},
    ),
    "Split-11 in equal parts": (11, "g (float[2,6] x) => (float[A,B] y, float[C,D] z) { y, z = Split <axis = 1> (x) }", {}),
    "ReduceSum-11": (11, "g (float[2,3,4] x) => (float[A,B] y) { y = ReduceSum <axes = [1], keepdims = 0> (x) }", {}),
    "ReduceMean-13": (13, "g (float[2,3,4] x) => (float[A,B,C] y) { y = ReduceMean <axes = [-1]> (x) }", {}),
    "Split-11": (11, "g (float[2,5] x) => (float[A,B] y, float[C,D] z) { y, z = Split <axis = 1, split = [2,3]> (x) }", {}),
    "Dropout-7": (7, "g (float[2,3] x) => (float[2,3] y) { y = Dropout <ratio = 0.9> (x) }", {}),
    "BatchNormalization-7": (
        7,
        "g (float[2,3,4] x) => (float[2,3,4] y) { y = BatchNormalization <epsilon = 0.01> (x, s, b, m, v) }",
        {k: np.array([1, 2, 3], np.float32) for k in "sbmv"},
    ),
    "Resize-10 that shrinks": (
        10,
        'g (float[1,2,7,9] x) => (float[N,C,H,W] y) { y = Resize <mode = "nearest"> (x, s) }',
        {"s": np.array([1, 1, 0.5, 0.3], np.float32)},
    ),
    "Resize-10 by a fraction": (
        10,
        'g (float[1,2,7,9] x) => (float[N,C,H,W] y) { y = Resize <mode = "nearest"> (x, s) }',
        {"s": np.array([1, 1, 1.7, 2.5], np.float32)},
    ),
    "in a branch": (
        9,
        """g (float[2,3] x, bool c) => (float[A,B] y) { y = If (c) <
            then_branch = t () => (float[A,B] a) { a = Clip <min = -0.1> (x) },
            else_branch = e () => (float[C,D] b) { b = Slice <starts = [0], ends = [1000]> (x) }
        > }""",
        {},
    ),
}


@pytest.mark.parametrize("case", OLD)
def test_old_spellings_keep_their_meaning(case: str) -> None:
    opset, text, tensors = OLD[case]
    before = proto(text, opset, **tensors)
    model = same(before, lift_constants, convert_opset, run=runtime)
    assert model.ir.opset_imports[""] == OPSET
    assert not convert_opset(model)
    same(before, *PASSES, *PASSES, run=runtime)


def test_what_the_converter_would_change_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match="Hardmax"):
        prepare(load(proto("g (float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax <axis = 1> (x) }", 11)))
    with pytest.raises(UnsupportedOp, match="enlarges one axis and shrinks another"):
        prepare(load(proto("g (float[4,4] x) => (float[A,B] y) { y = Resize (x, s) }", 10, s=np.array([2, 0.5], np.float32))))


def test_big_weights_survive_the_conversion() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model = same(proto("g (float[N,64] x) => (float[N,64] y) { a = MatMul (x, w) y = Clip <min = 0.0> (a) }", 9, w=weight), convert_opset)
    np.testing.assert_array_equal(constant(model.graph.initializers["w"]), weight)
    assert [i.name for i in model.inputs] == ["x"]


def test_a_newer_opset_stays() -> None:
    model = same(proto("g (float[2] x) => (float[2] y) { y = Relu (x) }", 23), convert_opset)
    assert model.ir.opset_imports[""] == 23


def test_sixteen_bit_codes_join_the_standard_domain() -> None:
    before = proto(
        "g (float[4] x) => (float[4] y) { q = com.microsoft.QuantizeLinear (x, s, z) y = com.microsoft.DequantizeLinear (q, s, z) }",
        17,
        s=np.float32(0.01),
        z=np.uint16(30000),
    )
    model = same(before, *PASSES, run=runtime)
    assert {n.domain for n in model.graph} == {""}


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
    model = same(before, *PASSES, run=runtime, N=2)
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
    model = same(before, fold_shapes, drop_dead, N=5)
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
    assert ops(same(before, fold_shapes, drop_dead, N=2, M=3))["Concat"] == 1


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
        same(before, fold_shapes)


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    before = proto("g (float[2] x) => (float[2] y) { b = Exp (a) c = Add (a, b) y = Mul (x, c) }", a=np.array([1, 2], np.float32))
    model = same(before, fold_constants, drop_dead)
    assert ops(model) == {"Mul": 1}


def test_a_quantized_weight_stays_codes() -> None:
    before = proto(
        "g (float[1,2] x) => (float[1,2] y) { q = QuantizeLinear (w, s, z) d = DequantizeLinear (q, s, z) "
        "t = Transpose (d) y = MatMul (x, t) }",
        w=np.array([[1, 2], [3, 4]], np.float32),
        s=np.float32(0.1),
        z=np.int8(0),
    )
    model = same(before, fold_constants, drop_dead)
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


# ---- BatchNormalization


def statistics(channels: int) -> Arrays:
    rng = np.random.default_rng(3)
    return {
        "g1": rng.normal(size=channels).astype(np.float32),
        "b1": rng.normal(size=channels).astype(np.float32),
        "m1": rng.normal(size=channels).astype(np.float32),
        "v1": rng.uniform(0.1, 2, size=channels).astype(np.float32),
    }


def weight(*dims: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=dims).astype(np.float32)


NORM = "y = BatchNormalization <epsilon = 0.001> (c, g1, b1, m1, v1)"
FOLDS: dict[str, tuple[str, Arrays]] = {
    "Conv": ("g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv (x, w) " + NORM + " }", {"w": weight(4, 3, 3, 3), **statistics(4)}),
    "Conv, bias": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv (x, w, b) " + NORM + " }",
        {"w": weight(4, 3, 3, 3), "b": weight(4), **statistics(4)},
    ),
    "Conv, groups, 1-D": (
        "g (float[N,4,8] x) => (float[N,6,6] y) { c = Conv <group = 2> (x, w) " + NORM + " }",
        {"w": weight(6, 2, 3), **statistics(6)},
    ),
    "ConvTranspose, groups": (
        "g (float[N,4,5,5] x) => (float[N,6,7,7] y) { c = ConvTranspose <group = 2> (x, w, b) " + NORM + " }",
        {"w": weight(4, 3, 3, 3), "b": weight(6), **statistics(6)},
    ),
    "Gemm": (
        "g (float[N,3] x) => (float[N,5] y) { c = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) " + NORM + " }",
        {"w": weight(3, 5), "b": weight(5), **statistics(5)},
    ),
    "Gemm, transposed, scalar bias": (
        "g (float[N,3] x) => (float[N,5] y) { c = Gemm <transB = 1> (x, w, b) " + NORM + " }",
        {"w": weight(5, 3), "b": weight(1), **statistics(5)},
    ),
    "Gemm, beta 0": (
        "g (float[N,3] x) => (float[N,5] y) { c = Gemm <beta = 0.0> (x, w, b) " + NORM + " }",
        {"w": weight(3, 5), "b": weight(1, 5), **statistics(5)},
    ),
}


@pytest.mark.parametrize("case", FOLDS)
def test_batch_normalization_goes_into_the_weights(case: str) -> None:
    text, tensors = FOLDS[case]
    model = same(proto(text, **tensors), fold_batchnorm, drop_dead, run=runtime)
    assert len(model.graph) == 1
    assert next(iter(model.graph)).outputs[0].name == "y"


KEPT: dict[str, tuple[str, Arrays]] = {
    "read twice": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] z) { c = Conv (x, w) " + NORM + " z = Add (c, y) }",
        {"w": weight(4, 3, 3, 3), **statistics(4)},
    ),
    "an output": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] c, float[N,4,6,6] y) { c = Conv (x, w) " + NORM + " }",
        {"w": weight(4, 3, 3, 3), **statistics(4)},
    ),
    "weight is an input": ("g (float[N,3,8,8] x, float[4,3,3,3] w) => (float[N,4,6,6] y) { c = Conv (x, w) " + NORM + " }", statistics(4)),
    "not linear": ("g (float[N,4,3] x) => (float[N,4,3] y) { c = Relu (x) " + NORM + " }", statistics(4)),
    "a bias per row": (
        "g (float[2,3] x) => (float[2,5] y) { c = Gemm (x, w, b) " + NORM + " }",
        {"w": weight(3, 5), "b": weight(2, 1), **statistics(5)},
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_batch_normalization_that_stays_is_a_mul_and_an_add(case: str) -> None:
    text, tensors = KEPT[case]
    model = same(proto(text, **tensors), fold_batchnorm, run=runtime)
    assert ops(model)["BatchNormalization"] == 1
    model = same(proto(text, **tensors), fold_batchnorm, infer_shapes, split_batchnorm, drop_dead, run=runtime)
    assert ops(model)["BatchNormalization"] == 0
    assert ops(model)["Mul"] == 1


def test_a_weight_that_two_convolutions_share_is_scaled_for_one() -> None:
    before = proto(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] d) { c = Conv (x, w) d = Conv (x, w) " + NORM + " }",
        w=weight(4, 3, 3, 3),
        **statistics(4),
    )
    assert ops(same(before, fold_batchnorm, drop_dead, run=runtime)) == {"Conv": 2}


def test_training_statistics_are_left_alone() -> None:
    before = proto(
        "g (float[N,4,3] x) => (float[N,4,3] y) { y, m2, v2 = BatchNormalization <training_mode = 1> (x, g1, b1, m1, v1) }", **statistics(4)
    )
    assert ops(same(before, fold_batchnorm, split_batchnorm))["BatchNormalization"] == 1


# ---- drop_identity, drop_dead


IDENTITIES = {
    "in the middle": ("g (float[2] x) => (float[2] y) { a = Identity (x) y = Relu (a) }", 1),
    "last": ("g (float[2] x) => (float[2] y) { a = Relu (x) y = Identity (a) }", 1),
    "a chain": ("g (float[2] x) => (float[2] y) { a = Identity (x) b = Identity (a) c = Neg (b) d = Identity (c) y = Identity (d) }", 1),
    "input to output": ("g (float[2] x) => (float[2] y) { y = Identity (x) }", 1),
    "one value, two outputs": ("g (float[2] x) => (float[2] y, float[2] z) { a = Relu (x) y = Identity (a) z = Identity (a) }", 2),
    "an output read on": ("g (float[2] x) => (float[2] y, float[2] z) { a = Relu (x) y = Identity (a) z = Neg (a) }", 2),
    "dropout": ("g (float[2] x) => (float[2] y) { a = Relu (x) y = Dropout (a) }", 1),
    "a branch that hands on": (
        """g (float[2] x, bool c) => (float[2] y) { r = Relu (x) y = If (c) <
            then_branch = t () => (float[2] a) { a = Identity (r) },
            else_branch = e () => (float[2] b) { h = Neg (r) b = Identity (h) }> }""",
        2,
    ),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_identities_go_and_names_stay(case: str) -> None:
    text, nodes = IDENTITIES[case]
    model = same(proto(text), drop_identity)
    assert len(model.graph) == nodes


@pytest.mark.parametrize("text", ["y, m = Dropout (x)", "y, m = Dropout (x, r, t)"])
def test_a_dropout_that_does_something_stays(text: str) -> None:
    before = proto(f"g (float[2] x) => (float[2] y, bool[2] m) {{ {text} }}", r=np.float32(0.5), t=np.bool_(False))
    assert ops(same(before, drop_identity))["Dropout"] == 1


def test_what_no_output_needs_goes() -> None:
    before = proto("g (float[2] x) => (float[2] y) { a = Exp (x) b = Mul (a, w) y = Relu (x) }", w=np.ones(2, np.float32))
    model = same(before, drop_dead)
    assert ops(model) == {"Relu": 1}
    assert not model.graph.initializers


# ---- prepare


def test_preparing_leaves_the_original_alone_and_ends() -> None:
    text, tensors = FOLDS["Conv"]
    original = load(proto(text, 11, **tensors))
    before = original.to_proto().SerializeToString(deterministic=True)
    prepared = prepare(original)
    assert original.to_proto().SerializeToString(deterministic=True) == before
    assert ops(prepared) == {"Conv": 1}
    assert not any(one(prepared) for one in PASSES)


def test_a_value_without_a_rank_is_named() -> None:
    model = load(proto("g (float[2,3] x, int64[K] s) => (float[A] z) { y = Reshape (x, s) z = ReduceSum <keepdims = 0> (y) }"))
    with pytest.raises(ModelError, match=r"rank of value 'y'.*Reshape"):
        prepare(model)
