"""Constants behind a product go into its bias, where they are one."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import images, make, ops, prepared
from passes import runtime

from qrt.quantization.absorb import absorb_bias


@pytest.mark.parametrize(
    ("c", "b", "absorbed"),
    [((4,), (4,), True), ((1, 4), (1, 1), True), ((), (4,), True), ((4, 1), (4,), False), ((4, 4), (4,), False), ((4,), (4, 1), False)],
)
def test_only_what_differs_from_column_to_column_is_a_bias(c: tuple[int, ...], b: tuple[int, ...], absorbed: bool) -> None:
    constants = {"w": images(3, 4), "c": images(*c, seed=1), "b": images(*b, seed=2)}
    model = make("(float[4,3] a) => (float[4,4] y) { g = Gemm(a, w, c) y = Add(g, b) }", **constants)
    clean = prepared(model)
    absorb_bias(clean)
    assert ops(clean) == ({"Gemm": 1} if absorbed else {"Gemm": 1, "Add": 1})
    feeds = {"a": images(4, 3, seed=3)}
    np.testing.assert_allclose(runtime(clean.to_proto(), feeds)[0], runtime(model, feeds)[0], rtol=1e-5, atol=1e-5)
