"""The matrix product's kernels equal their references, bit for bit where the result is an integer.

Rows of the table differ in instruction set, tile, addressing and epilogue, and its kernels are one source. Every tile of
every instruction set runs here with one epilogue each way of addressing, every epilogue with one tile: each part of the source
is built for each instruction set, and a first run compiles dozens of kernels and not hundreds.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels.check import TARGETS_HERE, check, program_of
from kernels.native import guarded
from kernels.products import (
    BY_TILE,
    NEAR,
    RNG,
    TILES_HERE,
    VECTOR_TARGETS,
    added,
    codes,
    dynamic,
    edges,
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
from qrt.ops.gemm import Codes, CodesAdd, Dense, DynamicFloat, Epilogue, Float, Int32, Weights
from qrt.ops.gemm.product import int8_parts
from qrt.ops.gemm.table import EPILOGUES, KERNELS, TILES, Tile, choose_tile, kernel_for, packs, row_blocks
from qrt.ops.op import Spec
from qrt.ops.program import interpret
from qrt.runtime.plan import Packs, build

REGISTERS = {"avx512vnni": 32, "avxvnni": 16, "avx2": 16, "neon_dot": 32, "generic": 16}


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
    for m, n, k in edges(target, tile):
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
        check(op, [x, *extra(epilogue, 1, m, n)], targets=[target], **NEAR)


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
