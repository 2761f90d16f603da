"""Top and OneHot against their NumPy definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from kernels.check import TARGETS_HERE, check

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.ops.movement.one_hot import OneHot
from qrt.ops.op import Spec
from qrt.ops.reduction import Top
from qrt.ops.reduction.top import DTYPES

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 2, 5, 33, 100])
def test_rows_and_columns(k: int, largest: bool) -> None:
    x = RNG.normal(size=(3, 100, 7)).astype(np.float32)
    check(Top(k, 1, largest), [x])
    check(Top(k, 1, largest), [np.ascontiguousarray(x[:, :, 0])])
    check(Top(k, 0, largest), [np.ascontiguousarray(x[0, :, 0])], targets=TARGETS_HERE[:1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [True, False])
def test_extremes_and_equals(dtype: str, largest: bool) -> None:
    if dtype == "float32":
        values = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 3e38, -3e38], np.float32)
    else:
        info = np.iinfo(dtype)
        values = np.array([info.min, info.min + 1, 0, 1, info.max - 1, info.max], dtype)
    x = values[RNG.integers(0, len(values), (4, 150))]
    for k in (1, 7, 150):
        check(Top(k, 1, largest), [x], targets=TARGETS_HERE[:1])


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 80)), elements=st.floats(width=32)), st.data(), st.booleans())
def test_any_floats(x: np.ndarray, data: st.DataObject, largest: bool) -> None:
    check(Top(data.draw(st.integers(0, x.shape[1])), 1, largest), [x], targets=TARGETS_HERE[:1])


def test_what_does_not_fit() -> None:
    x = Spec((2, 5), np.dtype(np.float32))
    for op in (Top(6, 1), Top(-1, 1), Top(1, 2), Top(1, -1)):
        with pytest.raises(ModelError):
            op.infer([x])
    with pytest.raises(UnsupportedOp):
        Top(1, 1).infer([Spec((2, 5), np.dtype(np.float64))])


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "int16"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_hot(dtype: str, axis: int) -> None:
    values = np.array([2, 5]).astype(dtype)
    for index in (np.int32, np.int64):
        check(OneHot(9, axis), [RNG.integers(-20, 20, (4, 50)).astype(index), values])
        check(OneHot(9, 0), [np.array(3, index), values], targets=TARGETS_HERE[:1])
