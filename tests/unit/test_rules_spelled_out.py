"""Gelu and layer norm as exporters spell them out: found again, or left alone where something is different."""

from __future__ import annotations

from typing import Any

import fused
import numpy as np
import onnx
import pytest
from graphs import images, make, ops, prepared, reference

import qrt
from qrt.graph import Model, attr_float
from qrt.graph.rules import fuse

NUMBERS: dict[str, Any] = {
    "root": float(np.sqrt(2)),
    "inverse": float(np.sqrt(0.5)),
    "one": 1.0,
    "half": 0.5,
    "two": 2.0,
    "eps": 1e-5,
    "scale": images(8, seed=1),
    "bias": images(8, seed=2),
    "wide": images(3, 8, seed=3),
}
NORM = "a = ReduceMean(x, last) d = Sub(x, a) p = Pow(d, two) v = ReduceMean(p, last) e = Add(v, eps) s = Sqrt(e) n = Div(d, s)"

# name → (nodes from x to y, the operators they become)
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "gelu": ("a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)", {"Gelu": 1}),
    "gelu, half first": ("h = Mul(x, half) a = Mul(inverse, x) b = Erf(a) c = Add(one, b) y = Mul(h, c)", {"Gelu": 1}),
    "gelu, half of another": (
        "o = Neg(x) h = Mul(o, half) a = Div(x, root) b = Erf(a) c = Add(b, one) y = Mul(h, c)",
        {"Neg": 1, "Mul": 2, "Div": 1, "Erf": 1, "Add": 1},
    ),
    "erf of another scale": (
        "a = Div(x, two) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
        {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2},
    ),
    "erf read twice": (
        "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) h = Mul(d, half) y = Add(h, b)",
        {"Div": 1, "Erf": 1, "Add": 2, "Mul": 2},
    ),
    "layer norm": (f"{NORM} m = Mul(n, scale) y = Add(m, bias)", {"LayerNormalization": 1}),
    "layer norm, turned round": (
        "a = ReduceMean(x, second) d = Sub(x, a) p = Mul(d, d) v = ReduceMean(p, second) e = Add(eps, v) s = Sqrt(e) n = Div(d, s) "
        "m = Mul(scale, n) y = Add(bias, m)",
        {"LayerNormalization": 1},
    ),
    "layer norm without bias": (f"{NORM} m = Mul(n, scale) y = Neg(m)", {"LayerNormalization": 1, "Neg": 1}),
    "layer norm whose centred values are read too": (
        f"{NORM} m = Mul(n, scale) t = Add(m, bias) y = Add(t, d)",
        {"LayerNormalization": 1, "ReduceMean": 1, "Sub": 1, "Add": 1},
    ),
    "a scale for each row": (f"{NORM} y = Mul(n, wide)", {"ReduceMean": 2, "Sub": 1, "Mul": 2, "Add": 1, "Sqrt": 1, "Div": 1}),
    "mean of another axis": (
        f"{NORM.replace('v = ReduceMean(p, last)', 'v = ReduceMean(p, middle)')} m = Mul(n, scale) y = Add(m, bias)",
        {"ReduceMean": 2, "Sub": 1, "Mul": 2, "Add": 2, "Sqrt": 1, "Div": 1},
    ),
    "the deviation is divided": (
        f"{NORM.replace('n = Div(d, s)', 'n = Div(s, d)')} m = Mul(n, scale) y = Add(m, bias)",
        {"ReduceMean": 2, "Sub": 1, "Mul": 2, "Add": 2, "Sqrt": 1, "Div": 1},
    ),
}
AXES = {"last": np.array([-1], np.int64), "middle": np.array([1], np.int64), "second": np.array([2], np.int64)}


@pytest.mark.parametrize("name", CASES)
def test_what_it_becomes_and_computes(name: str) -> None:
    nodes, expected = CASES[name]
    model = make(f"(float[2,3,8] x) => (float[2,3,8] y) {{ {nodes} }}", **NUMBERS, **AXES)
    found = prepared(model)
    fuse(found)
    counted = ops(found)
    if any(op in expected for op in ("Gelu", "LayerNormalization")):
        assert counted == expected
    else:
        assert not {"Gelu", "LayerNormalization"} & set(counted)
    x = images(2, 3, 8, seed=4)
    np.testing.assert_allclose(fused.run(found, {"x": x})[0], reference(model, x=x)[0], rtol=1e-5, atol=1e-6)


