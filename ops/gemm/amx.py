"""The integer product on AMX tiles: its table, how weights are packed for it, and its step. Kernels: `cpu_amx.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qrt.core.target import Target
from qrt.jit import Kernel, record_dtype
from qrt.ops.gemm.table import CODES, EPILOGUES
from qrt.ops.gemm.table import RECORD as GEMM_RECORD
from qrt.ops.op import Array, Ref, Steps

if TYPE_CHECKING:
    from qrt.ops.gemm.product import Product

__all__ = ["COLUMNS", "KERNELS", "RECORD", "add_step", "blocked", "suits"]

# A tile register holds 16 rows of 64 bytes; a block is two by two of them.
ROWS = COLUMNS = 32
K_STEP = 64
# Half of a small L2 cache: a block's rows stay there while all columns pass.
PANEL_BYTES = 1 << 18

# The product's record, with: `k`: bytes of a row and tap; `run`: taps that lie side by side; `panel`, `acc`: scratch of each thread;
# `block_rows`: rows that share a panel; `column_shares`: into how many parts the columns are cut; `in_place`: 1 if rows are read where
# they lie.
RECORD = record_dtype(
    *((name, GEMM_RECORD[name].str[1:]) for name in GEMM_RECORD.names or ()),
    *((name, "i8") for name in ("k", "run", "panel", "panel_bytes", "acc", "block_rows", "column_shares", "in_place")),
)
KERNELS: tuple[Kernel, ...] = tuple(
    Kernel(f"gemm_u8s8_{epilogue}_32x32__amx", RECORD, "qrt.ops.gemm.cpu_amx:gemm", (epilogue,))
    for epilogue, meaning in EPILOGUES.items()
    if meaning.startswith("int")
)


def suits(target: Target, product: Product) -> bool:
    """Whether the product is large enough to fill tiles, and its codes fit the packed store."""
    codes = product.epilogue.name in CODES
    # Below these sizes copying rows to the panel and emptying tiles cost more than the vector kernels: benchmarks, row `conv`.
    large = product.m >= ROWS // 2 and product.n >= 24 and (product.k >= 48 or product.k * product.taps >= 128)
    return target.isa == "amx" and product.epilogue.integer and product.groups == 1 and large and (product.epilogue.steps_fit or not codes)


def blocked(w: Array) -> Array:
    """int8 [k, columns] → [columns / 32][k / 64][2][16][16][4], zeros past k."""
    k, columns = w.shape
    full = np.zeros((-(-k // K_STEP) * K_STEP, columns), np.int8)
    full[:k] = w
    tiles = full.reshape(-1, 16, 4, columns // COLUMNS, 2, 16)
    return np.ascontiguousarray(tiles.transpose(3, 0, 4, 1, 5, 2))


def add_step(steps: Steps, product: Product, fields: dict[str, int | float | Ref]) -> None:
    """Appends the kernel call; `fields` as for the vector kernels."""
    kernel = next(k for k in KERNELS if k.params == (product.epilogue.name,))
    k_bytes = -(-product.k * product.taps // K_STEP) * K_STEP
    direct = fields.get("offsets", 0) == 0
    in_place = direct and product.taps == 1 and product.k % K_STEP == 0 and product.m >= ROWS
    work = product.batch * product.m * product.n * product.k * product.taps
    threads = 1 if work < 1 << 18 else steps.threads
    shared = -(-product.m // (threads * ROWS)) * ROWS
    rows = max(ROWS, min(PANEL_BYTES // k_bytes // ROWS * ROWS, shared))
    blocks = product.batch * -(-product.m // rows)
    panel = 0 if in_place else rows * k_bytes
    filled: dict[str, int | float | Ref] = dict.fromkeys(RECORD.names or (), 0)
    filled |= fields
    filled |= {"panel": steps.scratch(max(panel, 64) * threads), "panel_bytes": panel, "acc": steps.scratch(4096 * threads)}
    filled |= {"run": product.run, "block_rows": rows, "column_shares": threads if blocks < threads else 1, "in_place": int(in_place)}
    steps.step(kernel, threads, **filled)
