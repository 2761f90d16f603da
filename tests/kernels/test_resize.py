"""Resizing kernels equal their references bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.check import check

from qrt.core.errors import ModelError
from qrt.ops.op import Op, Spec
from qrt.ops.resize import Linear, Nearest, QLinear

SHAPES = [(2, 5, 7, 3), (1, 5, 7, 65), (3, 5, 7), (1, 5, 7, 200)]
ROWS, COLUMNS = (0.0, 0.3, 1.9, 4.0, 2.25, 4.0), (6.0, 5.7, 0.1, 3.0, 3.5, 1 / 3, 2.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.int64])
def test_nearest(shape: tuple[int, ...], dtype: type) -> None:
    check(Nearest(1, (4, 0, 0, 3), (6, 6, 1, 0, 2)), [np.arange(np.prod(shape)).reshape(shape).astype(dtype)])


@pytest.mark.parametrize("shape", SHAPES)
def test_linear(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (y,) = check(Linear(1, ROWS, COLUMNS), [x])
    np.testing.assert_array_equal(y[:, 0, 0], x[:, 0, 6])
    np.testing.assert_allclose(y[:, 3, 4], (x[:, 4, 3] + x[:, 4, 4]) / 2, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (50, 128)])
def test_linear_on_codes(shape: tuple[int, ...], qmin: int, qmax: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    check(QLinear(1, ROWS, COLUMNS, 0.5, 7, 0.4, 100, qmin, qmax), [x])
    if (qmin, qmax) == (0, 255):
        (y,) = check(QLinear(1, (0.0, 1.0), (0.0, 1.0, 2.0), 0.5, 7, 0.5, 7), [x])
        np.testing.assert_array_equal(y, x[:, :2, :3])


@pytest.mark.parametrize(
    ("op", "spec"),
    [
        (Nearest(1, (0,), (5,)), Spec((1, 5, 5), np.dtype(np.float32))),
        (Nearest(1, (-1,), (0,)), Spec((1, 5, 5), np.dtype(np.float32))),
        (Nearest(2, (0,), (0,)), Spec((1, 5, 5), np.dtype(np.float32))),
        (Linear(1, (4.5,), (0,)), Spec((1, 5, 5), np.dtype(np.float32))),
        (Linear(1, (float("nan"),), (0,)), Spec((1, 5, 5), np.dtype(np.float32))),
        (Linear(1, (0,), (0,)), Spec((1, 5, 5), np.dtype(np.float64))),
        (QLinear(1, (0,), (0,), 1, 0, 1, 0), Spec((1, 5, 5), np.dtype(np.int8))),
    ],
)
def test_what_does_not_fit_is_refused(op: Op, spec: Spec) -> None:
    with pytest.raises(ModelError):
        op.infer([spec])
