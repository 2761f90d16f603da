"""Old opsets: operators whose spelling or meaning changed, against ONNX Runtime, which runs every opset."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import AttributeProto, TypeProto, defs, helper, version_converter
from passes import Arrays, check_same, proto, runtime

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.graph import constant
from qrt.graph.passes import OPSET, PASSES, prepare
from qrt.graph.passes.convert_opset import _SINCE, convert_opset
from qrt.graph.passes.lift_constants import lift_constants
from qrt.loaders import load

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
    model = check_same(before, lift_constants, convert_opset, run=runtime)
    assert model.ir.opset_imports[""] == OPSET
    assert not convert_opset(model)
    check_same(before, *PASSES, *PASSES, run=runtime)


def test_what_the_converter_would_change_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match="Hardmax"):
        prepare(load(proto("g (float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax <axis = 1> (x) }", 11)))
    with pytest.raises(UnsupportedOp, match="enlarges one axis and shrinks another"):
        prepare(load(proto("g (float[4,4] x) => (float[A,B] y) { y = Resize (x, s) }", 10, s=np.array([2, 0.5], np.float32))))


@pytest.mark.parametrize("opset", [7, 9, 10, 12])
def test_a_dropout_whose_mask_nobody_reads(opset: int) -> None:
    texts = (
        "g (float[3,4] x) => (float[3,4] y) { y, m = Dropout (x) }",
        "g (float[3,4] x) => (float[3,4] y) { a = Relu (x) b, m = Dropout (a) y = Neg (b) }",
        """g (float[3,4] x, bool c) => (float[3,4] y) { y = If (c) <
            then_branch = t () => (float[3,4] a) { a, m = Dropout (x) },
            else_branch = e () => (float[3,4] b) { b = Neg (x) }
        > }""",
    )
    for text in texts:
        model = check_same(proto(text, opset), *PASSES, *PASSES, run=runtime)
        assert "m" not in {value.name for node in model.graph.all_nodes() for value in node.outputs}


@pytest.mark.parametrize("opset", [7, 9])
def test_a_mask_of_another_type_that_is_read_is_refused(opset: int) -> None:
    texts = ("(float[3,4] y, float[3,4] m) { y, m = Dropout (x) }", "(float[3,4] y) { a, m = Dropout (x) y = Add (a, m) }")
    for text in texts:
        with pytest.raises(UnsupportedOp, match=r"mask of node .* is read"):
            prepare(load(proto(f"g (float[3,4] x) => {text}", opset)))


def test_an_unknown_operator_with_a_result_that_nobody_reads() -> None:
    with pytest.raises(ModelError, match="Foo"):
        prepare(load(proto("g (float[3,4] x) => (float[3,4] y) { y, m = Foo (x) }", 9)))


def test_big_weights_survive_the_conversion() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model = check_same(
        proto("g (float[N,64] x) => (float[N,64] y) { a = MatMul (x, w) y = Clip <min = 0.0> (a) }", 9, w=weight), convert_opset
    )
    np.testing.assert_array_equal(constant(model.graph.initializers["w"]), weight)
    assert [i.name for i in model.inputs] == ["x"]


def test_a_newer_opset_stays() -> None:
    model = check_same(proto("g (float[2] x) => (float[2] y) { y = Relu (x) }", 23), convert_opset)
    assert model.ir.opset_imports[""] == 23


def test_sixteen_bit_codes_join_the_standard_domain() -> None:
    before = proto(
        "g (float[4] x) => (float[4] y) { q = com.microsoft.QuantizeLinear (x, s, z) y = com.microsoft.DequantizeLinear (q, s, z) }",
        17,
        s=np.float32(0.01),
        z=np.uint16(30000),
    )
    model = check_same(before, *PASSES, run=runtime)
    assert {n.domain for n in model.graph} == {""}


@pytest.mark.parametrize("op_type", _SINCE)
def test_what_is_said_to_stand_still_does(op_type: str) -> None:
    """By the schemas, and by onnx's converter, which leaves such nodes as they are."""
    new = defs.get_schema(op_type, OPSET, "")
    for version in range(max(_SINCE[op_type], 7), OPSET):
        old = defs.get_schema(op_type, version, "")
        for name, attribute in old.attributes.items():
            now = new.attributes[name]
            assert (now.type, now.required, now.default_value) == (attribute.type, attribute.required, attribute.default_value)
        assert not any(new.attributes[name].required for name in new.attributes.keys() - old.attributes.keys())
        assert new.min_input <= old.min_input
        assert new.max_output == old.max_output
        for was, now in zip(old.inputs, new.inputs, strict=False):
            assert (was.name, now.option) == (now.name, was.option) or now.option == defs.OpSchema.FormalParameterOption.Optional
            assert set(was.types) <= set(now.types)
    version = max(_SINCE[op_type], 7)
    schema = defs.get_schema(op_type, version, "")
    required = {"kernel_shape": [2, 2], "blocksize": 2, "axis": 0, "to": 1}
    attributes = {name: required[name] for name, a in schema.attributes.items() if a.required}
    assert all(a.type in (AttributeProto.INT, AttributeProto.INTS) for a in schema.attributes.values() if a.required)
    node = helper.make_node(op_type, [f"x{k}" for k in range(schema.min_input)], ["y"], **attributes)
    values = [helper.make_value_info(name, TypeProto(tensor_type=TypeProto.Tensor(elem_type=1))) for name in (*node.input, "y")]
    model = helper.make_model(
        helper.make_graph([node], "g", values[:-1], values[-1:]), opset_imports=[helper.make_opsetid("", version)], ir_version=8
    )
    assert version_converter.convert_version(model, OPSET).graph.node[0].SerializeToString() == node.SerializeToString()


def test_where_nothing_changed_the_converter_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[1,3,8,8] x) => (float[A,B,C,D] y) { c = Conv (x, w) r = Relu (c) y = Add (r, r) }"
    model = load(proto(text, 11, w=np.ones((4, 3, 3, 3), np.float32)))
    monkeypatch.setattr(version_converter, "convert_version", None)
    assert convert_opset(model)
    assert model.ir.opset_imports[""] == OPSET
