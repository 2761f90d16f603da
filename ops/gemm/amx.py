"""The integer product on AMX tiles: its table, how weights are packed for it, and its step. Kernels: `cpu_amx.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qrt.core.target import Target
from qrt.jit import Kernel, cache_bytes, record_dtype
from qrt.ops.gemm.table import CODES, EPILOGUES, choose_tile, cost
from qrt.ops.gemm.table import RECORD as GEMM_RECORD
from qrt.ops.op import Array, Ref, Steps

if TYPE_CHECKING:
    from qrt.ops.gemm.product import Product

__all__ = ["COLUMNS", "KERNELS", "K_STEP", "RECORD", "Lines", "add_step", "blocked", "offsets", "suits"]

# A tile register holds 16 rows of 64 bytes; a block is two by two of them.
ROWS = COLUMNS = 32
K_STEP = 64
TILE_BYTES = ROWS * K_STEP
# Four products of tiles, 16 cycles each; zeroing, storing and finishing a block; configuring the registers. The first is the
# instruction's; the others were measured on a Xeon with AMX (products of 49 to 12544 rows, 8 to 96 columns and bytes of k), where two
# vector instructions a cycle are the measure of the vector kernels.
STEP_CYCLES, BLOCK_CYCLES, CALL_CYCLES = 64, 350, 200
# How many times larger than A's rows B has to be for threads to share columns. Between 4 and 16 ResNet-50 takes the same time on two
# threads, at 1 a tenth more: lines that the other core wrote cost more than lines of the L3 cache.
B_OVER_A = 8

# The product's record, with: `k`: bytes of a row and tap; `run`: taps that lie side by side; `k_steps`, and `offsets_k`: where each of
# them lies, from a row's first byte on; `panel` (of `panel_bytes`, 0: rows are read where they lie), `acc`: scratch of each thread;
# `chunk`: row blocks that pass all columns together; `by_columns`: 1 if threads share columns; then `Lines`.
RECORD = record_dtype(
    *((name, GEMM_RECORD[name].str[1:]) for name in GEMM_RECORD.names or ()),
    *((name, "i8") for name in ("k", "run", "k_steps", "offsets_k", "panel", "panel_bytes", "acc", "chunk", "by_columns")),
    *((name, "i8") for name in ("lines", "line", "length", "position", "pitch", "width")),
)
KERNELS: tuple[Kernel, ...] = tuple(
    Kernel(f"gemm_u8s8_{epilogue}_32x32__amx", RECORD, "qrt.ops.gemm.cpu_amx:gemm", (epilogue,))
    for epilogue, meaning in EPILOGUES.items()
    if meaning.startswith("int")
)


@dataclass(frozen=True)
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


def suits(target: Target, product: Product) -> bool:
    """Whether tile registers are faster than vectors, and the codes fit the packed store."""
    if target.isa != "amx" or not product.epilogue.integer or product.groups != 1 or product.m < ROWS // 2:
        return False
    if product.epilogue.name in CODES and not product.epilogue.steps_fit:
        return False
    if product.lines is None:
        # Below these sizes copying rows to the panel costs more than vectors: benchmarks, row `conv`.
        return product.n >= 24 and (product.k >= 48 or product.k * product.taps >= 128)
    blocks = product.batch * product.lines.count * -(-product.lines.length // ROWS) * -(-product.n // COLUMNS)
    m, k_steps = product.batch * product.m, product.k4 * product.taps
    tile = choose_tile(target, m, product.n, k_steps, product.epilogue.name)
    instructions = cost(target, tile, m, product.n, k_steps, product.epilogue.name)
    if product.taps > 1:  # vectors look every row of a tap up
        instructions += 2 * product.taps * m * -(-product.n // (tile.vectors * target.lanes))
    return CALL_CYCLES + blocks * (BLOCK_CYCLES + STEP_CYCLES * product.k_steps) < instructions / 2


def blocked(rows: Array) -> Array:
    """int8 [1][columns][runs][k], k in whole steps → [columns / 32][runs][k / 64][2][16][16][4], as words of four bytes."""
    words = rows.view(np.uint32).reshape(-1, 2, 16, rows.size // rows.shape[1] // K_STEP, 16)
    return np.ascontiguousarray(words.transpose(0, 3, 1, 4, 2))


def offsets(product: Product) -> Array:
    """Where each step along k lies, from a row's first byte on."""
    lines = product.lines
    if lines is None:
        return np.arange(product.k_steps, dtype=np.int64) * TILE_BYTES
    starts = np.array(lines.taps, np.int64)[:: product.run]
    return (starts[:, None] + np.arange(product.k_steps // len(starts)) * K_STEP).reshape(-1)


def add_step(steps: Steps, product: Product, fields: dict[str, int | float | Ref]) -> None:
    """Appends the kernel call; `fields` as for the vector kernels."""
    kernel = next(k for k in KERNELS if k.params == (product.epilogue.name,))
    threads = 1 if product.batch * product.m * product.n * product.k * product.taps < 1 << 18 else steps.threads
    lines = product.lines or Lines(1, 0, product.m, K_STEP, product.m, product.m, ())
    blocks, column_blocks = product.batch * lines.count * -(-lines.length // ROWS), -(-product.n // COLUMNS)
    a_block, b_bytes = product.k_steps * TILE_BYTES, column_blocks * product.k_steps * TILE_BYTES
    # Half of the L2 cache for the rows of a chunk, so that they stay there while all columns pass; columns that fit the L1 cache stay
    # there while rows pass.
    chunk = 1 if b_bytes <= cache_bytes(1) // 2 else max(1, cache_bytes(2) // 2 // a_block)
    by_columns = blocks < threads
    if product.lines is not None:
        # By rows a thread reads what it wrote the layer before, and all of B; by columns its part of B, and what the others wrote.
        by_columns |= column_blocks >= threads and b_bytes > B_OVER_A * blocks * ROWS * lines.position
    else:
        chunk = min(chunk, -(-blocks // threads)) if not by_columns else chunk
    filled: dict[str, int | float | Ref] = dict.fromkeys(RECORD.names or (), 0)
    filled |= fields
    filled |= {"k": product.k, "run": product.run, "k_steps": product.k_steps, "by_columns": int(by_columns), "chunk": chunk}
    filled |= {"lines": lines.count, "line": lines.line, "length": lines.length, "position": lines.position}
    filled |= {"pitch": lines.pitch, "width": lines.width}
    panel = 0 if product.lines is not None else chunk * a_block
    # A block's accumulators take 4096 bytes; what lies behind is left free, since a core that walks them asks for the lines that follow.
    filled |= {"panel": steps.scratch(max(panel * threads, 64)), "panel_bytes": panel, "acc": steps.scratch(8192 * threads)}
    steps.step(kernel, threads, **filled)
