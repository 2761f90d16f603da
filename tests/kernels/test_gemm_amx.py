"""Products and convolutions on tile registers equal their references, bit for bit; `Lines` find what tables of offsets find."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernels.check import TARGETS_HERE, check, program_of
from kernels.products import added, codes, extra, integer_epilogues, to_codes, weights

from qrt.core.errors import ModelError
from qrt.ops.conv import Conv, Window
from qrt.ops.conv.lines import lines_of
from qrt.ops.gemm import Dense, Int32, amx
from qrt.ops.gemm.product import Product
from qrt.ops.program import interpret
from qrt.runtime.plan import Packs, build

AMX = [target for target in TARGETS_HERE if target.isa == "amx"]
NEEDS_AMX = pytest.mark.skipif(not AMX, reason="this machine has no AMX")


@NEEDS_AMX
@pytest.mark.parametrize(
    ("m", "n", "k"), [(16, 24, 48), (31, 33, 64), (32, 32, 65), (33, 31, 63), (65, 70, 130), (70, 40, 9000), (2100, 24, 256)]
)
def test_tile_registers_at_their_edges(m: int, n: int, k: int) -> None:
    assert amx.suits(AMX[0], Product(m, n, k, Int32()))
    for asymmetric, epilogue in itertools.product((False, True), integer_epilogues(n, k)):
        w = weights(1, 1, k, n, asymmetric, bias=epilogue.name != "f32d")
        check(Dense(w, epilogue, 0 if epilogue.name == "f32d" else 13), [codes(m, k), *extra(epilogue, m, n)], targets=AMX)


@NEEDS_AMX
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(5, 70, 900), (6, 64, 2100), (7, 100, 2048), (9, 64, 1030), (15, 95, 200), (16, 96, 200), (49, 256, 2048), (98, 33, 640)],
)
def test_tiles_have_as_many_rows_as_there_are(m: int, n: int, k: int) -> None:
    assert amx.suits(AMX[0], Product(m, n, k, Int32(), lines=amx.Lines.of_rows(m, k)))
    for epilogue in integer_epilogues(n, k):
        op = Dense(weights(1, 1, k, n, bias=epilogue.name != "f32d"), epilogue, 0 if epilogue.name == "f32d" else 13)
        check(op, [codes(m, k), *extra(epilogue, m, n)], targets=AMX)


@NEEDS_AMX
@pytest.mark.parametrize(("channels", "size"), [(48, 3), (50, 3), (64, 3), (16, 3), (3, 7), (5, 7)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_tile_registers_through_a_window(channels: int, size: int, stride: int, dilation: int) -> None:
    look = Window((size, size), (stride,) * 2, (dilation,) * 2, (size // 2,) * 4)
    for asymmetric, epilogue in itertools.product((False, True), integer_epilogues(40, look.taps * channels)):
        y = (2, *look.out_space((9, 11)), 40)
        w = weights(1, look.taps, channels, 40, asymmetric, bias=epilogue.name != "f32d")
        op = Conv(look, w, epilogue, 0 if epilogue.name == "f32d" else 200)
        check(op, [codes(2, 9, 11, channels), *extra(epilogue, *y)], targets=AMX)


@st.composite
def images_in_lines(draw: st.DrawFn) -> tuple[Window, tuple[int, ...]]:
    rank = draw(st.integers(1, 2))
    some = lambda low, high: draw(st.tuples(*(st.integers(low, high),) * rank))  # noqa: E731
    kernel, strides, dilations = some(1, 4), some(1, 3), some(1, 3)
    return Window(kernel, strides, dilations, (*some(0, 3), *some(0, 3))), (*some(1, 9)[1:], draw(st.integers(10, 70)))


@settings(max_examples=100)
@given(images_in_lines(), st.integers(1, 5))
def test_lines_find_what_the_table_of_offsets_finds(image: tuple[Window, tuple[int, ...]], pixel: int) -> None:
    look, space = image
    try:
        table = look.offsets(space, 1)
    except ModelError:
        assume(False)
    lines = lines_of(look, space, pixel, pixel)
    assume(lines is not None)
    assert lines is not None
    # The image's pixels by their number, -1 for padding, laid out as `padded` says.
    rank, gap = len(space), max(look.pads[len(space) - 1], look.pads[-1], look.out_space(space)[-1] - space[-1])
    top, bottom, height = (look.pads[0], look.pads[2], space[0]) if rank == 2 else (0, 0, 1)
    laid = np.full((top + height + bottom, gap + space[-1]), -1)
    laid[top : top + height, gap:] = np.arange(prod(space)).reshape(height, space[-1])
    flat = np.concatenate([laid.reshape(-1), np.full(gap, -1)])
    found = []
    for line in range(lines.count):
        for position in range(lines.length):
            if position % lines.pitch < lines.width:
                at = line * lines.line + position * lines.position + np.array(lines.taps)
                assert (at % pixel == 0).all()
                found.append(flat[at // pixel])
    np.testing.assert_array_equal(found, table)


@NEEDS_AMX
@pytest.mark.parametrize("channels", [3, 24, 64])
@pytest.mark.parametrize(
    ("look", "space"),
    [
        (Window((3, 3), (1, 1), (1, 1), (1,) * 4), (7, 30)),
        (Window((3, 3), (2, 2), (1, 1), (0, 1, 1, 0)), (9, 40)),  # lines of less than two tiles
        (Window((7, 7), (2, 2), (1, 1), (3,) * 4), (6, 140)),
        (Window((1, 1), (3, 2), (1, 1), (0,) * 4), (7, 75)),
        (Window((3, 2), (1, 1), (2, 3), (2, 0, 1, 3)), (8, 11)),
        (Window((1, 2), (1, 1), (1, 1), (0, 3, 1, 2)), (5, 9)),  # rows of results longer than the image's
        (Window((5,), (1,), (1,), (2, 1)), (33,)),
        (Window((4,), (2,), (1,), (1, 2)), (90,)),
    ],
)
def test_tile_registers_read_images_in_lines(look: Window, space: tuple[int, ...], channels: int) -> None:
    assert lines_of(look, space, channels, channels) is not None
    for asymmetric, n in ((False, 70), (True, 40)):
        for epilogue in integer_epilogues(n, look.taps * channels):
            w = weights(1, look.taps, channels, n, asymmetric, bias=epilogue.name != "f32d")
            op = Conv(look, w, epilogue, 0 if epilogue.name == "f32d" else 200)
            check(op, [codes(2, *space, channels), *extra(epilogue, 2, *look.out_space(space), n)], targets=AMX)


@NEEDS_AMX
def test_one_model_packs_weights_for_lines_and_for_a_panel() -> None:
    # As many steps along k either way, but not the same bytes in each: three runs of 48 bytes, or 144 bytes in one.
    look = Window((3, 3), (2, 2), (1, 1), (1,) * 4)
    op = Conv(look, weights(1, 9, 16, 32), to_codes(32, 144), 5)
    for order in ((40, 12), (12, 40)):
        packs = Packs()
        for side in order:
            assert (lines_of(look, (side, side), 16, 16) is None) == (side == 12)
            program, feeds = program_of(op, [codes(1, side, side, 16)])
            np.testing.assert_array_equal(build(program, AMX[0], 1, packs).run(feeds), interpret(program, feeds))


@NEEDS_AMX
@pytest.mark.parametrize(
    ("m", "n", "k"), [(16, 320, 1000), (49, 640, 256), (4000, 32, 64), (300, 96, 4096), (196, 256, 320), (196, 96, 500), (70, 130, 1700)]
)
def test_threads_share_rows_or_columns_of_tiles(m: int, n: int, k: int) -> None:
    for epilogue in (added(n, k), Int32()):
        program, feeds = program_of(Dense(weights(1, 1, k, n), epilogue, 13), [codes(m, k), *extra(epilogue, m, n)])
        wanted = interpret(program, feeds)
        for threads in range(1, 6):
            np.testing.assert_array_equal(build(program, AMX[0], threads, Packs()).run(feeds), wanted, f"{threads} threads")


@NEEDS_AMX
@pytest.mark.parametrize("l1", [1 << 12, 48 << 10, 1 << 20])
@pytest.mark.parametrize("l2", [1 << 15, 1 << 18, 2 << 20])
def test_blocks_of_tiles_follow_the_caches(l1: int, l2: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "cache_bytes", lambda level: {1: l1, 2: l2}[level])
    for m, n, k in ((196, 160, 320), (70, 130, 700)):
        program, feeds = program_of(Dense(weights(1, 1, k, n), to_codes(n, k), 13), [codes(m, k)])
        wanted = interpret(program, feeds)
        for threads in (1, 2, 3):
            np.testing.assert_array_equal(build(program, AMX[0], threads, Packs()).run(feeds), wanted, f"{threads} threads")
