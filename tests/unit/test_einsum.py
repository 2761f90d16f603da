"""Einsum as MatMul, beside NumPy: equations by hand and at random, with extents known and not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from qrt.core.errors import ModelError
from qrt.graph.passes import prepare
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower import Executable

EXTENTS = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 1, "f": 2, "B": 3}


def model(equation: str, shapes: Sequence[Sequence[int | str]]) -> onnx.ModelProto:
    names = [f"x{k}" for k in range(len(shapes))]
    graph = helper.make_graph(
        [helper.make_node("Einsum", names, ["y"], name="einsum", equation=equation)],
        "einsum",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in zip(names, shapes, strict=True)],
        [helper.make_empty_tensor_value_info("y")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def check(equation: str, shapes: Sequence[Sequence[int]], native: bool = True) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    wanted = np.einsum(equation, *arrays)
    for free in (False, True):
        given = [[f"n{k}_{axis}" for axis in range(len(shape))] if free else shape for k, shape in enumerate(shapes)]
        executable = Executable(prepare(load(model(equation, given))), host_target(), 1)
        (found,) = executable.run({f"x{k}": array for k, array in enumerate(arrays)})
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        assert not native or not executable.why


EQUATIONS = {
    "matmul": ("ij,jk->ik", [(2, 3), (3, 4)]),
    "scores": ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
    "scores-by-position": ("bqhd,bkhd->bhqk", [(2, 4, 3, 5), (2, 6, 3, 5)]),
    "values": ("bhij,bhjd->bihd", [(2, 3, 4, 5), (2, 3, 5, 6)]),
    "to-heads": ("bij,jkl->bikl", [(2, 3, 4), (4, 5, 6)]),
    "from-heads": ("bikl,klo->bio", [(2, 3, 4, 5), (4, 5, 6)]),
    "vector": ("bij,bj->bi", [(2, 3, 4), (2, 4)]),
    "dot": ("i,i->", [(5,), (5,)]),
    "outer": ("i,j->ij", [(3,), (4,)]),
    "product": ("ij,ij->ij", [(3, 4), (3, 4)]),
    "relative": ("bhwc,hkc->bhwk", [(2, 3, 4, 5), (3, 6, 5)]),
    "transpose": ("ijk->kij", [(2, 3, 4)]),
    "sum": ("ijk->j", [(2, 3, 4)]),
    "implicit": ("kj,ik", [(3, 4), (2, 3)]),
    "implicit-capitals": ("bA,bC", [(3, 4), (3, 2)]),
    "ellipsis": ("...ij,...jk->...ik", [(2, 1, 3, 4), (2, 5, 4, 6)]),
    "ellipsis-implicit": ("...ij,jk", [(2, 5, 3, 4), (4, 6)]),
    "ellipsis-inner": ("i...j,j...->i...", [(2, 3, 4, 5), (5, 3, 4)]),
    "three": ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)]),
    "three-shared": ("bij,bjk,bk->bi", [(2, 3, 4), (2, 4, 5), (2, 5)]),
    "bilinear": ("bi,oij,bj->bo", [(2, 3), (4, 3, 5), (2, 5)]),
    "four": ("ab,cd,be,da->ce", [(2, 3), (4, 5), (3, 2), (5, 2)]),
    "summed-alone": ("ij,kl->k", [(2, 3), (4, 5)]),
    "spaces": (" i j , j k -> k i ", [(2, 3), (3, 4)]),
    "merge-both": ("abcd,cdef->abef", [(2, 3, 4, 5), (4, 5, 2, 3)]),
    "batch-and-merge": ("gabc,gcde->gabde", [(2, 3, 4, 5), (2, 5, 3, 2)]),
    "scalar-result": ("abc,bca->", [(2, 3, 4), (3, 4, 2)]),
    "empty": ("ij,jk->ik", [(2, 0), (0, 4)]),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_equation(name: str) -> None:
    check(*EQUATIONS[name], native=name != "empty")


def test_a_diagonal_stays_as_it_is() -> None:
    check("ii->i", [(4, 4)], native=False)
    check("bii,ij->b", [(2, 3, 3), (3, 5)], native=False)


def test_an_axis_of_one_is_repeated() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    executable = Executable(prepare(load(model("ij,jk->ik", [(2, 1), (3, 4)]))), host_target(), 1)
    np.testing.assert_allclose(executable.run({"x0": a, "x1": b})[0], np.einsum("ij,jk->ik", a, b), rtol=1e-5)


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]]]:
    letters = sorted(EXTENTS)
    terms = draw(st.lists(st.lists(st.sampled_from(letters), unique=True, max_size=4), min_size=1, max_size=4))
    used = sorted({letter for term in terms for letter in term})
    result = draw(st.none() | st.lists(st.sampled_from(used), unique=True)) if used else None
    text = ",".join("".join(term) for term in terms)
    return text if result is None else f"{text}->{''.join(result)}", [tuple(EXTENTS[letter] for letter in term) for term in terms]


@settings(max_examples=80, deadline=None)
@given(equations())
def test_random_equations(case: tuple[str, list[tuple[int, ...]]]) -> None:
    check(*case)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (4, 5)]),
        ("ij,jk->il", [(2, 3), (3, 5)]),
        ("ij->ij", [(2, 3), (3, 5)]),
        ("ijk,jk->i", [(2, 3), (3, 5)]),
        ("i,jk->i", [(2, 3), (3, 5)]),
        ("i1,1k->ik", [(2, 3), (3, 5)]),
        ("ij,jk->ikk", [(2, 3), (3, 5)]),
    ],
)
def test_refused(equation: str, shapes: list[tuple[int, ...]]) -> None:
    rank = max(0, len(equation.partition("->")[2]))
    proto = model(equation, shapes)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * rank))
    with pytest.raises(ModelError, match="Einsum"):
        prepare(load(proto))
