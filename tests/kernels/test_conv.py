"""Convolutions: their references against ONNX Runtime's kernels, and their own kernels against the references.

As in test_gemm.py, not every row of the depthwise table is compiled: every tile with one epilogue, every epilogue with one tile.
"""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

import numpy as np
import pytest
from data import ort_session
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernels.check import TARGETS_HERE, check, program_of
from kernels.native import guarded
from kernels.products import (
    NEAR,
    VECTOR_TARGETS,
    added,
    codes,
    dynamic,
    extra,
    float_epilogues,
    float_weights,
    floats,
    integer_epilogues,
    to_codes,
    weights,
)
from lowered import one_node

from qrt.core.errors import ModelError, QrtError, UnsupportedOp
from qrt.core.target import TARGETS, Target
from qrt.jit.lanes import LANES
from qrt.ops.conv import Conv, Depthwise, Window
from qrt.ops.conv import depthwise as depthwise_table
from qrt.ops.conv.lines import phases_of
from qrt.ops.gemm import Codes, DynamicFloat, Float, Int32, Weights
from qrt.ops.gemm.table import EPILOGUES, Tile
from qrt.ops.op import Spec
from qrt.runtime.plan import Packs, build

RNG = np.random.default_rng(1)


def window(kernel: tuple[int, ...], stride: int = 1, dilation: int = 1, pad: tuple[int, ...] | int = 0, **more: Any) -> Window:
    rank = len(kernel)
    pads = (pad,) * (2 * rank) if isinstance(pad, int) else pad
    return Window(kernel, (stride,) * rank, (dilation,) * rank, pads, **more)


# A window and an image that it fits.
WINDOWS: list[tuple[Window, tuple[int, ...]]] = [
    (window((3, 3), pad=1), (7, 9)),
    (window((1, 1)), (7, 9)),
    (window((1, 1), stride=2), (7, 9)),
    (window((3,), stride=2, dilation=2, pad=(1, 2)), (20,)),
    (window((2, 2, 2)), (4, 4, 5)),
    (window((3, 2), stride=3, pad=(2, 0, 1, 1)), (8, 7)),
    (window((5, 5), pad=4), (2, 2)),  # more padding than image
    (window((2, 3), stride=2, pad=(0, 1, 1, 0), transposed=True, output_padding=(1, 0)), (5, 4)),
    (window((3,), stride=3, dilation=2, transposed=True), (6,)),
    (window((1, 1), stride=2, transposed=True), (3, 4)),  # gaps that no tap fills
    (window((2, 2, 2), stride=2, transposed=True), (2, 3, 2)),
]


