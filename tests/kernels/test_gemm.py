"""The matrix product's kernels equal their references, bit for bit where the result is an integer.

Rows of the table differ in instruction set, tile, addressing and epilogue, and its kernels are one source. Every tile of
every instruction set runs here with one epilogue each way of addressing, every epilogue with one tile: each part of the source
is built for each instruction set, and a first run compiles dozens of kernels and not hundreds.
"""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernels.check import TARGETS_HERE, check, program_of
from kernels.native import guarded
from kernels.products import (
    BY_TILE,
    RNG,
    TILES_HERE,
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
    use,
    weights,
)

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.target import TARGETS, Target
from qrt.jit.lanes import LANES
from qrt.ops.conv import Conv, Window
from qrt.ops.conv.lines import lines_of
from qrt.ops.gemm import BatchedMatMul, Codes, CodesAdd, Dense, DynamicFloat, Epilogue, Float, Int32, Weights, amx
from qrt.ops.gemm.batched import _merge
from qrt.ops.gemm.product import Product, int8_parts
from qrt.ops.gemm.table import EPILOGUES, KERNELS, TILES, Tile, choose_tile, kernel_for, packs, row_blocks
from qrt.ops.op import Spec
from qrt.ops.program import interpret
from qrt.runtime.plan import Packs, build

REGISTERS = {"avx512vnni": 32, "avxvnni": 16, "avx2": 16, "neon_dot": 32, "generic": 16}
# Kernels' float sums run in another order than NumPy's.
NEAR = {"exact": False, "rtol": 1e-4, "atol": 1e-4}


def window(kernel: int = 2) -> Window:
    return Window((kernel,), (1,), (1,), (1, 0))


# -- the table ------------------------------------------------------------------------------------------------------------
def test_table_has_a_row_for_whatever_is_chosen() -> None:
    assert len({k.name for k in KERNELS}) == len(KERNELS)
    for target, (m, n), addressing, epilogue in itertools.product(
        TARGETS, [(1, 1), (1, 1000), (6, 64), (49, 1024), (10000, 3)], ("direct", "indirect"), set(EPILOGUES) - {"u8t"}
    ):
        assert kernel_for(target, choose_tile(target, m, n, 16, epilogue), addressing, epilogue) in KERNELS


def test_accumulators_leave_room_for_operands() -> None:
    for isa, tiles in TILES.items():
        for tile in tiles:
            assert tile.rows * tile.vectors + tile.vectors + 1 <= REGISTERS[isa], (isa, tile)


