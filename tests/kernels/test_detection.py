"""Suppress and RoiAlign against their NumPy definitions, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.check import TARGETS_HERE, check, program_of

from qrt.core.errors import InvalidInput, ModelError, UnsupportedOp
from qrt.ops.detection import RoiAlign, Suppress
from qrt.ops.op import Spec
from qrt.runtime.plan import Packs, build

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


def image(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("sampling", [0, 2, 3])
@pytest.mark.parametrize("half_pixel", [False, True])
def test_boxes_of_images(largest: bool, sampling: int, half_pixel: bool) -> None:
    rois = RNG.uniform(-3, 16, (9, 4)).astype(np.float32)  # some inside out, some beyond the image
    index = RNG.integers(0, 2, 9)
    for channels in (1, 19):
        check(RoiAlign(largest, 3, 4, sampling, 0.75, half_pixel), [image(2, 9, 12, channels), rois, index])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans(), st.sampled_from([0, 1, 4]), st.booleans())
def test_hostile_rois(seed: int, largest: bool, sampling: int, half_pixel: bool) -> None:
    rng = np.random.default_rng(seed)
    rois = rng.uniform(-5, 12, (6, 4)).astype(np.float32)
    odd = rng.random(rois.shape) < 0.1
    rois[odd] = rng.choice(np.array([0, -0.0, np.nan, 40, -40, 300, 1e-40], np.float32), int(odd.sum()))
    x = np.round(image(1, 4, 7, 3), 1)
    check(RoiAlign(largest, 2, 3, sampling, 1.0, half_pixel), [x, rois, np.zeros(6, np.int64)], targets=TARGETS_HERE[:1])


def test_huge_boxes_end() -> None:
    """They have billions of samples, of which nearly all lie outside of the image."""
    big = np.float32(3e38)
    rois = np.array([[-big, -big, big, big], [0, 0, np.inf, np.inf], [-1e6, -1e6, 1e6, 1e6]], np.float32)
    program, feeds = program_of(RoiAlign(False, 2, 2, 0, 1.0, True), [image(1, 4, 5, 2), rois, np.zeros(3, np.int64)])
    (y,) = build(program, TARGETS_HERE[0], 1, Packs()).run(feeds)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("wrong", [-1, 2, 1 << 40])
def test_an_image_that_is_not_there(wrong: int) -> None:
    program, feeds = program_of(RoiAlign(False, 2, 2, 0, 1.0, True), [image(2, 4, 5, 2), image(3, 4), np.array([0, wrong, 1])])
    with pytest.raises(InvalidInput, match=f"within 0 … 1; one is {wrong}"):
        build(program, TARGETS_HERE[0], 1, Packs()).run(feeds)


def test_rois_that_do_not_fit() -> None:
    f, i = np.dtype(np.float32), np.dtype(np.int64)
    good = [Spec((2, 4, 5, 3), f), Spec((6, 4), f), Spec((6,), i)]
    for place, spec in ((0, Spec((2, 4, 5), f)), (0, Spec((2, 0, 5, 3), f)), (1, Spec((6, 5), f)), (2, Spec((5,), i))):
        with pytest.raises(ModelError):
            RoiAlign(False, 2, 2, 0, 1.0, True).infer([*good[:place], spec, *good[place + 1 :]])
    for op in (RoiAlign(False, 0, 2, 0, 1.0, True), RoiAlign(False, 2, 2, -1, 1.0, True), RoiAlign(False, 2, 2, 1 << 20, 1.0, True)):
        with pytest.raises(ModelError):
            op.infer(good)
    with pytest.raises(UnsupportedOp):
        RoiAlign(False, 2, 2, 0, 1.0, True).infer([*good[:2], Spec((6,), np.dtype(np.int32))])
