"""Movement nodes through the lowering give what onnx.reference says, and hostile ones a typed error."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from data import ort_session
from lowered import check_node, one_node, run_model
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qrt.core.errors import InvalidInput, ModelError


def array(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape).astype(dtype)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X = array(2, 3, 4, 5)

CASES: list[tuple[str, list[np.ndarray | None], dict[str, Any]]] = [
    ("Reshape", [X, ints(0, -1, 10)], {}),
    ("Reshape", [X, ints(-1)], {}),
    ("Reshape", [array(0, 3), ints(3, 0)], {"allowzero": 1}),
    ("Reshape", [array(1), np.zeros(0, np.int64)], {}),
    ("Flatten", [X], {"axis": 2}),
    ("Flatten", [X], {"axis": 0}),
    ("Flatten", [X], {"axis": -1}),
    ("Flatten", [X], {"axis": 4}),
    ("Squeeze", [array(1, 3, 1, 2), ints(0, -2)], {}),
    ("Squeeze", [array(1, 3, 1, 2)], {}),
    ("Unsqueeze", [array(3, 2), ints(0, -1)], {}),
    ("Unsqueeze", [array(3, 2), ints(2, 0)], {}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [2, 0, 3, 1]}),
    ("Shape", [X], {"start": 1, "end": -1}),
    ("Size", [X], {}),
    ("Slice", [X, ints(1, -3), ints(9, -1), ints(0, -1)], {}),
    ("Slice", [X, ints(-1, 4), ints(-99, 0), ints(1, 3), ints(-1, -2)], {}),
    ("Slice", [X, ints(2), ints(1), ints(2)], {}),
    ("Slice", [X, ints(2**62), ints(-(2**62)), ints(3), ints(-1)], {}),
    ("Concat", [array(2, 3), array(2, 1)], {"axis": -1}),
    ("Pad", [X, ints(0, 1, 0, 2, 1, 0, 0, 3), np.array(5, np.float32)], {}),
    ("Pad", [X, ints(2, 1), None, ints(-1)], {"mode": "edge"}),
    ("Pad", [X, ints(1, 2, 2, 1), None, ints(3, 2)], {"mode": "reflect"}),
    ("Pad", [array(3, dtype=np.int8), ints(1, 1), np.array(-3, np.int8)], {}),
    ("Expand", [array(3, 1), ints(2, 1, 4)], {}),
    ("Expand", [array(3, 4), ints(1)], {}),
    ("Tile", [array(2, 3), ints(2, 3)], {}),
    ("Tile", [array(2, 3), ints(0, 3)], {}),
    ("DepthToSpace", [array(2, 12, 3, 5)], {"blocksize": 2, "mode": "DCR"}),
    ("DepthToSpace", [array(2, 12, 3, 5)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [array(2, 3, 4, 6)], {"blocksize": 2}),
    ("Gather", [X, ints(1, -1, 0)], {"axis": 2}),
    ("Gather", [X, np.array(-2)], {"axis": 3}),
    ("Gather", [X, ints(1).reshape(1, 1)], {"axis": 1}),
    ("GatherElements", [X, np.zeros((2, 3, 2, 5), np.int64) - 1], {"axis": 2}),
    ("GatherND", [X, ints(1, 0, 0, 2).reshape(2, 2)], {}),
    ("GatherND", [X, ints(1, 0).reshape(2, 1)], {"batch_dims": 1}),
    ("ScatterND", [array(4, 3), ints(3, 0).reshape(2, 1), array(2, 3)], {}),
    ("ScatterElements", [array(4, 3), ints(3, 0, 1).reshape(1, 3), array(1, 3)], {"axis": 0}),
    ("Trilu", [X, np.array(1)], {"upper": 0}),
    ("Trilu", [X], {}),
    ("EyeLike", [array(3, 4)], {"k": 1, "dtype": TensorProto.INT32}),
]


EACH = pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{k}-{name}" for k, (name, _, _) in enumerate(CASES)])


@EACH
def test_as_onnx_says(case: int) -> None:
    op_type, inputs, attributes = CASES[case]
    # Everything but the first input says what to do: it is a constant, except where it is data too.
    data = {"Concat": len(inputs), "ScatterND": 3, "ScatterElements": 3}.get(op_type, 1)
    check_node(op_type, inputs, range(data, len(inputs)), **attributes)


@EACH
def test_what_is_known_is_computed_beforehand(case: int) -> None:
    op_type, inputs, attributes = CASES[case]
    check_node(op_type, inputs, range(len(inputs)), **attributes)


@EACH
def test_shapes_may_be_fed(case: int) -> None:
    op_type, inputs, attributes = CASES[case]
    check_node(op_type, inputs, **attributes)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split(axis: int) -> None:
    x = array(4, 5, 6)
    n = x.shape[axis]
    check_node("Split", [x, ints(1, 0, n - 1)], [1], outputs=3, axis=axis)
    check_node("Split", [x], outputs=3, num_outputs=3, axis=axis)


def test_shapes_and_ranges() -> None:
    value = onnx.numpy_helper.from_array(np.array([7], np.int8))
    check_node("ConstantOfShape", [ints(2, 0, 3)], [0], value=value)
    check_node("ConstantOfShape", [ints(2, 3)], [0])
    check_node("Range", [np.array(n, np.int32) for n in (3, -4, -2)], range(3))
    check_node("Range", [np.array(n, np.float32) for n in (0, 1, 0.25)], range(3))


def check_chain(nodes: list[onnx.NodeProto], x: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
    """The outputs of a chain from `x`, after they equalled onnx.reference's."""
    dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", dtype, x.shape)], [helper.make_empty_tensor_value_info(name) for name in outputs]
    )
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    found, why = run_model(model, {"x": x})
    assert not why
    for got, wanted in zip(found, ReferenceEvaluator(model).run(None, {"x": x}), strict=True):
        np.testing.assert_array_equal(got, wanted)
    return found