def test_rows_fall_into_blocks_of_equal_rows_or_one_less() -> None:
    for tile_rows, m in itertools.product(range(1, 13), range(1, 200)):
        blocks, less = row_blocks(tile_rows, m)
        assert blocks + less == -(-m // tile_rows)
        computed = blocks * tile_rows + less * (tile_rows - 1)
        assert computed == m or (less == 1 and m < computed < m + tile_rows - 1)
        assert computed == m or m <= (tile_rows - 1) * (tile_rows - 2)  # few rows only may be computed twice


# -- rows times constants -------------------------------------------------------------------------------------------------
@BY_TILE
def test_every_tile_at_its_edges(target: Target, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tile)
    rows, columns = tile.rows, tile.vectors * LANES[target.isa]
    for m, n, k in [
        (1, 1, 1),
        (rows, columns, 8),
        (rows + 1, columns + 1, 7),
        (2 * rows - 1, max(columns - 1, 1), 6),
        (3 * rows, 2 * columns + 3, 5),
    ]:
        check(Dense(weights(1, 1, k, n), to_codes(n, k), 7), [codes(m, k)], targets=[target])
        image = codes(2, m, k)
        check(Conv(window(), weights(1, 2, k, n), to_codes(n, 2 * k), 9), [image], targets=[target])


@pytest.mark.parametrize("target", VECTOR_TARGETS, ids=lambda t: t.isa)
@pytest.mark.parametrize("indirect", [False, True])
def test_every_epilogue(target: Target, indirect: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = TILES[target.isa][0]
    use(monkeypatch, tile)
    m, n, k = tile.rows + 1, tile.vectors * LANES[target.isa] + 5, 10
    for asymmetric, bias in itertools.product((False, True), repeat=2):
        for epilogue in integer_epilogues(n, k):
            w = weights(1, 2 if indirect else 1, k, n, asymmetric, bias)
            if isinstance(epilogue, DynamicFloat):
                w = Weights(w.w, w.zero_point, floats(n) if bias else None)
            x, y = codes(1, m, k), (1, m, n)
            op = (
                Conv(window(), w, epilogue, 0 if epilogue.name == "f32d" else 13)
                if indirect
                else Dense(w, epilogue, 0 if epilogue.name == "f32d" else 13)
            )
            check(op, [x, *extra(epilogue, *y)], targets=[target])
    for bias, epilogue in itertools.product((False, True), float_epilogues()):
        w = float_weights(1, 2 if indirect else 1, k, n, bias)
        x = floats(1, m, k)
        op = Conv(window(), w, epilogue) if indirect else Dense(w, epilogue)
        check(op, [x, *extra(epilogue, 1, m, n)], targets=[target], **NEAR)  # type: ignore[arg-type]


@pytest.mark.parametrize(("zero_point", "qmin", "qmax"), [(0, 0, 255), (128, 0, 255), (0, 0, 254), (128, 1, 255), (127, 0, 255)])
def test_codes_that_packs_saturate_to(zero_point: int, qmin: int, qmax: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, tile in TILES_HERE:
        if tile.rows < 6 or not packs(target.isa, tile, "u8"):
            continue
        use(monkeypatch, tile)
        # Blocks of all a tile's rows and of one less; columns of whole blocks and of a part.
        m, n, k = 2 * tile.rows - 1, 2 * tile.vectors * LANES[target.isa] - 3, 21
        epilogue = Codes((RNG.random(n) * 0.02 + 1e-5).astype(np.float32), zero_point, qmin, qmax)
        w = weights(1, 1, k, n)
        check(Dense(w, epilogue, 9), [codes(m, k)], targets=[target])
        total = CodesAdd(to_codes(n, k, 0, 255), 0.5, 0.25, 100, 131, qmin, qmax, signed=zero_point == 128)
        check(Dense(w, total, 9), [codes(m, k), codes(m, n)], targets=[target])


@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.integers(0, 255),
    st.sampled_from(TARGETS_HERE),
)
def test_integer_products_of_any_size(m: int, n: int, k: int, asymmetric: bool, bias: bool, zero_point: int, target: Target) -> None:
    w = weights(1, 1, k, n, asymmetric, bias)
    (found,) = check(Dense(w, Int32(), zero_point), [codes_of := codes(m, k)], targets=[target])
    centred = w.w[0, 0].astype(np.int64) - (0 if w.zero_point is None else w.zero_point)
    exact = (codes_of.astype(np.int64) - zero_point) @ centred + (0 if w.bias is None else w.bias)
    np.testing.assert_array_equal(found, exact)


def test_accumulators_wrap_like_int32() -> None:
    k = 70_000
    w = Weights(np.full((1, 1, k, 3), -128, np.int8))
    x = np.full((2, k), 255, np.uint8)
    (found,) = check(Dense(w, Int32()), [x])
    np.testing.assert_array_equal(found, np.full((2, 3), (-128 * 255 * k + 2**31) % 2**32 - 2**31, np.int32))


def test_codes_round_half_to_even_and_saturate() -> None:
    # acc = x · 1, halved: ties at every odd code.
    x = np.arange(256, dtype=np.uint8)[:, None]
    w = Weights(np.ones((1, 1, 1, 1), np.int8))
    (found,) = check(Dense(w, Codes(np.float32([0.5]), 0)), [x])
    np.testing.assert_array_equal(found[:, 0], np.rint(np.arange(256) / 2))
    (found,) = check(Dense(w, Codes(np.float32([3.0]), 10, 20, 200)), [x])
    np.testing.assert_array_equal(found[:, 0], np.clip(np.arange(256) * 3 + 10, 20, 200))


@pytest.mark.parametrize("multiplier", [1e-9, 0.9999999, 1.0, 1e6])
def test_sums_far_beyond_the_codes_saturate(multiplier: float) -> None:
    # Steps beyond 16 and 32 bits, on vector tiles of every width and on tile registers.
    m, n, k = 33, 70, 64
    w = weights(1, 1, k, n)
    bias = RNG.integers(-(2**31), 2**31, n).astype(np.int32)
    for zero_point in (0, 255):
        epilogue = Codes(np.full(n, multiplier, np.float32), zero_point, 1, 254)
        check(Dense(Weights(w.w, None, bias), epilogue, 128), [codes(m, k)])
        check(Dense(Weights(w.w, None, bias), CodesAdd(epilogue, 300.0, 7.0, 9, 77), 128), [codes(m, k), codes(m, n)])


@pytest.mark.parametrize("target", TARGETS_HERE, ids=lambda t: t.isa)
def test_not_a_number_passes_through_floats_and_bounds(target: Target) -> None:
    x = floats(5, 7)
    x[2, 3], x[4, 0] = np.nan, np.inf
    for epilogue in (Float(), Float(0.0, 6.0)):
        w = float_weights(1, 1, 7, 9)
        program, feeds = program_of(Dense(w, epilogue), [x])
        (found,) = build(program, target, 1, Packs()).run(feeds)
        assert np.isnan(found[2]).all()
        assert np.isfinite(found[[0, 1, 3]]).all()
        exact = x[4].astype(np.float64) @ w.w[0, 0].astype(np.float64)
        np.testing.assert_array_equal(found[4], np.clip(exact, epilogue.lo, epilogue.hi))


@pytest.mark.parametrize("target", TARGETS_HERE, ids=lambda t: t.isa)
@pytest.mark.parametrize(("m", "n", "k"), [(7, 19, 1), (7, 19, 3), (7, 64, 5), (7, 19, 64), (33, 33, 50), (32, 24, 64), (17, 70, 129)])
def test_nothing_is_read_past_the_callers_arrays(target: Target, m: int, n: int, k: int) -> None:
    residual: Epilogue
    for residual in (added(n, k), Float(residual=True)):
        integer = residual.integer
        op = Dense(weights(1, 1, k, n) if integer else float_weights(1, 1, k, n), residual)
        inputs = [guarded(codes(m, k)), guarded(codes(m, n))] if integer else [guarded(floats(m, k)), guarded(floats(m, n))]
        program, _ = program_of(op, inputs)
        found = build(program, target, 1, Packs()).run(inputs)
        np.testing.assert_allclose(found, interpret(program, inputs), rtol=1e-4, atol=1e-4)
        image, taps = (guarded(codes(1, m, k)), weights(1, 2, k, n)) if integer else (guarded(floats(1, m, k)), float_weights(1, 2, k, n))
        program, _ = program_of(Conv(window(), taps, Int32() if integer else Float()), [image])
        found = build(program, target, 1, Packs()).run([image])
        np.testing.assert_allclose(found, interpret(program, [image]), rtol=1e-4, atol=1e-4)


def test_no_rows_and_no_columns() -> None:
    assert check(Dense(weights(1, 1, 4, 3), Int32()), [codes(0, 4)])[0].shape == (0, 3)
    assert check(Dense(weights(1, 1, 4, 0), Int32()), [codes(2, 4)])[0].shape == (2, 0)


@pytest.mark.parametrize(
    ("op", "inputs", "error"),
    [
        (Dense(weights(1, 1, 4, 3), Int32()), [codes(2, 5)], ModelError),
        (Dense(weights(1, 1, 4, 3), Int32()), [np.zeros((), np.uint8)], ModelError),
        (Dense(weights(1, 1, 4, 3), Int32()), [floats(2, 4)], UnsupportedOp),
        (Dense(float_weights(1, 1, 4, 3), Float()), [codes(2, 4)], UnsupportedOp),
        (Dense(weights(1, 1, 0, 3), Int32()), [codes(2, 0)], UnsupportedOp),
        (Dense(weights(1, 1, 4, 3), added(3, 4)), [codes(2, 4)], ModelError),
        (Dense(weights(1, 1, 4, 3), added(3, 4)), [codes(2, 4), codes(2, 2)], UnsupportedOp),
        (Dense(weights(1, 1, 4, 3), added(3, 4)), [codes(2, 4), floats(2, 3)], UnsupportedOp),
        (Dense(weights(1, 1, 4, 3), dynamic(3)), [codes(2, 4), floats(2), codes(1)], UnsupportedOp),
    ],
)
def test_operands_that_do_not_fit(op: Dense, inputs: list[np.ndarray], error: type[Exception]) -> None:
    with pytest.raises(error):
        op.infer([Spec(x.shape, x.dtype) for x in inputs])


@given(st.lists(st.integers(-255, 255), min_size=1, max_size=20))
def test_asymmetric_weights_are_sums_of_int8(values: list[int]) -> None:
    parts = int8_parts(np.array(values))
    assert len(parts) <= 3
    np.testing.assert_array_equal(sum(part.astype(np.int64) for part in parts), values)


# -- tile registers -------------------------------------------------------------------------------------------------------
AMX = [target for target in TARGETS_HERE if target.isa == "amx"]


@pytest.mark.skipif(not AMX, reason="this machine has no AMX")
@pytest.mark.parametrize(
    ("m", "n", "k"), [(16, 24, 48), (31, 33, 64), (32, 32, 65), (33, 31, 63), (65, 70, 130), (70, 40, 9000), (2100, 24, 256)]
)
def test_tile_registers_at_their_edges(m: int, n: int, k: int) -> None:
    assert amx.suits(AMX[0], Product(m, n, k, Int32()))
    for asymmetric, epilogue in itertools.product((False, True), integer_epilogues(n, k)):
        w = weights(1, 1, k, n, asymmetric, bias=epilogue.name != "f32d")
        check(Dense(w, epilogue, 0 if epilogue.name == "f32d" else 13), [codes(m, k), *extra(epilogue, m, n)], targets=AMX)


@pytest.mark.skipif(not AMX, reason="this machine has no AMX")
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(5, 70, 900), (6, 64, 2100), (7, 100, 2048), (9, 64, 1030), (15, 95, 200), (16, 96, 200), (49, 256, 2048), (98, 33, 640)],
)
def test_tiles_have_as_many_rows_as_there_are(m: int, n: int, k: int) -> None:
    assert amx.suits(AMX[0], Product(m, n, k, Int32(), lines=amx.Lines.of_rows(m, k)))
    for epilogue in integer_epilogues(n, k):
        op = Dense(weights(1, 1, k, n, bias=epilogue.name != "f32d"), epilogue, 0 if epilogue.name == "f32d" else 13)
        check(op, [codes(m, k), *extra(epilogue, m, n)], targets=AMX)


