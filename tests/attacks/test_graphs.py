"""Graphs that make no sense, or would grow without end: a typed error, and soon."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from small import SMALL, model, small

from qrt.core.errors import ModelError
from qrt.graph.passes import prepare
from qrt.loaders import _structure, load


def test_a_cycle() -> None:
    with pytest.raises(ModelError, match="cycle"):
        load(model("g (float[2] x) => (float[2] y) { a = Add (x, b) b = Relu (a) y = Relu (b) }"))


def test_nodes_in_any_order_are_sorted() -> None:
    loaded = load(model("g (float[2] x) => (float[2] y) { y = Relu (a) a = Neg (x) }"))
    assert [n.op_type for n in loaded.graph] == ["Neg", "Relu"]


GRAPHS = {
    "undefined value": ("g (float[2] x) => (float[2] y) { y = Add (x, ghost) }", "'ghost', which nothing makes"),
    "undefined output": ("g (float[2] x) => (float[2] y) { z = Relu (x) }", "'y'.*made by no node"),
    "twice the same output": ("g (float[2] x) => (float[2] y) { y = Relu (x) y = Neg (x) }", "'y', which is defined already"),
    "an input computed again": ("g (float[2] x) => (float[2] x) { x = Relu (x) }", "'x', which is defined already"),
    "twice the same input": ("g (float[2] x, float[2] x) => (float[2] y) { y = Relu (x) }", "'x', which is defined already"),
    "shapes that do not fit": ("g (float[2,3] x, float[4,5] w) => (float[2,5] y) { y = MatMul (x, w) }", "ill-typed"),
    "types that do not fit": ("g (float[2] x, int64[2] w) => (float[2] y) { y = Add (x, w) }", "ill-typed"),
    "too few inputs": ("g (float[1,1,4,4] x) => (float[1,1,2,2] y) { y = Conv (x) }", "not a sound"),
    "an unknown attribute": ("g (float[2] x) => (float[2] y) { y = Relu <loud = 1> (x) }", "not a sound"),
    "a required attribute missing": ("g (float[2] x) => (float[2] y) { y = Cast (x) }", "not a sound|ill-typed"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_malformed_graph(case: str) -> None:
    text, message = GRAPHS[case]
    with pytest.raises(ModelError, match=message):
        load(model(text))


def test_a_value_defined_in_one_branch_is_unknown_in_the_other() -> None:
    proto = model("""
        g (float[2] x, bool c) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] a) { h = Neg (x) a = Relu (h) }, else_branch = e () => (float[2] b) { b = Relu (h) }
            >
        }""")
    with pytest.raises(ModelError, match="'h', which nothing makes"):
        load(proto)


def test_an_input_with_a_negative_dimension() -> None:
    proto = small()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    with pytest.raises(ModelError, match=r"dimension -1.*name"):
        load(proto)


def test_two_initializers_of_one_name() -> None:
    proto = small()
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError, match="two initializers"):
        load(proto)


def test_a_name_that_is_not_utf8() -> None:
    data = SMALL.replace(b"Gemm", b"\xff\xfe\xfd\xfc")
    with pytest.raises(ModelError):
        load(data)


def functions(*bodies: str) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>\ng (float[2] x) => (float[2] y) { y = f.f0 (x) }\n'
    return parser.parse_model(head + "\n".join(f'<domain: "f", opset_import: ["" : 17, "f" : 1]>\n{b}' for b in bodies))


def test_functions_that_double_and_double_again() -> None:
    bodies = [f"f{i} (a) => (c) {{ b = f.f{i + 1} (a) c = f.f{i + 1} (b) }}" for i in range(40)]
    start = time.monotonic()
    with pytest.raises(ModelError, match="nodes; qrt takes"):
        load(functions(*bodies, "f40 (a) => (b) { b = Relu (a) }"))
    assert time.monotonic() - start < 2


def test_functions_that_call_each_other_in_a_ring() -> None:
    with pytest.raises(ModelError, match="calls itself"):
        load(functions("f0 (a) => (b) { b = f.f1 (a) }", "f1 (a) => (b) { b = f.f0 (a) }"))


def test_a_function_that_reads_a_value_of_its_caller() -> None:
    with pytest.raises(ModelError, match="'x', which nothing makes"):
        load(functions("f0 (a) => (b) { b = Add (a, x) }"))


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = b"", len(payload)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + payload


def test_graphs_nested_without_end() -> None:
    graph = b""
    for _ in range(5000):
        attribute = field(1, b"then_branch") + field(6, graph)
        graph = field(1, field(1, b"c") + field(2, b"y") + field(4, b"If") + field(5, attribute))
    with pytest.raises(ModelError, match="damaged"):
        load(field(7, graph))


BOMBS = {
    "a vector of 2**40 entries as a shape": "g (float[2] x, int64[1099511627776] s) => (y) { y = Reshape (x, s) }",
    "a computed vector of 2**40 entries": "g (float[2] x) => (y) { v = ConstantOfShape (n) s = Cast <to = 7> (v) y = Expand (x, s) }",
    "a dimension of 2**62": "g (float[4611686018427387904] x) => (y) { y = Concat <axis = 0> (x, x, x) }",
    "dimensions whose product wraps": "g (float[4294967296,4294967296] x) => (y) { y = Flatten <axis = 0> (x) }",
    "a padding past 2**63": "g (float[2,2] x) => (y) { p = Pad (x, far) y = Slice (p, n, n) }",
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_shape_that_no_tensor_can_have(case: str) -> None:
    proto = model(BOMBS[case])
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2**40]), "n"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2**62, 2**62, 2**62, 2**62]), "far"))
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"dimension"):
        prepare(load(proto))
    assert time.monotonic() - start < 2


def test_a_reversed_slice_of_an_empty_tensor() -> None:
    proto = model("g (float[0,3] x) => (y) { y = Slice (x, b, e, a, t) }")
    for name, number in {"b": -1, "e": -9, "a": 0, "t": -1}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array([number]), name))
    assert load(proto).outputs[0].shape == (0, None)


def test_the_number_of_nodes_has_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_structure, "MAX_NODES", 5)
    with pytest.raises(ModelError, match="6 nodes"):
        load(SMALL)
