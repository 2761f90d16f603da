"""Products stay what they are whatever the caches' sizes: these choose tiles, and how many row blocks pass all columns together."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.check import check, program_of
from kernels.products import BY_FLOAT_TILE, NEAR, VECTOR_TARGETS, codes, edges, float_weights, floats, to_codes, use, weights

from qrt.core.target import TARGETS, Target
from qrt.ops.gemm import BatchedMatMul, Dense, Float, Int32
from qrt.ops.gemm.table import TILES, Tile, blocks_together, choose_tile, chunk_of_blocks, k_stretch, tiles_for
from qrt.ops.op import Array, Op
from qrt.ops.program import interpret
from qrt.runtime.plan import Packs, build

BY_TARGET = pytest.mark.parametrize("target", VECTOR_TARGETS, ids=lambda t: t.isa)


@BY_FLOAT_TILE
def test_every_tile_of_floats_at_its_edges(target: Target, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tile)
    for m, n, k in edges(target, tile):
        check(Dense(float_weights(1, 1, k, n), Float()), [floats(m, k)], targets=[target], **NEAR)


def test_accumulators_of_floats_leave_room_for_operands() -> None:
    for isa in TILES:
        for tile in tiles_for(isa, "f32"):
            registers = 32 if isa in ("avx512vnni", "neon_dot") else 16
            assert tile.rows * tile.vectors + tile.vectors + 1 <= registers, (isa, tile)


def cache(patch: pytest.MonkeyPatch, size: int) -> None:
    """From here on the L2 cache has `size` bytes."""
    patch.setattr("qrt.ops.gemm.table.cache_bytes", lambda level: size)


@BY_TARGET
@pytest.mark.parametrize("kind", ["u8s8", "f32"])
def test_the_size_of_the_cache_changes_no_bit(target: Target, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m, n, steps = 700, 200, 10
    if kind == "u8s8":
        op, x = Dense(weights(1, 1, 4 * steps, n), to_codes(n, 4 * steps), 7), codes(m, 4 * steps)
    else:
        op, x = Dense(float_weights(1, 1, steps, n), Float()), floats(m, steps)
    program, feeds = program_of(op, [x])
    (wanted,) = build(program, target, 1, Packs()).run(feeds)
    cache(monkeypatch, 1 << 14)
    for threads in (1, 2):
        tile = choose_tile(target, m, n, steps, op.epilogue.name)
        assert blocks_together(target, tile, m, n, steps, 1, threads) * threads < m // tile.rows, "one pass"
        (found,) = build(program, target, threads, Packs()).run(feeds)
        np.testing.assert_array_equal(found, wanted, f"{threads} threads")
    check(op, [x], exact=op.epilogue.integer, rtol=1e-4, atol=1e-4, targets=[target])


@BY_TARGET
@pytest.mark.parametrize("together", [1, 3])
def test_any_number_of_row_blocks_passes_together(target: Target, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrt.ops.gemm.product.blocks_together", lambda *_: together)
    monkeypatch.setattr("qrt.ops.gemm.product.SMALL", 0)  # threads share whatever there is
    for m, n, k in [(5, 150, 6), (57, 70, 9), (200, 40, 8)]:
        check(Dense(weights(1, 1, k, n), to_codes(n, k), 7), [codes(m, k)], targets=[target])
        check(Dense(float_weights(1, 1, k, n), Float()), [floats(m, k)], targets=[target], **NEAR)
    axes = (0, 1, 2, 3)
    check(BatchedMatMul(Int32(), axes, axes, axes, None, 3, 5), [codes(2, 3, 60, 9), codes(2, 3, 9, 40)], targets=[target])


def test_blocks_stay_in_the_cache_where_less_comes_from_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    target, tile = next(target for target in TARGETS if target.isa == "avx512vnni"), Tile(6, 4)
    cache(monkeypatch, 2 << 20)
    assert blocks_together(target, tile, 200, 8192, 1024, 1, 1) == 34  # all: these rows fit
    assert blocks_together(target, tile, 8192, 64, 1024, 1, 1) == 1366  # they meet one block of columns
    assert blocks_together(target, tile, 8192, 8192, 4096, 1, 1) == 1366  # a block of columns fills what rows may take
    several = blocks_together(target, tile, 8192, 1024, 1024, 1, 2)  # of each thread's rows
    assert several >= 16
    assert (several * 6 + 64) * 4096 <= 1 << 20


def test_deep_floats_take_columns_that_stay_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    target = next(target for target in TARGETS if target.isa == "avx512vnni")
    cache(monkeypatch, 2 << 20)
    assert choose_tile(target, 1024, 1024, 4096, "f32") == Tile(6, 4)
    assert choose_tile(target, 1024, 1024, 8192, "f32") == Tile(10, 2)
    assert choose_tile(target, 6, 1024, 8192, "f32") == Tile(6, 4)  # one row block: no column is read twice
    cache(monkeypatch, 8 << 20)
    assert choose_tile(target, 1024, 1024, 8192, "f32") == Tile(6, 4)


def _check_stretches(op: Op, inputs: list[Array], target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that k in stretches gives the bits of k at once, which are near the reference."""
    program, feeds = program_of(op, inputs)
    (wanted,) = build(program, target, 1, Packs()).run(feeds)
    np.testing.assert_allclose(wanted, interpret(program, feeds)[0], 1e-4, 1e-4)
    with monkeypatch.context() as patch:
        patch.setattr("qrt.ops.gemm.product.SMALL", 0)
        for stretch in (16, 48):
            patch.setattr("qrt.ops.gemm.product.k_stretch", lambda *_, stretch=stretch: stretch)
            for threads in (1, 2):
                plan = build(program, target, threads, Packs())
                assert sum("gemm" in kernel for kernel in plan.kernels) == -(-inputs[0].shape[-1] // stretch)
                assert plan.run(feeds)[0].tobytes() == wanted.tobytes(), (stretch, threads)


@BY_TARGET
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 49), (5, 33, 64), (6, 64, 50), (29, 70, 97), (64, 16, 96), (200, 17, 81)])
def test_k_in_stretches_changes_no_bit(target: Target, m: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for epilogue in (Float(), Float(lo=0.0, hi=2.0), Float(lo=-1.0, residual=True)):
        extra = [floats(m, n)] if epilogue.residual else []
        _check_stretches(Dense(float_weights(1, 1, k, n), epilogue), [floats(m, k), *extra], target, monkeypatch)


@BY_TARGET
def test_k_of_batches_in_stretches_changes_no_bit(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = (0, 1, 2, 3)
    batches = BatchedMatMul(Float(), axes, axes, axes, floats(37))
    _check_stretches(batches, [floats(2, 3, 30, 70), floats(2, 3, 70, 37)], target, monkeypatch)


def test_which_products_take_k_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    cache(monkeypatch, 2 << 20)
    vectors, narrower = (next(target for target in TARGETS if target.isa == isa) for isa in ("avx512vnni", "avx2"))
    assert k_stretch(vectors, Tile(10, 1), 100, 2048) == 2048
    assert k_stretch(vectors, Tile(10, 1), 100, 2049) == 688  # whole cache lines, three of them
    assert k_stretch(vectors, Tile(10, 1), 100, 4096) == 1024
    assert k_stretch(vectors, Tile(4, 4), 100, 4096) == 4096  # few rows wait for B alone
    assert k_stretch(narrower, Tile(6, 1), 100, 4096) == 4096
    assert k_stretch(vectors, Tile(10, 1), 16, 4096) == 4096  # A is read once, and B stays in the cache
    assert k_stretch(vectors, Tile(10, 1), 17, 4096) == 1024
    assert k_stretch(vectors, Tile(10, 1), 16, 25088) == 1008


def test_rows_are_widened_in_chunks_that_caches_hold_and_threads_share(monkeypatch: pytest.MonkeyPatch) -> None:
    tile, small, large = Tile(6, 2), 1 << 10, 1 << 20
    monkeypatch.setattr("qrt.ops.gemm.table.cache_bytes", {1: 48 << 10, 2: 1 << 20}.__getitem__)
    assert chunk_of_blocks(tile, 600, 64, 192, small, 1) == 20  # of 21 that half of the L1 cache holds: five times as many
    assert chunk_of_blocks(tile, 60, 64, 192, small, 1) == 10  # all
    assert chunk_of_blocks(tile, 600, 64, 8192, small, 1) == 1  # no row block fits
    assert chunk_of_blocks(tile, 600, 64, 8192, large, 1) == 5  # a quarter of the L2 cache, as B is large
    assert chunk_of_blocks(tile, 60, 64, 192, small, 4) == 1  # so that four threads share 40 pieces