@pytest.mark.skipif(not AMX, reason="this machine has no AMX")
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


@pytest.mark.skipif(not AMX, reason="this machine has no AMX")
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


@pytest.mark.skipif(not AMX, reason="this machine has no AMX")
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


@pytest.mark.skipif(not AMX, reason="this machine has no AMX")
@pytest.mark.parametrize(
    ("m", "n", "k"), [(16, 320, 1000), (49, 640, 256), (4000, 32, 64), (300, 96, 4096), (196, 256, 320), (196, 96, 500), (70, 130, 1700)]
)
def test_threads_share_rows_or_columns_of_tiles(m: int, n: int, k: int) -> None:
    for epilogue in (added(n, k), Int32()):
        program, feeds = program_of(Dense(weights(1, 1, k, n), epilogue, 13), [codes(m, k), *extra(epilogue, m, n)])
        wanted = interpret(program, feeds)
        for threads in range(1, 6):
            np.testing.assert_array_equal(build(program, AMX[0], threads, Packs()).run(feeds), wanted, f"{threads} threads")


@pytest.mark.skipif(not AMX, reason="this machine has no AMX")
@pytest.mark.parametrize("l1", [1 << 12, 48 << 10, 1 << 20])
@pytest.mark.parametrize("l2", [1 << 15, 1 << 18, 2 << 20])
def test_blocks_of_tiles_follow_the_caches(l1: int, l2: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "cache_bytes", lambda level: {1: l1, 2: l2}[level])
    for m, n, k in ((196, 160, 320), (70, 130, 700)):
        program, feeds = program_of(Dense(weights(1, 1, k, n), to_codes(n, k), 13), [codes(m, k)])
        wanted = interpret(program, feeds)
        for threads in (1, 2, 3):
            np.testing.assert_array_equal(build(program, AMX[0], threads, Packs()).run(feeds), wanted, f"{threads} threads")


