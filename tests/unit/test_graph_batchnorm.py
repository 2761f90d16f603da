"""BatchNormalization goes into the weights before it, or becomes a product and a sum; results are ONNX Runtime's."""

from __future__ import annotations

import numpy as np
import pytest
from passes import Arrays, check_same, ops, proto, runtime

from qrt.graph.passes.drop_dead import drop_dead
from qrt.graph.passes.fold_batchnorm import fold_batchnorm
from qrt.graph.passes.infer_shapes import infer_shapes
from qrt.graph.passes.split_batchnorm import split_batchnorm


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
    model = check_same(proto(text, **tensors), fold_batchnorm, drop_dead, run=runtime)
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
    model = check_same(proto(text, **tensors), fold_batchnorm, run=runtime)
    assert ops(model)["BatchNormalization"] == 1
    model = check_same(proto(text, **tensors), fold_batchnorm, infer_shapes, split_batchnorm, drop_dead, run=runtime)
    assert ops(model)["BatchNormalization"] == 0
    assert ops(model)["Mul"] == 1


def test_a_weight_that_two_convolutions_share_is_scaled_for_one() -> None:
    before = proto(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] d) { c = Conv (x, w) d = Conv (x, w) " + NORM + " }",
        w=weight(4, 3, 3, 3),
        **statistics(4),
    )
    assert ops(check_same(before, fold_batchnorm, drop_dead, run=runtime)) == {"Conv": 2}


def test_training_statistics_are_left_alone() -> None:
    before = proto(
        "g (float[N,4,3] x) => (float[N,4,3] y) { y, m2, v2 = BatchNormalization <training_mode = 1> (x, g1, b1, m1, v1) }", **statistics(4)
    )
    assert ops(check_same(before, fold_batchnorm, split_batchnorm))["BatchNormalization"] == 1
