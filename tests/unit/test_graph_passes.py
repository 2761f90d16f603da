"""Passes that tidy: what each ensures, that the graph stays valid, and that it computes what it computed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser
from passes import check_same, ops, proto

from qrt.core.errors import ModelError
from qrt.graph.passes import PASSES, prepare
from qrt.graph.passes.drop_dead import drop_dead
from qrt.graph.passes.drop_identity import drop_identity
from qrt.graph.passes.inline_functions import inline_functions
from qrt.graph.passes.lift_constants import lift_constants
from qrt.graph.passes.name_everything import name_everything
from qrt.loaders import load

# ---- inline_functions, lift_constants, name_everything


def test_functions_are_written_out() -> None:
    text = """<ir_version: 8, opset_import: ["" : 21, "f" : 1]>
        g (float[2] x) => (float[2] y) { a = f.twice (x) b = f.twice (a) y = Neg (b) }
        <domain: "f", opset_import: ["" : 21]> twice (a) => (c) { k = Constant <value = float {2.0}> () c = Mul (a, k) }"""
    model = check_same(parser.parse_model(text), inline_functions)
    assert not model.ir.functions
    assert ops(model)["Mul"] == 2


def test_constants_become_initializers() -> None:
    model = check_same(
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
    model = check_same(before, lift_constants)
    assert not any(n.op_type == "Constant" for n in model.graph.all_nodes())
    assert len(model.graph.initializers) == 3


def test_nodes_and_values_get_names_of_their_own() -> None:
    before = proto("g (float[2] x) => (float[2] y) { a = Relu (x) b = Neg (a) y = Abs (b) }")
    before.graph.node[0].name = before.graph.node[1].name = "twin"
    model = check_same(before, name_everything)
    assert [n.name for n in model.graph] == ["twin", "twin_1", "Abs_y"]
    assert not name_everything(model)


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
    model = check_same(proto(text), drop_identity)
    assert len(model.graph) == nodes


@pytest.mark.parametrize("text", ["y, m = Dropout (x)", "y, m = Dropout (x, r, t)"])
def test_a_dropout_that_does_something_stays(text: str) -> None:
    before = proto(f"g (float[2] x) => (float[2] y, bool[2] m) {{ {text} }}", r=np.float32(0.5), t=np.bool_(False))
    assert ops(check_same(before, drop_identity))["Dropout"] == 1


def test_what_no_output_needs_goes() -> None:
    before = proto("g (float[2] x) => (float[2] y) { a = Exp (x) b = Mul (a, w) y = Relu (x) }", w=np.ones(2, np.float32))
    model = check_same(before, drop_dead)
    assert ops(model) == {"Relu": 1}
    assert not model.graph.initializers


def test_what_no_output_needs_goes_from_branches_and_before_them() -> None:
    text = """g (float[2] x, bool c) => (float[2] y) { r = Relu (x) s = Neg (x) y = If (c) <
        then_branch = t () => (float[2] a) { u = Abs (r) a = Exp (s) },
        else_branch = e () => (float[2] b) { b = Sin (s) }> }"""
    assert ops(check_same(proto(text), drop_dead)) == {"Neg": 1, "If": 1}


def test_outputs_that_nobody_reads_go_if_they_may() -> None:
    pooled = check_same(
        proto("g (float[1,1,4] x) => (float[1,1,2] y) { y, i = MaxPool <kernel_shape = [2], strides = [2]> (x) }"), drop_dead
    )
    assert [len(node.outputs) for node in pooled.graph] == [1]
    best = check_same(proto("g (float[4] x) => (int64[2] i) { v, i = TopK (x, k) }", k=np.array([2])), drop_dead)
    assert [[value.name for value in node.outputs] for node in best.graph] == [["v", "i"]]
    given = dict.fromkeys("wr", np.ones((1, 4, 1), np.float32))
    last = check_same(proto("g (float[2,1,1] x) => (float[1,1,1] h) { y, h, c = LSTM <hidden_size = 1> (x, w, r) }", **given), drop_dead)
    assert [[value.name for value in node.outputs] for node in last.graph] == [["", "h"]]


# ---- prepare


def test_preparing_leaves_the_original_alone_and_ends() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv (x, w) y = BatchNormalization (c, k, k, k, k) }"
    original = load(proto(text, 11, w=np.ones((4, 3, 3, 3), np.float32), k=np.ones(4, np.float32)))
    before = original.to_proto().SerializeToString(deterministic=True)
    prepared = prepare(original)
    assert original.to_proto().SerializeToString(deterministic=True) == before
    assert ops(prepared) == {"Conv": 1}
    assert not any(one(prepared) for one in PASSES)


def test_a_value_without_a_rank_is_named() -> None:
    model = load(proto("g (float[2,3] x, int64[K] s) => (float[A] z) { y = Reshape (x, s) z = ReduceSum <keepdims = 0> (y) }"))
    with pytest.raises(ModelError, match=r"rank of value 'y'.*Reshape"):
        prepare(model)