# -- two computed operands ------------------------------------------------------------------------------------------------
LAYOUTS = [
    ((2, 3, 5, 8), (2, 3, 8, 7), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),
    ((2, 5, 3, 8), (2, 7, 3, 8), (0, 2, 1, 3), (0, 3, 1, 2), (0, 2, 1, 3)),  # heads in the middle, b transposed
    ((2, 5, 3, 20), (2, 77, 3, 20), (0, 2, 1, 3), (0, 3, 1, 2), (0, 2, 1, 3)),  # in squares, and what is left of them
    ((5, 8), (8, 7), (0, 1), (0, 1), (0, 1)),
    ((4, 5, 6), (6, 7), (0, 1, 2), (0, 1), (0, 1, 2)),  # b broadcasts
    ((5, 6), (4, 6, 7), (0, 1), (0, 1, 2), (0, 1, 2)),  # a broadcasts
    ((3, 1, 5, 6), (1, 4, 6, 7), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),  # both do
    ((2, 1, 3, 1, 5), (2, 1, 3, 5, 2), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4)),
]


def product(a: np.ndarray, b: np.ndarray, layout: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """a @ b by NumPy, operands and result in the layout's axis orders."""
    _, _, a_perm, b_perm, y_perm = layout
    logical = [x.transpose(np.argsort(perm)) for x, perm in ((a, a_perm), (b, b_perm))]
    return np.matmul(*logical).transpose(y_perm)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"{v[0]}x{v[1]}")
