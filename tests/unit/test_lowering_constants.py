"""What lowering keeps of constants: those of the model once, those that follow from shapes no longer than the plan."""

from __future__ import annotations

import gc
import sys
import weakref

import numpy as np
import pytest
from graphs import I8, codes, images, make
from lowered import as_model

from qrt.jit.host import host_target
from qrt.lower.executable import Executable
from qrt.lower.lowering import Constants


def test_what_follows_from_constants_alone_is_computed_and_packed_once() -> None:
    model = make("(float[N,64] x) => (float[N,64] y) { w = DequantizeLinear(c, s, z) y = MatMul(x, w) }", c=codes(64, 64), s=0.02, z=I8(3))
    executable = Executable(as_model(model), host_target(), 1)
    sizes = []
    for rows in (1, 2, 5):
        x = images(rows, 64)
        expected = x @ ((codes(64, 64).astype(np.float32) - 3) * np.float32(0.02))
        np.testing.assert_allclose(executable.run({"x": x})[0], expected, rtol=1e-4, atol=1e-4)
        sizes.append(executable.packs.nbytes)
    assert sizes[0] == sizes[1] == sizes[2] > 0


def test_what_follows_from_shapes_goes_with_the_plan() -> None:
    model = make("(float[N,M] x) => (float[N,M] y) { s = Shape(x) o = ConstantOfShape(s) t = Trilu <upper = 0> (o) y = Add(x, t) }")
    executable = Executable(as_model(model), host_target(), 1)
    x = images(40, 40)
    (plan, program) = executable.plans({"x": x})[0]
    masks = [weakref.ref(array) for array in program.constants.values() if array.shape == (40, 40)]
    assert masks
    del plan, program
    executable._stages[0].plans.clear()
    executable.wholes.clear()
    gc.collect()
    assert all(mask() is None for mask in masks)


def test_constants_of_one_lowering_and_of_the_model() -> None:
    model = Constants()
    plan = Constants(model)
    weight, shape = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert plan.name("w", weight) is model.named("w") is weight
    assert plan.lasts(weight)
    assert not plan.lasts(shape)
    laid = plan.laid(weight, (1, 0))
    assert laid is model.laid(weight, (1, 0)) is Constants(model).laid(weight, (1, 0))
    assert plan.laid(laid, (0, 1)) is model.laid(laid, (0, 1))
    assert plan.laid(shape, (1, 0)) is plan.laid(shape, (1, 0))
    assert plan.laid(shape, (1, 0)) is not Constants(model).laid(shape, (1, 0))


def test_tables_of_shapes_go_with_their_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrt.lower.executable.MAX_PLANS", 2)
    attributes = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
    model = make(f"(float[1,4,H,W] x) => (float[1,4,A,B] y) {{ y = Conv {attributes} (x, w) }}", w=images(4, 4, 3, 3))
    executable = Executable(as_model(model), host_target(), 1)
    first = executable.run({"x": images(1, 4, 20, 20)})[0]
    sizes = []
    for width in (21, 22, 21, 22, 23, 20):
        found = executable.run({"x": images(1, 4, 20, width)})[0]
        sizes.append(executable.packs.nbytes)
    np.testing.assert_array_equal(found, first)
    assert max(sizes) < 1.2 * sizes[0]


def test_what_python_makes_of_constants_is_kept_where_it_is_not_much_more() -> None:
    """A window of a length that the file says, and weights in blocks."""
    window = "(float[N] x) => (float[N] y) { h = HannWindow(size) y = Add(h, x) }"
    for size, kept in ((1000, True), (20_000, False)):
        executable = Executable(as_model(make(window, size=np.int64(size))), host_target(), 1)
        assert ("HannWindow_h" not in executable.why) == kept
        assert sum(node.op_type == "HannWindow" for node in executable._nodes) == (not kept)
        wanted = np.sin(np.arange(size) * np.pi / size) ** 2
        np.testing.assert_allclose(executable.run({"x": np.ones(size, np.float32)})[0], wanted + 1, rtol=1e-5)
    blocks = "(float[N,2560] x) => (float[N,2048] y) { w = DequantizeLinear<axis=0, block_size=2>(c, s) y = MatMul(x, w) }"
    model = make(blocks, c=codes(2560, 2048), s=np.full((1280, 2048), 0.01, np.float32))
    executable = Executable(as_model(model), host_target(), 1)
    executable.run({"x": images(1, 2560)})  # 20 MB of weights
    assert not executable.why


@pytest.mark.parametrize("growth", [1, 100])
def test_results_of_unknown_size_are_kept_where_they_turn_out_small(growth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["qrt.graph.passes.fold_constants"]
    monkeypatch.setattr(module, "_ALWAYS_BYTES", 0)
    monkeypatch.setattr(module, "_MAX_GROWTH", growth)
    nodes = "i = NonZero(a) f = Cast<to=1>(i) z = ReduceSum<keepdims=0>(f) y = Mul(x, z)"
    executable = Executable(as_model(make(f"(float[N] x) => (float[N] y) {{ {nodes} }}", a=np.ones(9, bool))), host_target(), 1)
    assert ("NonZero_i" in executable.why) == (growth == 1)
    np.testing.assert_array_equal(executable.run({"x": images(3)})[0], 36 * images(3))