# -- references -----------------------------------------------------------------------------------------------------------
def by_onnx_runtime(look: Window, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The convolution of channels-last x with w [groups, taps, k, n] by ONNX Runtime, in float32; channels last."""
    groups, _, k, n = w.shape
    if look.transposed:
        kernel = w.transpose(0, 2, 3, 1).reshape(groups * k, n, *look.kernel)
    else:
        kernel = w.transpose(0, 3, 2, 1).reshape(groups * n, k, *look.kernel)
    attributes: dict[str, Any] = {"strides": look.strides, "dilations": look.dilations, "pads": look.pads, "group": groups}
    if look.transposed:
        attributes["output_padding"] = look.output_padding or (0,) * len(look.kernel)
    inputs = [np.moveaxis(x, -1, 1).astype(np.float32), kernel.astype(np.float32)]
    model, feeds = one_node("ConvTranspose" if look.transposed else "Conv", inputs, [1], **attributes)
    (y,) = ort_session(model.SerializeToString()).run(None, feeds)
    return np.moveaxis(y, 1, -1)


def exact_in_float32(groups: int, taps: int, k: int, n: int, asymmetric: bool) -> Weights:
    """Weights so small that float32 holds every sum of codes times them."""
    w = RNG.integers(-20, 21, (groups, taps, k, n)).astype(np.int8)
    return Weights(w, RNG.integers(-9, 10, groups * n).astype(np.int32) if asymmetric else None)


@pytest.mark.parametrize(("groups", "k", "n"), [(1, 3, 5), (2, 5, 3), (4, 1, 1)])
@pytest.mark.parametrize(("look", "space"), WINDOWS, ids=lambda v: str(v) if isinstance(v, tuple) else None)
def test_reference_is_onnx_runtime_s(look: Window, space: tuple[int, ...], groups: int, k: int, n: int) -> None:
    x = codes(2, *space, groups * k)
    for asymmetric in (False, True):
        w = exact_in_float32(groups, look.taps, k, n, asymmetric)
        wanted = by_onnx_runtime(look, x.astype(np.float32) - 9, w.centred())
        ops: list[Conv | Depthwise] = [Conv(look, w, Int32(), 9)]
        if k == n == 1:
            ops.append(Depthwise(look, w, Int32(), 9))
        for op in ops:
            (found,) = check(op, [x])
            np.testing.assert_array_equal(found, wanted)


@st.composite
def looks(draw: st.DrawFn) -> tuple[Window, tuple[int, ...]]:
    rank = draw(st.integers(1, 2))
    some = lambda low, high: draw(st.tuples(*(st.integers(low, high),) * rank))  # noqa: E731
    kernel, strides, dilations, space = some(1, 4), some(1, 3), some(1, 3), some(1, 9)
    pads = (*some(0, 3), *some(0, 3))
    transposed = draw(st.booleans())
    return Window(kernel, strides, dilations, pads, transposed), space


@settings(max_examples=60)
@given(looks(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_any_window_gathers_what_onnx_runtime_gathers(look: tuple[Window, tuple[int, ...]], groups: int, k: int, n: int) -> None:
    seen, space = look
    try:
        out = seen.out_space(space)
    except ModelError:
        assume(False)
    w = exact_in_float32(groups, seen.taps, k, n, False)
    x = codes(1, *space, groups * k)
    op = Conv(seen, w, Int32())
    assert op.infer([Spec(x.shape, x.dtype)])[0].shape == (1, *out, groups * n)
    np.testing.assert_array_equal(op.reference([x])[0], by_onnx_runtime(seen, x.astype(np.float32), w.w))


@settings(max_examples=60)
@given(looks(), st.integers(1, 5))
def test_offsets_stay_inside_the_image(look: tuple[Window, tuple[int, ...]], pixel: int) -> None:
    seen, space = look
    try:
        table = seen.offsets(space, pixel)
    except ModelError:
        assume(False)
    assert table.shape == (prod(seen.out_space(space)), seen.taps)
    assert ((table == -1) | ((table >= 0) & (table <= (prod(space) - 1) * pixel) & (table % pixel == 0))).all()


# -- convolution's kernels ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("groups", "k", "n"), [(1, 3, 16), (2, 5, 9), (3, 8, 20)])
@pytest.mark.parametrize(("look", "space"), WINDOWS, ids=lambda v: str(v) if isinstance(v, tuple) else None)
def test_kernels_equal_the_reference(look: Window, space: tuple[int, ...], groups: int, k: int, n: int) -> None:
    columns, y = groups * n, (2, *look.out_space(space), groups * n)
    x = codes(2, *space, groups * k)
    for asymmetric, epilogue in itertools.product((False, True), (to_codes(columns, look.taps * k), added(columns, look.taps * k))):
        check(Conv(look, weights(groups, look.taps, k, n, asymmetric), epilogue, 9), [x, *extra(epilogue, *y)])
    scaled = dynamic(columns)
    check(Conv(look, weights(groups, look.taps, k, n, True, bias=False), scaled), [x, *extra(scaled)])
    for bounded in (Float(0.0, 6.0), Float(residual=True)):
        images = [floats(2, *space, groups * k), *extra(bounded, *y)]
        check(Conv(look, float_weights(groups, look.taps, k, n), bounded), images, **NEAR)


# -- depthwise ------------------------------------------------------------------------------------------------------------
def test_depthwise_table_has_a_row_for_whatever_is_chosen() -> None:
    names = [k.name for k in depthwise_table.KERNELS]
    assert len(set(names)) == len(names)
    for target, channels, epilogue in itertools.product(TARGETS, (1, 16, 17, 72, 1000), set(EPILOGUES) - {"u8t"}):
        assert depthwise_table.kernel_for(target, channels, epilogue).name in names


# Windows whose short rows tile registers find by phase, and images.
STRIDED: list[tuple[Window, tuple[int, ...]]] = [
    (window((3, 3), stride=2, pad=1), (13, 14)),
    (window((1, 1), stride=2), (9, 10)),
    (window((2, 2), stride=3), (14, 13)),
    (window((3, 2), stride=3, pad=(2, 0, 1, 1)), (16, 17)),
    (window((3, 3), stride=2, dilation=2, pad=2), (15, 9)),
    (window((5,), stride=2, dilation=3, pad=(1, 4)), (30,)),
    (Window((3, 3), (1, 2), (2, 1), (1, 0, 0, 1)), (12, 9)),
    (Window((2, 4), (2, 1), (1, 1), (0, 1, 3, 2)), (9, 11)),
]


@pytest.mark.parametrize(("look", "space"), STRIDED)
def test_strided_windows_with_short_rows(look: Window, space: tuple[int, ...]) -> None:
    assert phases_of(look, space, 64) is not None
    assert phases_of(look, space, 16) is None
    for k, n, asymmetric in ((64, 33, False), (56, 64, True), (128, 32, False)):
        w = weights(1, look.taps, k, n, asymmetric)
        check(Conv(look, w, to_codes(n, look.taps * k), 9), [codes(2, *space, k)])
    w = Weights(weights(1, look.taps, 64, 32).w, None, floats(32))
    check(Conv(look, w, dynamic(32)), [codes(1, *space, 64), *extra(dynamic(32), 1, *look.out_space(space), 32)])


def use(patch: pytest.MonkeyPatch, tile: Tile) -> None:
    patch.setattr(depthwise_table, "kernel_for", lambda target, channels, epilogue: depthwise_table._kernel(target.isa, tile, epilogue))


DEPTHWISE_TILES = [(target, tile) for target in VECTOR_TARGETS for tile in depthwise_table.TILES[target.isa]]


@pytest.mark.parametrize(("target", "tile"), DEPTHWISE_TILES, ids=lambda v: v.isa if isinstance(v, Target) else f"{v.rows}x{v.vectors}")
def test_every_depthwise_tile_at_its_edges(target: Target, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tile)
    lanes = tile.vectors * LANES[target.isa]
    look = window((3, 2), stride=2, pad=1)
    for channels in (1, lanes - 1, lanes, lanes + 1, 2 * lanes + 3):
        w = weights(channels, look.taps, 1, 1, asymmetric=True)
        check(Depthwise(look, w, to_codes(channels, look.taps), 9), [codes(2, 5, 6, channels)], targets=[target])
    check(Depthwise(look, weights(5, look.taps, 1, 1, True), to_codes(5, 6), 9), [codes(1, 1, 1, 5)], targets=[target])


@pytest.mark.parametrize("target", VECTOR_TARGETS, ids=lambda t: t.isa)
def test_every_depthwise_epilogue(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, depthwise_table.TILES[target.isa][0])
    look, space, channels = window((3, 3), stride=2, dilation=2, pad=2), (8, 9), 19
    y = (2, *look.out_space(space), channels)
    for asymmetric, bias in itertools.product((False, True), repeat=2):
        for epilogue in integer_epilogues(channels, look.taps):
            w = weights(channels, look.taps, 1, 1, asymmetric, bias)
            if isinstance(epilogue, DynamicFloat):
                w = Weights(w.w, w.zero_point, floats(channels) if bias else None)
            op = Depthwise(look, w, epilogue, 0 if epilogue.name == "f32d" else 13)
            check(op, [codes(2, *space, channels), *extra(epilogue, *y)], targets=[target])
    for bounds in float_epilogues():
        images = [floats(2, *space, channels), *extra(bounds, *y)]
        check(Depthwise(look, float_weights(channels, look.taps, 1, 1), bounds), images, targets=[target], **NEAR)


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 16, 32, 64, 72, 130])
def test_depthwise_windows_that_networks_have(size: int, stride: int, channels: int) -> None:
    for space, pad in (
        ((9, 11), size // 2),
        ((9, 20), size // 2),
        ((8, 15 + size), 0),
        ((5, 15), (size // 2, 0, 1, size)),
        ((size, size + 7), 0),
        ((8, 5), (0, 0, size - 1, size - 1)),
        ((1, 1), size // 2),
    ):
        look = window((size, size), stride=stride, pad=pad)
        w = weights(channels, look.taps, 1, 1)
        check(Depthwise(look, w, to_codes(channels, look.taps), 200), [codes(2, *space, channels)])


@pytest.mark.parametrize("channels", [32, 33, 50, 64, 130])
def test_depthwise_in_pairs_of_taps(channels: int) -> None:
    avx2 = [target for target in TARGETS_HERE if target.isa == "avx2"]
    transposed = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1), True, (1, 1))
    for look, space in (
        (window((1, 1), stride=2), (5, 6)),
        (window((2, 1)), (3, 3)),
        (window((3, 3), stride=2, dilation=2, pad=2), (8, 9)),
        (window((5,), stride=2, pad=2), (21,)),
        (window((2, 2, 2)), (3, 3, 4)),
        (transposed, (4, 5)),
    ):
        for asymmetric, bias in itertools.product((False, True), repeat=2):
            w = weights(channels, look.taps, 1, 1, asymmetric, bias)
            op = Depthwise(look, w, to_codes(channels, look.taps), 77)
            program, _ = program_of(op, [x := codes(2, *space, channels)])
            for target in avx2:
                assert depthwise_table.PAIRS in build(program, target, 1, Packs()).functions
            check(op, [x], targets=avx2)


# -- both -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", TARGETS_HERE, ids=lambda t: t.isa)
@pytest.mark.parametrize("channels", [1, 3, 16, 50, 64])
def test_nothing_is_read_past_the_callers_image(target: Target, channels: int) -> None:
    for look in (window((3, 3), pad=1), window((3, 3)), window((1, 1)), window((5, 5), stride=2, pad=2)):
        whole, single = weights(1, look.taps, channels, 30), weights(channels, look.taps, 1, 1)
        ops = [(Conv(look, whole, to_codes(30, channels)), codes), (Depthwise(look, single, to_codes(channels, 9)), codes)]
        ops += [(Conv(look, float_weights(1, look.taps, channels, 5), Float()), floats)]  # type: ignore[list-item]
        ops += [(Depthwise(look, float_weights(channels, look.taps, 1, 1), Float()), floats)]  # type: ignore[list-item]
        for op, draw in ops:
            image = guarded(draw(1, 6, 7, channels))
            program, _ = program_of(op, [image])
            (found,) = build(program, target, 1, Packs()).run([image])
            np.testing.assert_allclose(found, op.reference([image])[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [16, 32])
def test_pixels_taken_together_end_with_the_callers_image(channels: int) -> None:
    op = Depthwise(window((3, 3)), weights(channels, 9, 1, 1), to_codes(channels, 9), 3)
    image = guarded(codes(1, 5, 18, channels))
    for target in TARGETS_HERE:
        program, _ = program_of(op, [image])
        (found,) = build(program, target, 2, Packs()).run([image])
        np.testing.assert_array_equal(found, op.reference([image])[0])


def test_one_multiplier_serves_every_channel() -> None:
    look = window((3, 3), pad=1)
    x = codes(1, 4, 4, 6)
    (one,) = check(Conv(look, weights := exact_in_float32(1, 9, 6, 5, False), Codes(np.float32([0.01]), 100)), [x])
    (many,) = check(Conv(look, weights, Codes(np.full(5, 0.01, np.float32), 100)), [x])
    np.testing.assert_array_equal(one, many)


def test_no_images() -> None:
    look = window((3, 3), pad=1)
    assert check(Conv(look, weights(1, 9, 3, 4), Int32()), [codes(0, 5, 5, 3)])[0].shape == (0, 5, 5, 4)
    assert check(Depthwise(look, weights(3, 9, 1, 1), Int32()), [codes(0, 5, 5, 3)])[0].shape == (0, 5, 5, 3)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Window((3, 3), (1,), (1, 1), (0,) * 4), ModelError),
        (lambda: Window((3,), (0,), (1,), (0, 0)), ModelError),
        (lambda: Window((0,), (1,), (1,), (0, 0)), ModelError),
        (lambda: Window((3,), (1,), (1,), (-1, 0)), UnsupportedOp),
        (lambda: window((5,)).out_space((4,)), ModelError),
        (lambda: window((3, 3)).out_space((4,)), ModelError),
        (lambda: window((1,), pad=2, transposed=True).out_space((2,)), ModelError),
        (lambda: window((1, 1)).offsets((1 << 16, 1 << 15), 4), UnsupportedOp),
    ],
)
def test_windows_that_cannot_be(make: Any, error: type[QrtError]) -> None:
    with pytest.raises(error):
        make()


@pytest.mark.parametrize(
    ("op", "inputs", "error"),
    [
        (Conv(window((3,)), weights(1, 3, 4, 2), Int32()), [codes(1, 5, 3)], ModelError),  # channels
        (Conv(window((3,)), weights(1, 2, 4, 2), Int32()), [codes(1, 5, 4)], ModelError),  # taps
        (Conv(window((3,)), weights(1, 3, 4, 2), Int32()), [codes(1, 5, 5, 4)], ModelError),  # rank
        (Conv(window((3,)), weights(1, 3, 4, 2), Int32()), [floats(1, 5, 4)], UnsupportedOp),
        (Conv(window((3,)), weights(1, 3, 4, 2), Int32()), [codes(1, 2, 4)], ModelError),  # too small
        (Conv(window((3,)), weights(1, 3, 4, 2), added(2, 9)), [codes(1, 5, 4), codes(1, 5, 2)], UnsupportedOp),
        (Depthwise(window((3,)), weights(4, 3, 1, 2), Int32()), [codes(1, 5, 4)], ModelError),
        (Depthwise(window((3,)), weights(4, 3, 1, 1), Int32()), [codes(1, 5, 3)], ModelError),
        (Depthwise(window((3,)), weights(4, 3, 1, 1), Float()), [codes(1, 5, 4)], UnsupportedOp),
    ],
)
def test_images_that_do_not_fit(op: Conv | Depthwise, inputs: list[np.ndarray], error: type[QrtError]) -> None:
    with pytest.raises(error):
        op.infer([Spec(x.shape, x.dtype) for x in inputs])