def test_batched_products(layout: tuple[tuple[int, ...], ...]) -> None:
    a_shape, b_shape, *perms = layout
    n = np.array(b_shape)[list(perms[1]).index(len(b_shape) - 1)]
    a, b = codes(*a_shape), codes(*b_shape)
    bias = np.arange(n, dtype=np.int32) * 100 - 300
    for b_point in (0, 5, 128, 255):
        (found,) = check(BatchedMatMul(Int32(), *perms, None, 3, b_point), [a, b])  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, product(a.astype(np.int64) - 3, b.astype(np.int64) - b_point, layout))
        check(BatchedMatMul(Codes(np.float32([1e-4]), 100, 1, 254), *perms, bias, 3, b_point), [a, b])  # type: ignore[arg-type]
    x, w = floats(*a_shape), floats(*b_shape)
    (found,) = check(BatchedMatMul(Float(), *perms, floats(int(n))), [x, w], **NEAR)  # type: ignore[arg-type]
    check(BatchedMatMul(Float(0.0), *perms), [x, w], **NEAR)  # type: ignore[arg-type]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 18), st.integers(1, 40), st.integers(1, 18), st.integers(0, 255), st.data())
def test_batched_products_of_any_size(images: int, groups: int, m: int, n: int, k: int, zero_point: int, data: st.DataObject) -> None:
    a_batch = tuple(data.draw(st.sampled_from([1, extent])) for extent in (images, groups))
    b_batch = tuple(data.draw(st.sampled_from([1, extent])) for extent in (images, groups))
    layout = ((*a_batch, m, k), (*b_batch, k, n), *((0, 1, 2, 3),) * 3)
    a, b = codes(*layout[0]), codes(*layout[1])
    target = data.draw(st.sampled_from(TARGETS_HERE))
    (found,) = check(BatchedMatMul(Int32(), *layout[2:], None, 9, zero_point), [a, b], targets=[target])
    np.testing.assert_array_equal(found, product(a.astype(np.int64) - 9, b.astype(np.int64) - zero_point, layout))


@given(st.lists(st.tuples(st.integers(1, 4), *(st.integers(0, 12),) * 3), max_size=4))
def test_merged_walks_visit_the_same_places(walks: list[tuple[int, int, int, int]]) -> None:
    def places(over: list[tuple[int, int, int, int]]) -> list[tuple[int, ...]]:
        steps = itertools.product(*(range(extent) for extent, *_ in over))
        return [tuple(sum(i * walk[which] for i, walk in zip(at, over, strict=True)) for which in (1, 2, 3)) for at in steps]

    merged = _merge(walks)
    assert places(merged) == places(walks)
    assert prod(extent for extent, *_ in merged) == prod(extent for extent, *_ in walks)
    assert all(extent > 1 for extent, *_ in merged)


@pytest.mark.parametrize(
    ("op", "shapes", "error"),
    [
        (BatchedMatMul(Float(), (0, 1), (0, 1), (0, 1)), [(2, 3), (4, 5)], ModelError),
        (BatchedMatMul(Float(), (0, 1, 2), (0, 1, 2), (0, 1, 2)), [(2, 3, 4), (3, 4, 5)], ModelError),
        (BatchedMatMul(Float(), (0,), (0, 1), (0, 1)), [(3,), (3, 5)], ModelError),
        (BatchedMatMul(Float(), (0, 1), (0, 1), (0, 1)), [(2, 0), (0, 5)], UnsupportedOp),
        (BatchedMatMul(Float(), (1, 0), (0, 1), (0, 1)), [(3, 2), (3, 5)], UnsupportedOp),
        (BatchedMatMul(Float(), (0, 1), (0, 1), (0, 1), np.zeros(4, np.float32)), [(2, 3), (3, 5)], ModelError),
    ],
)
def test_batched_operands_that_do_not_fit(op: BatchedMatMul, shapes: list[tuple[int, ...]], error: type[Exception]) -> None:
    with pytest.raises(error):
        op.infer([Spec(shape, np.dtype(np.float32)) for shape in shapes])


def test_batches_that_two_strides_cannot_walk_are_refused() -> None:
    shapes = [(2, 1, 2, 1, 3, 4), (1, 2, 1, 2, 4, 5)]
    op = BatchedMatMul(Float(), *((0, 1, 2, 3, 4, 5),) * 3)
    with pytest.raises(UnsupportedOp, match="two strides"):
        op.infer([Spec(shape, np.dtype(np.float32)) for shape in shapes])
