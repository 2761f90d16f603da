"""Pooling kernels equal their references bit for bit, float sums included: their order is fixed."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.check import check

from qrt.core.errors import ModelError
from qrt.ops.conv import Window
from qrt.ops.op import Op, Spec
from qrt.ops.pool import AveragePool, MaxPool, QAveragePool

WINDOWS = [
    ((1, 9, 3), Window((4,), (1,), (1,), (0, 0))),
    ((2, 7, 8, 5), Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))),
    ((2, 9, 8, 65), Window((2, 5), (2, 1), (2, 1), (0, 2, 1, 2))),
    ((1, 6, 6, 70), Window((6, 6), (1, 1), (1, 1), (0, 0, 0, 0))),
    ((1, 5, 6, 7, 4), Window((2, 3, 2), (2, 2, 1), (1, 2, 1), (0, 1, 0, 1, 1, 1))),
    ((1, 3, 3, 2), Window((1, 1), (1, 1), (1, 1), (2, 0, 0, 2))),  # windows on padding alone
    ((0, 4, 4, 2), Window((2, 2), (1, 1), (1, 1), (0, 0, 0, 0))),
    ((1, 40, 40, 48), Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
    ((2, 9, 8, 41), Window((2, 2), (2, 2), (1, 1), (1, 0, 0, 1))),
    ((1, 5, 6, 91), Window((3, 3), (1, 2), (2, 1), (1, 1, 1, 1))),
]


@pytest.mark.parametrize(("shape", "window"), WINDOWS)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int8])
def test_maximum(shape: tuple[int, ...], window: Window, dtype: type) -> None:
    rng = np.random.default_rng(0)
    check(MaxPool(window), [(rng.integers(-128, 128, shape) if dtype != np.uint8 else rng.integers(0, 256, shape)).astype(dtype)])


def test_maximum_of_infinities_and_nan() -> None:
    x = np.array([np.nan, 1, np.nan, -np.inf, -np.inf, np.nan, np.inf], np.float32).reshape(1, 7, 1)
    (y,) = check(MaxPool(Window((2,), (1,), (1,), (0, 0))), [x])
    np.testing.assert_array_equal(y.ravel(), [1, 1, -np.inf, -np.inf, -np.inf, np.inf])


@pytest.mark.parametrize(("shape", "window"), WINDOWS)
@pytest.mark.parametrize("counts", [False, True])
def test_mean(shape: tuple[int, ...], window: Window, counts: bool) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    check(AveragePool(window, window.pads if counts else None), [x])


@pytest.mark.parametrize(("shape", "window"), [w for w in WINDOWS if w[1].kernel != (1, 1)])
@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (100, 140)])
def test_mean_of_codes(shape: tuple[int, ...], window: Window, counts: bool, qmin: int, qmax: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    check(QAveragePool(window, window.pads if counts else None, 0.7, 131, 0.31, 120, qmin, qmax), [x])


def test_padding_that_only_rounds_the_extent_up_does_not_count() -> None:
    window = Window((3,), (2,), (1,), (0, 1))
    (y,) = check(AveragePool(window, (0, 0)), [np.arange(6, dtype=np.float32).reshape(1, 6, 1)])
    np.testing.assert_array_equal(y.ravel(), [1, 3, 4.5])


@pytest.mark.parametrize(
    ("op", "spec"),
    [
        (MaxPool(Window((2,), (1,), (1,), (0, 0))), Spec((1, 4, 2), np.dtype(np.int32))),
        (MaxPool(Window((2,), (1,), (1,), (0, 0))), Spec((1, 4, 4, 2), np.dtype(np.float32))),
        (MaxPool(Window((5,), (1,), (1,), (0, 0))), Spec((1, 4, 2), np.dtype(np.float32))),
        (AveragePool(Window((2,), (1,), (1,), (1, 1))), Spec((1, 0, 2), np.dtype(np.float32))),
        (QAveragePool(Window((2,), (1,), (1,), (0, 0)), None, 1, 0, 1, 0), Spec((1, 4, 2), np.dtype(np.int8))),
    ],
)
def test_what_does_not_fit_is_refused(op: Op, spec: Spec) -> None:
    with pytest.raises(ModelError):
        op.infer([spec])
