"""The integer product on AMX tiles: its table, how weights are packed for it, and its step. Kernels: `cpu_amx.py`."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from qrt.core.record import record
from qrt.core.target import Target
from qrt.jit import Kernel, cache_bytes, record_dtype
from qrt.ops.gemm.table import CODES, EPILOGUES, choose_tile, cost
from qrt.ops.gemm.table import RECORD as GEMM_RECORD
from qrt.ops.op import Array, Ref, Steps

if TYPE_CHECKING:
    from qrt.ops.gemm.product import Product

__all__ = ["COLUMNS", "KERNELS", "K_STEP", "RECORD", "Lines", "add_step", "blocked", "constants", "fits", "suits"]

# A tile register holds 16 rows of 64 bytes; a block is two by two of them.
ROWS = COLUMNS = 32
# Up to as many rows take one tile: see `cpu_amx`.
NARROW = ROWS // 2
# Fewer rows leave tiles waiting for B as long as vectors or longer: measured, from the L2 cache and from beyond it.
LEAST_ROWS = 5
K_STEP = 64
TILE_BYTES = ROWS * K_STEP
# Four products of tiles, 16 cycles each; zeroing, storing and finishing a block; configuring the registers. The first is the
# instruction's; the others were measured on a Xeon with AMX (products of 49 to 12544 rows, 8 to 96 columns and bytes of k), where two
# vector instructions a cycle are the measure of the vector kernels.
STEP_CYCLES, BLOCK_CYCLES, CALL_CYCLES = 64, 350, 200
# Of blocks of few rows a step takes as long as B comes in: measured, 1 to 8 rows, 64 to 1024 columns and bytes of k.
NARROW_STEP_CYCLES, NARROW_BLOCK_CYCLES = 50, 130
# How many times larger than A's rows B has to be for threads with less than two blocks of rows each to share columns: then B comes from
# beyond the L2 cache at half the cost. Else lines that the other core wrote cost more than what B does.
B_OVER_A = 4
# Multiply-accumulates below which a second thread does not pay.
SMALL = 1 << 18

# The product's record, with: `k`: bytes of a row and tap; `run`: taps that lie side by side; `k_steps`, and `offsets_k`: where each of
# them lies, from a row's first byte on; `panel` (of `panel_bytes`, 0: rows are read where they lie), `acc`: scratch of each thread;
# `chunk`: row blocks that pass `wide` columns together, `stays`: 1 if those are in the L2 cache after the first, `streams`: 1 if B leaves
# the L1 cache to A; `by_columns`: 1 if threads share whole columns; `blocks` of rows of an image, their `places` and `pairs` (see
# `Blocks`); `upper` and `lower`: rows of a block's two tiles; `position`: bytes from row to row of a tile.
RECORD = record_dtype(
    *((name, GEMM_RECORD[name].str[1:]) for name in GEMM_RECORD.names or ()),
    *((name, "i8") for name in ("k", "run", "k_steps", "offsets_k", "panel", "panel_bytes", "acc", "chunk", "wide", "stays", "streams")),
    *((name, "i8") for name in ("by_columns", "blocks", "places", "pairs", "upper", "lower", "position")),
)
KERNELS: tuple[Kernel, ...] = tuple(
    Kernel(f"gemm_u8s8_{epilogue}_{rows}x32__amx", RECORD, "qrt.ops.gemm.cpu_amx:gemm", (epilogue, rows))
    for epilogue, meaning in EPILOGUES.items()
    if meaning.startswith("int")
    for rows in (ROWS, NARROW)
)


@record
class Lines:
    """Rows that tiles can load where they are. An image has `count` lines, `line` bytes apart, of `length` positions, `position` bytes
    apart; `width` of each `pitch` positions are rows, in order, and what is computed for the others is dropped. `taps`: where
    each tap of a row lies, in bytes from its position on. Up to 63 bytes past the last one are read."""

    count: int
    line: int
    length: int
    position: int
    pitch: int
    width: int
    taps: tuple[int, ...]

    @staticmethod
    def of_rows(m: int, row: int) -> Lines:
        """m rows, `row` bytes apart."""
        return Lines(1, 0, m, row, m, m, (0,))


@record
class Sharing:
    """How threads share a product: whole columns of its blocks, or the blocks, of `rows` rows, row after row."""

    threads: int
    by_columns: bool
    rows: int

    @staticmethod
    def of(product: Product, threads: int) -> Sharing:
        """For up to `threads` threads."""
        lines, columns = lines_of(product), -(-product.n // COLUMNS)
        if product.batch * product.m * product.n * product.k * product.taps < SMALL:
            threads = 1
        blocks = product.batch * lines.count * -(-lines.length // ROWS)
        b_bytes, a_bytes = columns * product.k_steps * TILE_BYTES, blocks * ROWS * lines.position
        few = product.lines is not None and blocks < 2 * threads and columns >= threads and b_bytes > B_OVER_A * a_bytes
        by_columns = threads > 1 and (blocks < threads or few)
        return Sharing(threads, by_columns, _rows(product, 1 if by_columns else threads))


def _rows(product: Product, threads: int) -> int:
    """Rows of a block: tiles with no more than they need, and as many blocks that threads have about as much to do each."""
    if product.lines is None:
        return NARROW if is_narrow(product) else ROWS
    length, images = product.lines.length, product.batch * product.lines.count
    units = -(-product.n // (COLUMNS * columns_of_line(product.epilogue.name)))

    def rows(blocks: int) -> int:
        least = -(-length // blocks)
        return least + (least % 2 if least < length else 0)  # pairs of rows are finished together

    def cost(blocks: int) -> int:
        each = -(-images * -(-length // rows(blocks)) * units // threads)
        return each * (rows(blocks) + COLUMNS)  # lines of A and B that tiles load

    least = -(-length // ROWS)
    return rows(min(range(least, least + threads), key=cost))


def columns_of_line(epilogue: str) -> int:
    """Blocks of columns that end in one cache line of the result: no two threads write to it."""
    return 2 if epilogue in CODES else 1


@record
class Blocks:
    """How tiles take the rows of an image. `places`: int64, for each block: where its first row lies, in bytes; the result's row that its
    first pair belongs to; where its pairs begin, and how many they are. `pairs`: uint8 [..., 16, 4]: two rows of accumulators, and their
    rows of the result from the block's first on. A last row without another is a pair with itself. The pairs at 0 are those of blocks
    whose rows follow each other."""

    places: Array
    pairs: Array

    @staticmethod
    def of(lines: Lines, rows: int, in_panel: bool) -> Blocks:
        """Blocks of `rows` positions of `lines`. A panel has room past its last row; in place nothing past a line's end may be read: its
        last block begins early."""
        first, result, begin, count, pairs = _blocks_of_line(lines.length, lines.pitch, lines.width, rows, in_panel)
        one = np.stack([first * lines.position, result, begin, count], 1)
        each = np.arange(lines.count)[:, None, None] * np.array([lines.line, lines.width, 0, 0])
        return Blocks((one + each).reshape(-1, 4).astype(np.int64), pairs)


@lru_cache(256)  # many layers have images of one size
def _blocks_of_line(length: int, pitch: int, width: int, rows: int, in_panel: bool) -> tuple[Array, Array, Array, Array, Array]:
    """Of each block: its first position, its row of the result, where its pairs begin, how many they are. Then the pairs of all."""
    starts = np.arange(0, length, rows)
    first = starts if in_panel else np.minimum(starts, length - rows)
    row = np.arange(ROWS)
    position = first[:, None] + row
    wanted = (row < rows) & (position >= starts[:, None]) & (position < length) & (position % pitch < width)
    result = position // pitch * width + position % pitch
    count = wanted.sum(1)
    acc = np.argsort(~wanted, 1, kind="stable")
    acc = np.take_along_axis(acc, np.minimum(row, np.maximum(count - 1, 0)[:, None]), 1)
    result = np.take_along_axis(result, acc, 1)
    half = np.arange(ROWS // 2)
    rows_of_pairs = np.stack([acc, result - result[:, :1]], 2).reshape(-1, ROWS // 2, 2, 2).transpose(0, 1, 3, 2)
    pairs = rows_of_pairs.reshape(-1, ROWS // 2, 4).astype(np.uint8)
    straight = (2 * half[:, None] + [0, 1, 0, 1]).astype(np.uint8)
    is_straight = ((pairs == straight).all(2) | (2 * half >= count[:, None])).all(1)
    begin, kinds = np.zeros(len(first), np.int64), straight[None]
    if not is_straight.all():
        others, kind = np.unique(pairs[~is_straight], axis=0, return_inverse=True)
        begin[~is_straight] = (kind.reshape(-1) + 1) * straight.nbytes
        kinds = np.concatenate([kinds, others])
    return first, result[:, 0], begin, (count + 1) // 2, kinds


def fits(target: Target, product: Product) -> bool:
    """Whether tile registers can compute the product, and its codes fit the packed store."""
    if target.isa != "amx" or not product.epilogue.integer or product.groups != 1 or product.m < LEAST_ROWS:
        return False
    return product.epilogue.name not in CODES or product.epilogue.steps_fit


def suits(target: Target, product: Product) -> bool:
    """Whether they do so faster than vectors."""
    if not fits(target, product):
        return False
    if product.lines is None:
        # Below these sizes copying rows to the panel costs more than vectors: benchmarks, row `conv`.
        return product.m >= ROWS // 2 and product.n >= 24 and (product.k >= 48 or product.k * product.taps >= 128)
    blocks = product.batch * product.lines.count * -(-product.lines.length // _rows(product, 1)) * -(-product.n // COLUMNS)
    m, k_steps = product.batch * product.m, product.k4 * product.taps
    tile = choose_tile(target, m, product.n, k_steps, product.epilogue.name)
    instructions = cost(target, tile, m, product.n, k_steps, product.epilogue.name)
    if product.taps > 1:  # vectors look every row of a tap up
        instructions += 2 * product.taps * m * -(-product.n // (tile.vectors * target.lanes))
    few = is_narrow(product)
    block, step = (NARROW_BLOCK_CYCLES, NARROW_STEP_CYCLES) if few else (BLOCK_CYCLES, STEP_CYCLES)
    return CALL_CYCLES + blocks * (block + step * product.k_steps) < instructions / 2


def blocked(rows: Array) -> Array:
    """int8 [1][columns][runs][k], k in whole steps → [columns / 32][runs][k / 64][2][16][16][4], as words of four bytes."""
    words = rows.view(np.uint32).reshape(-1, 2, 16, rows.size // rows.shape[1] // K_STEP, 16)
    return np.ascontiguousarray(words.transpose(0, 3, 1, 4, 2))


def lines_of(product: Product) -> Lines:
    """The lines that tiles load: the product's, or those of its panel."""
    return product.lines or Lines(1, 0, product.m, K_STEP, product.m, product.m, ())


