"""The matrix product's table: tiles per instruction set, the record, the epilogues. Kernels: `cpu.py`, around `cpu_micro.py`.

One kernel family serves matrix products and convolutions, integer and float: rows of A are found by a stride (`direct`) or
through a table of offsets (`indirect`, one per output pixel and tap), and are read four bytes at a time: four uint8 or
one float32. B is packed [N / NR][taps][K4][NR][4 bytes].

Where codes are multiplied in pairs of 16 bits (AVX2: `cpu_pairs.py`), rows of A are widened to a strip first, all taps one after the
other, and B is packed [N / NR][taps · K / 2][NR][2 bytes].
"""

from __future__ import annotations

from qrt.core.record import record
from qrt.core.target import LADDERS, Target
from qrt.jit import Kernel, cache_bytes, record_dtype
from qrt.jit.lanes import LANES

__all__ = [
    "CODES",
    "EPILOGUES",
    "KERNELS",
    "PAIRS_RECORD",
    "RECORD",
    "ROW_BLOCKS",
    "SATURATED",
    "SUMS",
    "TILES",
    "Tile",
    "blocks_together",
    "choose_tile",
    "chunk_of_blocks",
    "cost",
    "in_pairs",
    "k_stretch",
    "kernel_for",
    "packs",
    "row_blocks",
    "tiles_for",
    "vector_isa",
]

RECORD = record_dtype(
    ("x", "i8"),  # A: row m of batch i, group g starts at x + i·x_batch + g·x_group + m·x_row (direct) or + offsets[m][tap]
    ("x_batch", "i8"),
    ("x_group", "i8"),
    ("x_row", "i8"),
    ("offsets", "i8"),  # int32 [m][taps], bytes; negative: the tap lies in the padding and reads `zeros`
    ("zeros", "i8"),
    ("w", "i8"),  # packed B
    ("w_batch", "i8"),
    ("w_group", "i8"),
    ("w_block", "i8"),  # bytes from one block of NR columns to the next
    ("bias_batch", "i8"),  # bytes from one batch's bias to the next: 0 but where B is computed in the run or k comes in stretches
    ("bias_row", "i8"),  # of floats, from one row's to the next: 0 but where k comes in stretches and goes on from sums
    ("bias", "i8"),  # int32 or float32 [groups][N rounded up to NR]: what accumulators start from
    ("scale", "i8"),  # float32 [groups][N rounded up to NR]
    ("y", "i8"),  # output: row m, column n at y + i·y_batch + g·y_group + m·y_row + n·size
    ("y_batch", "i8"),
    ("y_group", "i8"),
    ("y_row", "i8"),
    ("r", "i8"),  # residual, walked like y
    ("a_scale", "i8"),  # address of A's float32 scale and of its zero point (a byte), where they are computed in the run
    ("a_zero_point", "i8"),
    ("table", "i8"),  # 256 codes that take the place of those of `u8`
    ("column_sums", "i8"),  # int32 like bias: Σ of each column of B, for a zero point computed in the run
    ("batch", "i8"),
    ("groups", "i8"),
    ("m", "i8"),
    ("n", "i8"),  # columns of one group
    ("taps", "i8"),
    ("k4", "i8"),
    ("together", "i8"),  # row blocks that pass all columns together
    ("lo", "f4"),  # bounds: of the float result, or of the code less y_zero_point
    ("hi", "f4"),
    ("y_zero_point", "i4"),  # in `u8add`: what is taken from each code first (128 for codes that stand for int8)
    ("c_lo", "f4"),  # the same for the convolution's own output in `u8add`
    ("c_hi", "f4"),
    ("c_ratio", "f4"),  # c_scale / y_scale
    ("r_ratio", "f4"),  # r_scale / y_scale
    ("c_zero_point", "f4"),  # less that too
    ("sum_offset", "f4"),
)

