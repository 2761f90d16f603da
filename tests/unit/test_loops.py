"""Loop and Scan in Python, beside ONNX Runtime: what may be omitted, what rounds give, rounds that never come."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from data import ort_session
from onnx import TensorProto, helper, numpy_helper, parser

import qrt

RNG = np.random.default_rng(0)
INTEGER, BOOL, FLOAT = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT


def check(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """Our outputs are ONNX Runtime's."""
    found = qrt.InferenceSession(model).run(None, feeds)
    for got, wanted in zip(found, ort_session(model.SerializeToString()).run(None, feeds), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def loop(shape: list[int], condition: bool, scan: bool) -> onnx.ModelProto:
    """A loop that adds x in each round, with its condition given or omitted, and with what each round gives or without."""
    info = helper.make_tensor_value_info
    nodes = [("Add", "state", "x", "next"), ("Identity", "going", "again"), ("Mul", "next", "x", "seen")]
    body = helper.make_graph(
        [helper.make_node(op, inputs, [output]) for op, *inputs, output in nodes],
        "body",
        [info("round", INTEGER, []), info("going", BOOL, []), info("state", FLOAT, shape)],
        [info("again", BOOL, []), info("next", FLOAT, shape), *([info("seen", FLOAT, shape)] if scan else [])],
    )
    node = helper.make_node("Loop", ["rounds", "yes" if condition else "", "first"], ["last", "all"][: 1 + scan], body=body)
    graph = helper.make_graph(
        [node],
        "loop",
        [info("x", FLOAT, shape), info("first", FLOAT, shape), info("rounds", INTEGER, [])],
        [info("last", FLOAT, shape), info("all", FLOAT, [None, *shape])][: 1 + scan],
        [numpy_helper.from_array(np.array(True), "yes")] if condition else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("shape", [[], [4], [2, 4]], ids=str)
def test_a_loop_goes_on_where_nothing_ends_it_and_stacks_what_its_rounds_give(shape: list[int], condition: bool, scan: bool) -> None:
    model = loop(shape, condition, scan)
    for rounds in (0, 1, 3):
        x, first = (np.asarray(RNG.normal(size=shape), np.float32) for _ in range(2))
        check(model, {"x": x, "first": first, "rounds": np.array(rounds)})


def test_a_loop_that_nothing_ends_is_refused() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 21]> g (float first, bool start) => (float last) {
        last = Loop (, START, first) <body = b (int64 i, bool c, float state) => (bool again, float next) {
            d = Identity (c) again = Identity (d) next = Add (state, state)
        }>
    }"""
    for start in ("start", ""):
        session = qrt.InferenceSession(parser.parse_model(text.replace("START", start)))
        with pytest.raises(qrt.UnsupportedOp, match="nothing ends its rounds"):
            session.run(None, {"first": np.float32(1), "start": np.array(True)})
        if start:
            assert session.run(None, {"first": np.float32(1), "start": np.array(False)}) == [1]


def test_a_condition_ends_a_loop_without_a_limit() -> None:
    model = parser.parse_model("""
    <ir_version: 9, opset_import: ["" : 21]> g (float first, bool start) => (float last, float[k] all) {
        last, all = Loop (, start, first) <body = b (int64 i, bool c, float state) => (bool again, float next, float seen) {
            one = Constant <value = float {1}> ()
            three = Constant <value = float {3}> ()
            next = Add (state, one)
            again = Less (next, three)
            seen = Identity (next)
        }>
    }
    """)
    for start in (True, False):
        check(model, {"first": np.array(0, np.float32), "start": np.array(start)})


@pytest.mark.parametrize(
    "attributes",
    ["", "scan_input_directions = [1]", "scan_output_directions = [1]", "scan_input_axes = [1]", "scan_output_axes = [1]"],
)
def test_a_scan_takes_any_axis_and_either_direction(attributes: str) -> None:
    model = parser.parse_model(f"""
    <ir_version: 9, opset_import: ["" : 21]> g (float[4] first, float[4, 4] xs) => (float[4] last, float[k, n] sums) {{
        last, sums = Scan <num_scan_inputs = 1, {attributes + "," if attributes else ""}
        body = b (float[4] state, float[4] x) => (float[4] next, float[4] out) {{
            next = Add (state, x)
            out = Mul (next, x)
        }}> (first, xs)
    }}
    """)
    check(model, {"first": RNG.normal(size=4).astype(np.float32), "xs": RNG.normal(size=(4, 4)).astype(np.float32)})


def test_a_scan_of_nothing_gives_nothing() -> None:
    model = parser.parse_model("""
    <ir_version: 9, opset_import: ["" : 21]> g (float[4] first, float[t, 4] xs) => (float[4] last, float[t, 4] sums) {
        last, sums = Scan <num_scan_inputs = 1, body = b (float[4] state, float[4] x) => (float[4] next, float[4] out) {
            next = Add (state, x)
            out = Identity (next)
        }> (first, xs)
    }
    """)
    first = RNG.normal(size=4).astype(np.float32)
    last, sums = qrt.InferenceSession(model).run(None, {"first": first, "xs": np.empty((0, 4), np.float32)})
    np.testing.assert_array_equal(last, first)
    assert (sums.shape, sums.dtype) == ((0, 4), np.float32)