def constant(name: str, *values: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=values)


PERMUTED = [
    helper.make_node("Slice", ["t", "one", "four", "two"], ["y"]),
    helper.make_node("Split", ["t"], ["y", "z"], axis=1, num_outputs=2),
    helper.make_node("Concat", ["t", "t"], ["y"], axis=2),
    helper.make_node("Pad", ["t", "pads"], ["y"], mode="reflect"),
    helper.make_node("Tile", ["t", "pads4"], ["y"]),
    helper.make_node("Expand", ["t", "five"], ["y"]),
    helper.make_node("Gather", ["t", "pads"], ["y"], axis=3),
    helper.make_node("Gather", ["t", "one"], ["y"], axis=1),
    helper.make_node("Reshape", ["t", "joined"], ["y"]),
    helper.make_node("Reshape", ["t", "split"], ["y"]),
    helper.make_node("Unsqueeze", ["t", "two"], ["y"]),
    helper.make_node("DepthToSpace", ["t"], ["y"], blocksize=2),
]


@pytest.mark.parametrize("node", PERMUTED, ids=[f"{k}-{n.op_type}" for k, n in enumerate(PERMUTED)])
@pytest.mark.parametrize("perm", [(0, 3, 1, 2), (0, 2, 3, 1), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_nodes_after_a_transpose(node: onnx.NodeProto, perm: tuple[int, ...]) -> None:
    before = [
        constant("one", 1),
        constant("four", 4),
        constant("two", 2),
        constant("pads", 0, 1, 2, 0, 0, 0, 1, 1),
        constant("pads4", 1, 2, 1, 3),
        constant("five", 5, 1, 1, 1, 1),
        constant("joined", 4, 4, -1),
        constant("split", 2, 2, 4, 2, -1),
        helper.make_node("Transpose", ["x"], ["t"], perm=perm),
    ]
    check_chain([*before, node], array(4, 4, 4, 4), list(node.output))


def test_a_reshape_that_joins_what_lies_together_moves_nothing() -> None:
    """A detector's head: from channels-last (H, W, C) to (H·W, C) through NCHW, all by names."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["image"], perm=(0, 3, 1, 2)),
        constant("shape", 1, 6, -1),
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["y"], perm=(0, 2, 1)),
    ]
    x = array(1, 5, 7, 6)
    (y,) = check_chain(nodes, x, ["y"])
    np.testing.assert_array_equal(y, x.reshape(1, 35, 6))


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Reshape", [X, ints(7, -1)], {}),
        ("Reshape", [X, ints(-1, -1)], {}),
        ("Reshape", [X, ints(2, 3, 4, 5, 0)], {}),
        ("Reshape", [X, ints(-2, 60)], {}),
        ("Reshape", [X, ints(2**62, 4)], {}),
        ("Squeeze", [X, ints(0)], {}),
        ("Squeeze", [X, ints(9)], {}),
        ("Unsqueeze", [X, ints(0, 0)], {}),
        ("Slice", [X, ints(0), ints(1), ints(4)], {}),
        ("Slice", [X, ints(0), ints(1), ints(0), ints(0)], {}),
        ("Slice", [X, ints(0, 1), ints(1)], {}),
        ("Concat", [X, array(2, 3, 4)], {"axis": 0}),
        ("Concat", [X, X], {"axis": 4}),
        ("Pad", [X, ints(1, 1)], {}),
        ("Pad", [array(3), ints(3, 0)], {"mode": "reflect"}),
        ("Expand", [array(3), ints(4)], {}),
        ("Tile", [array(3), ints(-1)], {}),
        ("DepthToSpace", [array(1, 3, 2, 2)], {"blocksize": 2}),
        ("SpaceToDepth", [array(1, 3, 3, 2)], {"blocksize": 2}),
        ("Transpose", [X], {"perm": [0, 0, 1, 2]}),
        ("ConstantOfShape", [ints(2**40)], {}),
        ("ConstantOfShape", [ints(-1)], {}),
        ("Range", [np.array(n) for n in (0, 2**62, 1)], {}),
        ("Range", [np.array(n) for n in (0, 1, 0)], {}),
    ],
)
def test_what_does_not_fit_is_a_model_error(op_type: str, inputs: list[np.ndarray], attributes: dict[str, Any]) -> None:
    """The numbers are fed, so that no earlier check of the file can see them."""
    node = helper.make_node(op_type, [f"i{k}" for k in range(len(inputs))], ["o"], **attributes)
    values = [
        helper.make_tensor_value_info(f"i{k}", helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim) for k, a in enumerate(inputs)
    ]
    output = helper.make_tensor_value_info(
        "o", values[0].type.tensor_type.elem_type if op_type != "ConstantOfShape" else TensorProto.FLOAT, None
    )
    graph = helper.make_graph([node], "g", values, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(ModelError):
        run_model(model, {f"i{k}": a for k, a in enumerate(inputs)})


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("pads", [(0, 0, -1, 2, 0, 0, 2, -1), (0, -1, -1, 0, 0, 0, -1, 0), (-1, 0, 1, -2, 0, -3, 1, 1)])
def test_padding_that_takes_elements_away(mode: str, pads: tuple[int, ...]) -> None:
    if mode != "constant" and pads[5] < 0:
        pads = (*pads[:5], 0, *pads[6:])  # nothing is left to be repeated
    model, feeds = one_node("Pad", [X, ints(*pads)], [1], mode=mode)
    check_node("Pad", [X, ints(*pads)], [1], wanted=ort_session(model.SerializeToString()).run(None, feeds), mode=mode)


def test_padding_that_takes_more_than_there_is() -> None:
    model, feeds = one_node("Pad", [X, ints(0, 0, -3, 0, 0, 0, -2, 0)], [])
    with pytest.raises(ModelError, match="takes more than there is"):
        run_model(model, feeds)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Gather", [X, ints(2)], {"axis": 0}),
        ("Gather", [X, ints(-3, 0)], {"axis": 0}),
        ("GatherND", [X, ints(2, 0).reshape(1, 2)], {}),
        ("GatherElements", [array(3), ints(3)], {"axis": 0}),
        ("ScatterND", [array(3), ints(-4).reshape(1, 1), array(1)], {}),
        ("ScatterElements", [array(3), ints(3), array(1)], {"axis": 0}),
    ],
)
def test_known_indices_out_of_range_are_a_model_error(op_type: str, inputs: list[np.ndarray], attributes: dict[str, Any]) -> None:
    model, feeds = one_node(op_type, inputs, [1], **attributes)
    with pytest.raises(ModelError, match=r"indices .* must be"):
        run_model(model, feeds)


def test_run_time_indices_out_of_range_end_the_run() -> None:
    model, feeds = one_node("Gather", [X, ints(0, 10**12)], axis=1)
    with pytest.raises(InvalidInput, match=r"indices 'i1' must be within -3 … 2; one is 1000000000000$"):
        run_model(model, feeds)