# The same for codes in pairs (`cpu_pairs.py`), where `k4` counts pairs of codes along all taps, and `together` row blocks whose rows are
# widened at once: to `strip` (of `strip_bytes` for each thread), `strip_row` bytes each. `k`: codes of a row and tap; `run`: taps that read
# neighbouring pixels.
PAIRS_RECORD = record_dtype(
    *((name, RECORD[name].str[1:]) for name in RECORD.names or ()),
    *((name, "i8") for name in ("strip", "strip_bytes", "strip_row", "k", "run")),
)

# What becomes of an accumulator. The first word is its type.
EPILOGUES: dict[str, str] = {
    "u8": "int: clamp(rint(acc · scale[n])) + y_zero_point as uint8",
    "u8t": "int: table[the code of u8] as uint8",
    "u8add": "int: c = clamp(rint(acc · scale[n])) + c_zero_point, r' = r − y_zero_point; "
    "clamp(rint(fma(c, c_ratio, fma(r', r_ratio, sum_offset)))) + y_zero_point as uint8",
    "u8radd": "int: the same, the residual's product added last",
    "s32": "int: acc as int32",
    "f32d": "int: float32(acc − a_zero_point · column_sums[n]) · (a_scale · scale[n]) + bias[n] as float32",
    "f32": "float: clamp(acc) as float32",
    "f32add": "float: clamp(acc + r) as float32",
}


# Products that are under way at once, of codes and of floats: two a cycle, and five or four cycles from one to the next into the same
# accumulator (vpdpbusd, vfmadd: uops.info, Ice Lake and later).
_UNDER_WAY = {False: 10, True: 8}
# Bytes of B that come from beyond the L1 cache while a product is done: measured, 1 to 4 rows of 1024. From beyond the L2 cache: 30 GB/s,
# measured, of a core with two products a cycle of 1 / 3 ns.
_STREAM, _FAR_STREAM = 14, 5
# Row blocks for each thread that are enough to share a product by rows alone: one more or less is then a small part.
ROW_BLOCKS = 8

# Epilogues that end in codes, and those of them that add a residual.
SUMS = ("u8add", "u8radd")
CODES = ("u8", "u8t", *SUMS)


# How four vectors of codes are packed at once: "any" bounds and zero point, or all 256 codes around a zero point of 0 or of 128, which
# the packs saturate to by themselves.
SATURATED = ("zero", "half")


@record
class Tile:
    """A micro-kernel's block of accumulators: `rows` of A times `vectors` of the ISA's lanes."""

    rows: int
    vectors: int

    @property
    def name(self) -> str:
        """As choices of `qrt tune` have it: 6x4."""
        return f"{self.rows}x{self.vectors}"


# Accumulators + vectors + one broadcast fit the registers: 32 of 512 bits, 16 of 256 or 128. Tiles of one to four rows are for products of
# so few: there B is read once, as fast as memory gives it.
TILES: dict[str, tuple[Tile, ...]] = {
    "avx512vnni": (Tile(6, 4), Tile(8, 3), Tile(10, 2), Tile(10, 1), Tile(4, 4), Tile(2, 4), Tile(1, 4)),
    "avxvnni": (Tile(4, 2), Tile(6, 2), Tile(8, 1), Tile(2, 4), Tile(1, 4)),
    "avx2": (Tile(6, 2), Tile(8, 1), Tile(4, 2), Tile(1, 4), Tile(2, 4)),
    "neon_dot": (Tile(5, 4), Tile(8, 2), Tile(1, 4)),
    "generic": (Tile(2, 2), Tile(4, 1), Tile(1, 2)),
}
# Of floats, where products of codes need registers to take codes apart.
_FLOAT_TILES: dict[str, tuple[Tile, ...]] = {
    "avxvnni": (Tile(6, 2), Tile(4, 2), Tile(8, 1), Tile(1, 4)),
    "generic": (Tile(2, 4), Tile(3, 3), Tile(4, 1)),
}

# Floats along k that a product takes at once, of more than twice as many: rows of so many lie in few pages, and a block of them in the
# L1 cache. Measured on 5 to 1024 rows of 2304 to 25088: up to 1.9 times as fast. Not faster are tiles of few rows, which wait for memory
# alone, those of 256-bit vectors, and a single block of columns that the L2 cache holds: up to 14 % longer in stretches.
_STRETCHES = {"avx512vnni": 1024}