def check_fused(model: onnx.ModelProto, expected: dict[str, int], feeds: dict[str, np.ndarray], atol: float) -> Model:
    """The fused form, after it was seen to have these operators and to compute what onnx.reference does, as a session does too."""
    found = prepared(model)
    fuse(found)
    assert ops(found) == expected
    for result in (fused.run(found, feeds)[0], qrt.InferenceSession(model).run(None, feeds)[0]):
        np.testing.assert_allclose(result, reference(model, **feeds)[0], rtol=1e-5, atol=atol)
    return found


# name → (nodes from x (2, 4, 3, 8) and k (2, 4, 8, 5) to y, the operators they become, the scale)
SCORES: dict[str, tuple[str, dict[str, int], float]] = {
    "scaled and masked": ("a = MatMul(x, k) b = Div(a, root) c = Add(b, m) y = Softmax(c)", {"MatMul": 1, "FusedSoftmax": 1}, 0.5**0.5),
    "the mask first": ("a = MatMul(x, k) b = Mul(half, a) c = Add(m, b) y = Softmax<axis=3>(c)", {"MatMul": 1, "FusedSoftmax": 1}, 0.5),
    "scaled": ("a = MatMul(x, k) b = Mul(a, half) y = Softmax(b)", {"MatMul": 1, "FusedSoftmax": 1}, 0.5),
    "masked": ("a = MatMul(x, k) c = Add(a, m) y = Softmax(c)", {"MatMul": 1, "FusedSoftmax": 1}, 1.0),
    "a mask for each row": ("a = MatMul(x, k) c = Add(a, rows) y = Softmax(c)", {"MatMul": 1, "FusedSoftmax": 1}, 1.0),
    "plain": ("a = MatMul(x, k) y = Softmax(a)", {"MatMul": 1, "Softmax": 1}, 1.0),
    "divided into": ("a = MatMul(x, k) b = Div(half, a) y = Softmax(b)", {"MatMul": 1, "Div": 1, "Softmax": 1}, 1.0),
    "times nothing": ("a = MatMul(x, k) b = Mul(a, nothing) y = Softmax(b)", {"MatMul": 1, "Mul": 1, "Softmax": 1}, 1.0),
    "along another axis": (
        "a = MatMul(x, k) b = Mul(a, half) y = Softmax<axis=2>(b)",
        {"MatMul": 1, "Mul": 1, "Softmax": 1},
        1.0,
    ),
    "scores that are read too": (
        "a = MatMul(x, k) b = Mul(a, half) c = Softmax(b) y = Add(c, b)",
        {"MatMul": 1, "Mul": 1, "Softmax": 1, "Add": 1},
        1.0,
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_softmax_of_scores(name: str) -> None:
    nodes, expected, scale = SCORES[name]
    more = {"nothing": 0.0, "m": images(2, 1, 1, 5, seed=5) * 3, "rows": images(3, 1, seed=6)}
    model = make(f"(float[2,4,3,8] x, float[2,4,8,5] k) => (float[2,4,3,5] y) {{ {nodes} }}", **NUMBERS, **more)
    feeds = {"x": images(2, 4, 3, 8, seed=4), "k": images(2, 4, 8, 5, seed=7)}
    for node in check_fused(model, expected, feeds, 1e-6).graph:
        if node.op_type == "FusedSoftmax":
            assert attr_float(node, "scale", 0.0) == pytest.approx(scale)


# name → (nodes from x and r (2, 3, 8) to y, the operators they become)
SUMS: dict[str, tuple[str, dict[str, int]]] = {
    "residual": ("t = Add(x, r) y = LayerNormalization(t, scale, bias)", {"FusedLayerNorm": 1}),
    "without bias": ("t = Add(r, x) y = LayerNormalization<axis=2, epsilon=0.1>(t, scale)", {"FusedLayerNorm": 1}),
    "spelled out": (
        f"t = Add(x, r) {NORM.replace('(x,', '(t,')} m = Mul(n, scale) y = Add(m, bias)",
        {"FusedLayerNorm": 1},
    ),
    "read too": ("t = Add(x, r) n = LayerNormalization(t, scale, bias) y = Add(n, t)", {"Add": 2, "LayerNormalization": 1}),
    "a constant": ("t = Add(x, wide) y = LayerNormalization(t, scale, bias)", {"Add": 1, "LayerNormalization": 1}),
    "two axes": ("t = Add(x, r) y = LayerNormalization<axis=1>(t, wide)", {"Add": 1, "LayerNormalization": 1}),
}


@pytest.mark.parametrize("name", SUMS)
def test_norm_of_a_sum(name: str) -> None:
    nodes, expected = SUMS[name]
    model = make(f"(float[2,3,8] x, float[2,3,8] r) => (float[2,3,8] y) {{ {nodes} }}", **NUMBERS, **AXES)
    check_fused(model, expected, {"x": images(2, 3, 8, seed=4), "r": images(2, 3, 8, seed=5)}, 1e-5)


def test_norm_of_a_sum_that_turns_out_to_be_broadcast() -> None:
    model = make("(float[N,3,8] x, float[M,3,8] r) => (float[K,3,8] y) { t = Add(x, r) y = LayerNormalization(t, scale, bias) }", **NUMBERS)
    session = qrt.InferenceSession(model)
    for n, count in ((2, 2), (2, 1), (1, 2)):
        feeds = {"x": images(n, 3, 8, seed=4), "r": images(count, 3, 8, seed=5)}
        np.testing.assert_allclose(session.run(None, feeds)[0], reference(model, **feeds)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (8,), (1, 8), (3, 8), (2, 1, 1)])
@pytest.mark.parametrize("computed", [False, True])
def test_norm_of_a_sum_with_a_scale_of_any_shape(shape: tuple[int, ...], computed: bool) -> None:
    scale, feeds = np.asarray(images(*shape, seed=6)), {"x": images(2, 3, 8, seed=4), "r": images(2, 3, 8, seed=5)}
    given = f", float[{','.join(map(str, shape))}] s" if computed else ""
    text = f"(float[2,3,8] x, float[2,3,8] r{given}) => (float[2,3,8] y) {{ t = Add(x, r) y = LayerNormalization(t, s, bias) }}"
    model = make(text, **NUMBERS, **({} if computed else {"s": scale}))
    total = feeds["x"] + feeds["r"]
    wanted = (total - total.mean(-1, keepdims=True)) / np.sqrt(total.var(-1, keepdims=True) + 1e-5) * scale + NUMBERS["bias"]
    session = qrt.InferenceSession(model)
    np.testing.assert_allclose(session.run(None, feeds | ({"s": scale} if computed else {}))[0], wanted, rtol=1e-5, atol=1e-5)


def test_softmax_whose_mask_takes_more_strides_than_kernels_have() -> None:
    shape = (2, 3) * 4
    model = make(
        "(float[2,3,2,3,2,3,2,4] x, float[2,3,2,3,2,3,4,3] k) => (float[2,3,2,3,2,3,2,3] y) "
        "{ a = MatMul(x, k) c = Add(a, m) y = Softmax(c) }",
        m=images(*shape, seed=6)[:1, :, :1, :, :1, :, :1],
    )
    feeds = {"x": images(*shape[:7], 4, seed=4), "k": images(*shape[:6], 4, 3, seed=5)}
    np.testing.assert_allclose(qrt.InferenceSession(model).run(None, feeds)[0], reference(model, **feeds)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes", ["axes: ints = [-1]", "axes: ints = [2]"])
def test_axes_as_attributes(axes: str) -> None:
    nodes = f"{NORM} m = Mul(n, scale) y = Add(m, bias)"
    for value in "xp":
        nodes = nodes.replace(f"ReduceMean({value}, last)", f"ReduceMean<{axes}>({value})")
    model = make(f"(float[2,3,8] x) => (float[2,3,8] y) {{ {nodes} }}", 13, **NUMBERS)
    found = prepared(model)
    fuse(found)
    assert ops(found) == {"LayerNormalization": 1}
    x = images(2, 3, 8, seed=4)
    np.testing.assert_allclose(fused.run(found, {"x": x})[0], reference(model, x=x)[0], rtol=1e-5, atol=1e-6)


def test_an_intermediate_that_is_an_output_stays() -> None:
    nodes = "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)"
    model = make(f"(float[2,8] x) => (float[2,8] y, float[2,8] c) {{ {nodes} }}", **NUMBERS)
    found = prepared(model)
    fuse(found)
    x = images(2, 8, seed=4)
    for ours, theirs in zip(fused.run(found, {"x": x}), reference(model, x=x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
