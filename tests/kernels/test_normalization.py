"""Softmax and norms against their NumPy definitions."""

import numpy as np
import pytest
from kernels.check import check, check_same_bits

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.ops.normalization import ImageNorm, LayerNorm, LpNorm, RmsNorm, ScaledSoftmax, Softmax
from qrt.ops.op import Spec

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) * 3 + 1).astype(np.float32)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 10), 1), ((5, 1), 1), ((4, 1000), 1), ((3, 10, 70), 1), ((7, 5), 0), ((2, 130, 65), 1), ((0, 4), 1)]
)
def test_softmax(shape: tuple[int, ...], axis: int, log: bool) -> None:
    check(Softmax(axis, log), [real(*shape) * 10], exact=False, rtol=1e-5, atol=1e-6 if not log else 2e-5)


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((3, 10), None),
        ((2, 4, 3, 130), None),
        ((2, 4, 3, 70), (2, 1, 1, 70)),
        ((2, 4, 3, 33), (1, 1, 3, 33)),
        ((2, 4, 3, 16), (2, 1, 3, 16)),
        ((2, 4, 3, 5), (1, 4, 1, 5)),
        ((2, 4, 3, 8), (2, 4, 3, 8)),
        ((2, 4, 3, 8), (1, 1, 1, 8)),
        ((0, 4), None),
    ],
)
def test_softmax_of_scores(shape: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    given = [] if mask is None else [np.where(real(*mask) > 3, -np.inf, real(*mask)).astype(np.float32)]
    check(ScaledSoftmax(0.17), [real(*shape) * 10, *given], exact=False, rtol=2e-5, atol=1e-6)
    check(ScaledSoftmax(-2.0), [real(*shape), *given], exact=False, rtol=2e-5, atol=1e-6)


def test_softmax_of_far_and_special_numbers() -> None:
    x = np.array([[1e30, 0, -1e30, 5], [-np.inf, 0, 1, 2], [200, 100, 0, -100]], np.float32)
    for shape in (x, np.ascontiguousarray(x.T)):
        check(Softmax(0 if shape is not x else 1), [shape], exact=False)
    for odd in (np.nan, np.inf):
        x = real(4, 40)
        x[1, 35] = odd
        y = check(Softmax(1), [x], exact=False)[0]
        assert np.isnan(y[1]).all() if np.isnan(odd) else np.isnan(y[1, 35])
        check(Softmax(0), [x], exact=False)


@pytest.mark.parametrize(("shape", "axis"), [((3, 10), 1), ((5, 1), 1), ((40, 384), 1), ((3, 10, 70), 1), ((2, 0), 1)])
def test_norms_of_rows(shape: tuple[int, ...], axis: int) -> None:
    x, scale, bias = real(*shape), real(*shape[axis:]), real(*shape[axis:])
    if x.size:
        check(LayerNorm(axis, 1e-5), [x, scale, bias], exact=False, rtol=1e-4, atol=1e-5)
        check(LayerNorm(axis, 1e-5), [x, scale], exact=False, rtol=1e-4, atol=1e-5)
        check(LayerNorm(axis, 1e-5, True), [x, real(*shape), scale, bias], exact=False, rtol=1e-4, atol=1e-5)
        check(LayerNorm(axis, 1e-5, True), [x, real(*shape), scale], exact=False, rtol=1e-4, atol=1e-5)
        check(RmsNorm(axis, 1e-5), [x, scale], exact=False, rtol=1e-5, atol=1e-5)
    for p in (1, 2):
        check(LpNorm(p), [x], exact=False, rtol=1e-5)


def test_a_row_of_zeros_has_no_direction() -> None:
    assert not check(LpNorm(2), [np.zeros((2, 5), np.float32)])[0].any()


@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 5, 7, 6), 6), ((2, 5, 7, 6), 2), ((1, 9, 130), 130), ((1, 40, 50, 96), 8), ((1, 4, 210), 3)]
)
def test_norms_of_images(shape: tuple[int, ...], groups: int) -> None:
    check(ImageNorm(groups, 1e-5), [real(*shape), real(shape[-1]), real(shape[-1])], exact=False, rtol=1e-4, atol=2e-5)


def test_results_do_not_depend_on_the_machine() -> None:
    check_same_bits(Softmax(1), [real(100, 101)])
    check_same_bits(Softmax(1), [real(5, 11, 101)])
    check_same_bits(ScaledSoftmax(0.3), [real(5, 11, 101), real(1, 11, 101)])
    check_same_bits(LayerNorm(1, 1e-5), [real(100, 101), real(101), real(101)])
    check_same_bits(LayerNorm(1, 1e-5, True), [real(100, 101), real(100, 101), real(101), real(101)])
    check_same_bits(ImageNorm(4, 1e-5), [real(3, 5, 7, 64), real(64), real(64)])


def test_what_does_not_fit_is_refused() -> None:
    f32 = np.dtype(np.float32)
    with pytest.raises(ModelError, match="does not fit rows"):
        LayerNorm(1, 1e-5).infer([Spec((2, 4), f32), Spec((3,), f32)])
    with pytest.raises(ModelError, match="6 channels do not make 4 groups"):
        ImageNorm(4, 1e-5).infer([Spec((2, 4, 6), f32), Spec((6,), f32), Spec((6,), f32)])
    with pytest.raises(UnsupportedOp, match="a residual of"):
        LayerNorm(1, 1e-5, True).infer([Spec((2, 4), f32), Spec((1, 4), f32), Spec((4,), f32)])
    with pytest.raises(UnsupportedOp, match="order 3"):
        LpNorm(3).infer([Spec((2, 4), f32)])