def _is_float(epilogue: str) -> bool:
    return EPILOGUES[epilogue].startswith("float")


def in_pairs(isa: str, epilogue: str) -> bool:
    """Whether codes are multiplied as pairs of 16 bits, by the kernels of `cpu_pairs.py`."""
    return isa == "avx2" and not _is_float(epilogue)


def tiles_for(isa: str, epilogue: str) -> tuple[Tile, ...]:
    """The tiles of `isa` for products that end in `epilogue`."""
    return _FLOAT_TILES.get(isa, TILES[isa]) if _is_float(epilogue) else TILES[isa]


def _kernel(isa: str, tile: Tile, addressing: str, epilogue: str, packed: str) -> Kernel:
    types = "f32" if _is_float(epilogue) else "u8s8"
    shape = f"{tile.rows}x{tile.vectors * LANES[isa]}{packed}_{addressing}"
    name = f"gemm_{types}_{epilogue}_{shape}__{isa}"
    if in_pairs(isa, epilogue):
        return Kernel(name, PAIRS_RECORD, "qrt.ops.gemm.cpu_pairs:gemm", (isa, tile.rows, tile.vectors, addressing, epilogue))
    return Kernel(name, RECORD, "qrt.ops.gemm.cpu:gemm", (isa, tile.rows, tile.vectors, addressing, epilogue, packed))


def packs(isa: str, tile: Tile, epilogue: str) -> bool:
    """Whether there are kernels that pack four vectors of codes, of one row or of two, before they store them; their columns lie in
    QUAD_ORDER or PAIR_ORDER."""
    return isa == "avx512vnni" and tile.vectors in (2, 4) and epilogue in CODES


KERNELS: tuple[Kernel, ...] = tuple(
    _kernel(isa, tile, addressing, epilogue, packed)
    for ladder in LADDERS.values()
    for isa in ladder
    if isa in TILES
    for epilogue in EPILOGUES
    for tile in tiles_for(isa, epilogue)
    for addressing in ("direct", "indirect")
    if epilogue != "u8t"  # which costs vector units, that are busy here, more than a step of its own: see `Product.looks_up`
    for packed in (("", "any", *SATURATED) if packs(isa, tile, epilogue) else ("",))
    if isa != "generic" or ladder is LADDERS["x86_64"]
)


def vector_isa(target: Target) -> str:
    """The rung of the target's ladder whose vector kernels are best: tiles registers have kernels of their own (`amx.py`)."""
    return next(isa for isa in target.ladder if isa in TILES)


