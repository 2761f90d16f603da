"""Reductions against their NumPy definitions."""

import numpy as np
import pytest
from kernels.check import TARGETS_HERE, check, check_same_bits

from qrt.core.errors import UnsupportedOp
from qrt.ops.op import Spec
from qrt.ops.reduction import KINDS, ArgReduce, CumSum, Reduce

RNG = np.random.default_rng(0)


def sample(dtype: str, *shape: int) -> np.ndarray:
    if dtype == "float32":
        return RNG.normal(size=shape).astype(np.float32) + np.float32(1)
    return RNG.integers(-100, 100, shape).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 7, 16, 31, 32, 100])
def test_rows_and_columns(kind: str, n: int) -> None:
    targets = TARGETS_HERE if kind in ("sum", "max") else TARGETS_HERE[:1]
    for x, first, last in ((sample("float32", 3, n), 1, 2), (sample("float32", 2, n, 37), 1, 2), (sample("float32", n), 0, 1)):
        check(Reduce(kind, first, last), [x], exact=kind in ("max", "min"), rtol=2e-5, atol=1e-5, targets=targets)


@pytest.mark.parametrize("kind", [kind for kind, row in KINDS.items() if "int64" in row.dtypes])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_integers(kind: str, dtype: str) -> None:
    for x, first, last in ((sample(dtype, 3, 50), 1, 2), (sample(dtype, 2, 9, 35), 1, 2)):
        check(Reduce(kind, first, last), [x], targets=TARGETS_HERE[:1])


def test_float_sums_have_one_order() -> None:
    check_same_bits(Reduce("sum", 1, 2), [sample("float32", 50, 1003)])
    check_same_bits(Reduce("mean", 1, 3), [sample("float32", 2, 19, 21, 331)])
    check_same_bits(Reduce("sum_square", 0, 1), [sample("float32", 5001)])


def test_several_axes_at_once() -> None:
    check(Reduce("sum", 1, 3), [sample("float32", 2, 5, 7, 9)], exact=False, rtol=1e-5)
    check(Reduce("max", 0, 3), [sample("float32", 5, 7, 9)])


@pytest.mark.parametrize("kind", ["max", "min"])
def test_nan_wins(kind: str) -> None:
    x = sample("float32", 4, 70)
    x[1, 3] = x[2, 69] = x[3, 40] = np.nan
    check(Reduce(kind, 1, 2), [x])
    check(Reduce(kind, 0, 1), [x])
    for last in (False, True):
        for axis in (0, 1):
            check(ArgReduce(kind, axis, last), [x], targets=TARGETS_HERE[:1])


def test_sums_of_nothing() -> None:
    for kind, row in KINDS.items():
        for x in (np.zeros((3, 0), np.float32), np.zeros((3, 0, 5), np.float32)):
            if row.of_nothing:
                check(Reduce(kind, 1, 2), [x], targets=TARGETS_HERE[:1])
            else:
                with pytest.raises(UnsupportedOp, match="of no elements"):
                    Reduce(kind, 1, 2).infer([Spec(x.shape, x.dtype)])
    check(Reduce("sum", 1, 2), [np.zeros((0, 3), np.float32)])


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
@pytest.mark.parametrize("kind", ["max", "min"])
def test_arg(kind: str, dtype: str) -> None:
    for shape, axis in (((3, 50), 1), ((4, 10, 33), 1), ((7,), 0), ((5, 6), 0)):
        x = RNG.integers(0, 7, shape).astype(dtype)
        for last in (False, True):
            check(ArgReduce(kind, axis, last), [x], targets=TARGETS_HERE[:1])


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum(dtype: str, exclusive: bool, reverse: bool) -> None:
    for shape, axis in (((3, 50), 1), ((4, 10, 33), 1), ((7,), 0), ((5, 6), 0), ((0, 3), 0)):
        check(CumSum(axis, exclusive, reverse), [RNG.integers(-9, 9, shape).astype(dtype)])
