"""Sample against its NumPy definition, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.check import TARGETS_HERE, check

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.ops.op import Spec
from qrt.ops.resize import Sample
from qrt.ops.resize.sample import MODES, PADDINGS

RNG = np.random.default_rng(0)
ODD = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e7, -1e7, 0, -1, 1, 1.0000001, -1.5, 1e-40], np.float32)


def image(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("align", [False, True])
def test_places(mode: str, padding: str, align: bool) -> None:
    targets = TARGETS_HERE if padding == "zeros" else TARGETS_HERE[:1]
    for channels in (1, 3, 37):
        grid = RNG.uniform(-1.8, 1.8, (2, 6, 7, 2)).astype(np.float32)
        check(Sample(mode, padding, align), [image(2, 5, 8, channels), grid], targets=targets)
    check(Sample(mode, padding, align), [image(1, 1, 1, 4), RNG.uniform(-4, 4, (1, 9, 2)).astype(np.float32)], targets=targets[:1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_hostile_places(mode: str, padding: str) -> None:
    """None leads out of the image."""
    grid = np.stack(np.meshgrid(ODD, ODD), axis=-1)[None]
    x = image(1, 3, 4, 5)
    for align in (False, True):
        check(Sample(mode, padding, align), [x, grid], targets=TARGETS_HERE[:1])


def test_what_is_no_number_does_not_spread_from_outside() -> None:
    x = np.full((1, 2, 2, 3), np.nan, np.float32)
    (y,) = check(Sample("linear", "zeros", False), [x, np.full((1, 4, 2), -3, np.float32)], targets=TARGETS_HERE[:1])
    assert not y.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from(MODES), st.sampled_from(PADDINGS), st.booleans(), st.integers(1, 9), st.integers(1, 9))
def test_any_places(seed: int, mode: str, padding: str, align: bool, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    grid = (rng.normal(size=(1, 20, 2)) * rng.choice([0.5, 3, 100])).astype(np.float32)
    check(Sample(mode, padding, align), [image(1, rows, columns, 3), grid], targets=TARGETS_HERE[:1])


def test_what_does_not_fit() -> None:
    f = np.dtype(np.float32)
    for x, grid in (((1, 4, 4, 3), (1, 5, 5, 3)), ((1, 4, 4, 3), (2, 5, 5, 2)), ((1, 4, 3), (1, 5, 2)), ((1, 0, 4, 3), (1, 5, 2))):
        with pytest.raises(ModelError):
            Sample("linear", "zeros", False).infer([Spec(x, f), Spec(grid, f)])
    with pytest.raises(UnsupportedOp):
        Sample("linear", "zeros", False).infer([Spec((1, 4, 4, 3), np.dtype(np.float16)), Spec((1, 5, 2), f)])