def row_blocks(tile_rows: int, m: int) -> tuple[int, int]:
    """How m rows fall into blocks: how many of `tile_rows`, and how many of one less. Where no such numbers make m, the last one
    computes rows twice."""
    blocks = -(-m // tile_rows)
    wholes = m - blocks * (tile_rows - 1)
    return (wholes, blocks - wholes) if wholes >= 0 else (blocks - 1, 1)


def cost(target: Target, tile: Tile, m: int, n: int, k_steps: int, epilogue: str) -> float:
    """About how many vector instructions `tile` takes for m rows, n columns and `k_steps` steps along k and taps, padding included.

    A step is rows·vectors products, two a cycle (in pairs two instructions each and one a vector of B, three a cycle); not less than their
    latency takes, nor than the loads, two a cycle as well, of `rows` broadcasts of A and `vectors` vectors of B, nor than B comes in. An
    accumulator's way out costs as counted in `cpu_micro.py`: about 8 instructions to a vector of codes, 5 where four are packed at once, 3
    to one of floats; a row's addresses cost about 4.

    Each row block reads a block of B's columns again. Of one that is larger than half of the L2 cache, a growing part is gone by then, and
    all of one of the cache's size: measured on 196 to 1024 rows of 4096 to 8192 floats, tiles of 16 to 64 columns.
    """
    isa = vector_isa(target)
    out = 3 if epilogue not in CODES else 5 if packs(isa, tile, epilogue) else 8
    width, under_way = tile.vectors * LANES[isa], _UNDER_WAY[_is_float(epilogue)]
    pairs = in_pairs(isa, epilogue)
    line = width * (2 if pairs else 4)
    gone = min(max(2 * line * k_steps / cache_bytes(2) - 1, 0), 1) * (1 - 1 / -(-m // tile.rows))
    total = 0.0
    for rows, blocks in zip((tile.rows, tile.rows - 1), row_blocks(tile.rows, m), strict=True):
        arithmetic = (2 * rows + 1) * tile.vectors / 1.5 if pairs else max(rows * tile.vectors, under_way)
        step = max(arithmetic, rows + tile.vectors + 1, line / _STREAM) + 0.1 * rows
        step += gone * max(line / _FAR_STREAM - step, 0)
        total += blocks * (k_steps * step + rows * (tile.vectors * out + 4))
    return total * -(-n // width)


def choose_tile(target: Target, m: int, n: int, k_steps: int, epilogue: str) -> Tile:
    """The tile that takes fewest instructions."""
    return min(tiles_for(vector_isa(target), epilogue), key=lambda tile: cost(target, tile, m, n, k_steps, epilogue))


def blocks_together(target: Target, tile: Tile, m: int, n: int, k4: int, taps: int, threads: int) -> int:
    """How many row blocks of A, whose rows lie in memory as they are multiplied, pass all columns together: as many as half of the L2 cache
    holds beside a block of columns, if then less comes from beyond it than if each block of columns met all rows of a thread; else all.

    Measured: 1 to 8 % less time where A is larger than the cache; up to 20 % more where only a few blocks fit beside the columns.
    """
    blocks, width = -(-m // tile.rows), tile.vectors * LANES[vector_isa(target)]
    blocks = -(-blocks // threads) if blocks >= ROW_BLOCKS * threads else blocks
    column_blocks, a_block, b_block = -(-n // width), 4 * tile.rows * k4, 4 * width * k4 * taps
    half = cache_bytes(2) // 2
    if blocks * a_block <= half or a_block + b_block > half:
        return blocks
    passes = -(-blocks // ((half - b_block) // a_block))
    a, b = blocks * a_block, column_blocks * b_block
    return -(-blocks // passes) if a + passes * b < column_blocks * a + b else blocks


def k_stretch(target: Target, tile: Tile, n: int, k: int) -> int:
    """How much of k a product of floats takes at once: all, or equal parts, of whole cache lines but for the last."""
    isa = vector_isa(target)
    longest, width = _STRETCHES.get(isa, k), tile.vectors * LANES[isa]
    held = n <= width and 8 * width * k < cache_bytes(2)
    if tile.rows <= tile.vectors or k <= 2 * longest or held:
        return k
    return -(-k // -(-k // longest) // 16) * 16


def chunk_of_blocks(tile: Tile, m: int, n: int, strip_row: int, b_bytes: int, threads: int) -> int:
    """How many row blocks are widened at once, for all columns: as many as half of the L1 cache holds; a quarter of the L2 cache, where B
    is larger than half of that and should be read seldom; not so many that threads have too little to share. About as many each time."""
    room = cache_bytes(1) // 2 if 2 * b_bytes <= cache_bytes(2) else cache_bytes(2) // 4
    blocks, column_blocks = -(-m // tile.rows), -(-n // (tile.vectors * LANES["avx2"]))
    least = 1 if threads == 1 else ROW_BLOCKS * threads
    most = max(min(room // (tile.rows * strip_row), blocks * column_blocks // least, blocks), 1)
    return -(-blocks // -(-blocks // most))


def kernel_for(target: Target, tile: Tile, addressing: str, epilogue: str, packed: str = "") -> Kernel:
    """The table's row for a tile, a way of finding rows, an epilogue and a way of storing codes."""
    return _kernel(vector_isa(target), tile, addressing, epilogue, packed)
