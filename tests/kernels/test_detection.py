"""Suppress against its NumPy definition, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.check import TARGETS_HERE, check

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.ops.detection import Suppress
from qrt.ops.op import Spec

RNG = np.random.default_rng(0)
# What makes a box degenerate, or its overlap no number.
ODD = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 3e38, 1e-40], np.float32)


def boxes(images: int, n: int) -> np.ndarray:
    return RNG.uniform(0, 1, (images, n, 4)).astype(np.float32)


@pytest.mark.parametrize("centers", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("most", [0, 1, 5, 60])
def test_boxes(centers: bool, bounded: bool, most: int) -> None:
    scores = RNG.integers(0, 8, (2, 3, 60)).astype(np.float32) / np.float32(8)  # with ties
    check(Suppress(most, centers, bounded), [boxes(2, 60), scores, np.array([0.4, 0.3], np.float32)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans(), st.booleans(), st.integers(0, 40), st.floats(0, 1, width=32), st.floats(-1, 1, width=32))
def test_hostile_boxes(seed: int, centers: bool, bounded: bool, n: int, overlap: float, least: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (1, n, 4)).astype(np.float32)
    odd = rng.random(x.shape) < 0.2
    x[odd] = rng.choice(ODD, int(odd.sum()))
    scores = rng.choice(np.append(ODD, rng.normal(size=9).astype(np.float32)), (1, 2, n))
    with np.errstate(all="ignore"):
        check(Suppress(n, centers, bounded), [x, scores, np.array([overlap, least], np.float32)], targets=TARGETS_HERE[:1])


def test_what_does_not_fit() -> None:
    f = np.dtype(np.float32)
    good = [Spec((1, 5, 4), f), Spec((1, 2, 5), f), Spec((2,), f)]
    for bad in (
        [Spec((1, 5, 3), f), *good[1:]],
        [Spec((2, 5, 4), f), *good[1:]],
        [good[0], Spec((1, 2, 6), f), good[2]],
        [good[0], *good[:1], good[2]],
    ):
        with pytest.raises(ModelError):
            Suppress(5, False, True).infer(bad)
    with pytest.raises(ModelError):
        Suppress(6, False, True).infer(good)
    with pytest.raises(UnsupportedOp):
        Suppress(5, False, True).infer([Spec((1, 5, 4), np.dtype(np.float64)), *good[1:]])