def is_narrow(product: Product) -> bool:
    """Whether an image's rows fit one tile."""
    return lines_of(product).length <= NARROW


def constants(steps: Steps, product: Product, source: Array) -> dict[str, Ref]:
    """Where rows and steps along k lie: the fields that do not change. They are kept beside the packed weights `source`."""
    lines, in_panel, rows = lines_of(product), product.lines is None, Sharing.of(product, steps.threads).rows
    how = (lines, product.run, product.k_steps, in_panel)
    return {
        "offsets_k": steps.packed(source, ("k steps", *how), lambda: offsets(product)),
        "places": steps.packed(source, ("places", rows, *how), lambda: Blocks.of(lines, rows, in_panel).places),
        "pairs": steps.packed(source, ("pairs", rows, *how), lambda: Blocks.of(lines, rows, in_panel).pairs),
    }


def offsets(product: Product) -> Array:
    """Where each step along k lies, from a row's first byte on."""
    lines = product.lines
    if lines is None:
        return np.arange(product.k_steps, dtype=np.int64) * TILE_BYTES
    starts = np.array(lines.taps, np.int64)[:: product.run]
    return (starts[:, None] + np.arange(product.k_steps // len(starts)) * K_STEP).reshape(-1)


def _order(product: Product, blocks: int) -> dict[str, int]:
    """In which order a thread's `blocks` rows of blocks and the columns pass each other, by what the caches of a core hold."""
    l1, l2, columns = cache_bytes(1), cache_bytes(2), -(-product.n // COLUMNS)
    panel = product.k_steps * TILE_BYTES
    # What one product of tiles after the other reads: a panel of B and a block of A, whose taps share lines.
    both = panel + panel // (1 if product.lines is None else product.run)
    # One row of blocks after the other, as many columns at a time as fill half of the L2 cache; but not few rows, which would wait for B,
    # nor those that do not nearly fit the L1 cache, nor windows: measured on 49 to 3136 rows, 64 to 4096 of k. Those take as many blocks as
    # fill half of the L2 cache. Where the L1 cache does not hold both, B leaves it to A.
    rows_stay = product.taps == 1 and blocks > (2 if 4 * both > 3 * l1 else 4) and 2 * panel <= 3 * l1
    return {
        "chunk": 1 if rows_stay or columns * panel <= l1 // 2 else max(1, l2 // 2 // panel),
        "wide": max(1, l2 // 2 // panel) if rows_stay else columns,
        "stays": int(rows_stay or columns * panel <= l2 // 2),
        "streams": int(both > (3 * l1 // 4 if rows_stay else l1)),
    }


def add_step(steps: Steps, product: Product, fields: dict[str, int | float | Ref]) -> None:
    """Appends the kernel call; `fields` as for the vector kernels."""
    sharing, lines, narrow = Sharing.of(product, steps.threads), lines_of(product), is_narrow(product)
    kernel = next(k for k in KERNELS if k.params == (product.epilogue.name, NARROW if narrow else ROWS))
    blocks = lines.count * -(-lines.length // sharing.rows)
    each = product.batch * blocks if sharing.by_columns else -(-product.batch * blocks // sharing.threads)
    order, panels = _order(product, each), 0
    if product.lines is None:
        order["chunk"] = min(order["chunk"], each)
        panels = order["chunk"] * product.k_steps * TILE_BYTES
    upper, lower = (sharing.rows,) * 2 if narrow else (-(-sharing.rows // 2), sharing.rows // 2)
    filled: dict[str, int | float | Ref] = dict.fromkeys(RECORD.names or (), 0)
    filled |= fields
    filled |= {"k": product.k, "run": product.run, "k_steps": product.k_steps, "by_columns": int(sharing.by_columns), **order}
    filled |= {"blocks": blocks, "position": lines.position, "upper": upper, "lower": lower}
    # A block's accumulators take 4096 bytes. Behind them there is room for a tile that nobody reads, and for the lines that a core that
    # walks them asks for.
    acc = steps.scratch(8192 * sharing.threads)
    filled |= {"panel": steps.scratch(max(panels * sharing.threads, 64)), "panel_bytes": panels, "acc": acc}
    steps.step(kernel, sharing.threads, **filled)
