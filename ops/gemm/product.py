"""One product as the kernels see it: sizes and constant weights in, packed bytes and a step out. Convolution uses it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from qrt.core.record import record
from qrt.core.target import Target
from qrt.jit import Kernel, record_dtype, tuned
from qrt.jit.lanes import LANES, ORDERS
from qrt.ops.gemm import amx
from qrt.ops.gemm.epilogue import Epilogue, Padder
from qrt.ops.gemm.table import (
    CODES,
    PAIRS_RECORD,
    RECORD,
    Tile,
    blocks_together,
    choose_tile,
    chunk_of_blocks,
    in_pairs,
    k_stretch,
    kernel_for,
    packs,
    tiles_for,
    vector_isa,
)
from qrt.ops.op import Array, Base, Operand, Ref, Steps
from qrt.ops.quantization.lut import emit_lut

__all__ = ["COPY", "Product", "Weights", "emit_table_apart", "int8_parts", "overread_safe", "wrap32"]

COPY = Kernel("copy_u8_flat__generic", record_dtype(("x", "i8"), ("y", "i8"), ("n", "i8")), "qrt.ops.gemm.cpu_pack:copy")

# Below this many multiply-accumulates a barrier costs more than a second thread saves.
SMALL = 1 << 18

# A product's way on tile registers, beside those on vectors, which are called after their tiles.
TILE_REGISTERS = "amx"

# Columns that are laid out together, as many as a cache line has bytes.
_BLOCK = 64

Fields = dict[str, int | float | Ref]


def int8_parts(difference: Array) -> list[Array]:
    """int8 arrays that sum exactly to `difference` (codes less zero points, −255..255): one if it fits, else two or three.

    An asymmetric weight is multiplied as several symmetric ones over the same rows; no kernel knows of it.
    """
    parts = []
    rest = difference
    while True:
        part = np.clip(rest, -128, 127)
        parts.append(part.astype(np.int8))
        rest = rest - part
        if not rest.any():
            return parts


def wrap32(x: Array) -> Array:
    """int64 → int32 modulo 2**32, as accumulators wrap."""
    return (x & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def overread_safe(steps: Steps, x: Operand, k: int, piece: int = 4, often: bool = False) -> Ref:
    """Where the kernels may read the codes `x`: `piece` bytes at a time, so past a row's end when k is no multiple of that.

    Arena buffers and packed constants have room there; the caller's own arrays do not, and are copied first. So are those that are read
    `often`, since they may start anywhere, and pieces across two cache lines take twice the time.
    """
    if x.ref.base is Base.ARENA or (k % piece == 0 and not often):
        return x.ref
    scratch = steps.scratch(x.spec.nbytes)
    steps.step(COPY, x=x.ref, y=scratch, n=x.spec.nbytes)
    return scratch


def emit_table_apart(op: Any, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
    """Emits a product and its table, where no kernel takes both: codes first, then a step that looks them up where they lie."""
    table = op.epilogue.table
    replace(op, epilogue=op.epilogue.without_table()).emit(steps, inputs, outputs)
    emit_lut(steps, outputs[0], steps.packed(table, "table", table.copy), outputs[0])


@record(eq=False)
class Weights:
    """A constant B with its bias.

    `w`: float32 or int8 [groups, taps, k, n]. `zero_point`: int32 [groups · n], for int8 only; None: all 0.
    `bias`: [groups · n], float32 for float results and int32 for integer ones; None: all 0.
    """

    w: Array
    zero_point: Array | None = None
    bias: Array | None = None

    def centred(self) -> Array:
        """w less its zero points: int32 for codes, w itself for floats."""
        if self.w.dtype == np.float32:
            return self.w
        if self.zero_point is None:
            return self.w.astype(np.int32)
        groups, _, _, n = self.w.shape
        return self.w.astype(np.int32) - self.zero_point.reshape(groups, 1, 1, n)

    def sums(self) -> Array:
        """Σ of each centred column of codes: int64 [groups · n]; 0 for floats, which need none."""
        groups, taps, k, n = self.w.shape
        if self.w.dtype == np.float32:
            return np.zeros(groups * n, np.int64)
        # int32 holds the sum of so many codes, and NumPy adds in it in half of the time.
        narrow = np.int32 if taps * k < 1 << 23 else np.int64
        sums: Array = self.w.sum((1, 2), dtype=narrow).reshape(-1).astype(np.int64)
        return sums if self.zero_point is None else sums - taps * k * self.zero_point.astype(np.int64)


@record
class Product:
    """Sizes of a product (`k` elements a group and tap), and what becomes of it."""

    m: int
    n: int
    k: int
    epilogue: Epilogue
    taps: int = 1
    groups: int = 1
    batch: int = 1
    run: int = 1  # taps that read neighbouring pixels of one row of the image, away from its border
    lines: amx.Lines | None = None  # how tile registers find rows without a copy
    amx: bool = False  # runs on tile registers: see amx.py
    pairs: bool = False  # runs on pairs of codes: see cpu_pairs.py
    chosen: Tile | None = None  # the tile; None: nobody has looked yet
    packed: int = 0  # columns of a block that lies in ORDERS, for kernels that pack four vectors of codes; 0: columns lie in order

    @property
    def k4(self) -> int:
        """Steps along k: of four bytes; of pairs, along all taps."""
        if self.pairs:
            return -(-self.k * self.taps // 2)
        return -(-self.k // 4) if self.epilogue.integer else self.k

    @property
    def step_bytes(self) -> int:
        """Bytes of B of a step and a column."""
        return 2 if self.pairs else 4

    @property
    def k_pieces(self) -> int:
        """Parts of k that are a whole number of steps each."""
        return 1 if self.pairs else self.taps

    @property
    def k_bytes(self) -> int:
        """Bytes of a column of B."""
        return self.k4 * self.k_pieces * self.step_bytes

    @property
    def looks_up(self) -> bool:
        """Whether its kernel takes the epilogue's table. Measured beside a step of its own, which permutes bytes as well: on tiles it gains
        up to 24 %, but where half of the columns are missing (14 % lost); in vector kernels it costs up to 30 %, with narrow results."""
        return self.epilogue.table is None or (self.amx and self.n > amx.COLUMNS // 2)

    @property
    def piece(self) -> int:
        """Bytes of k that a kernel of codes reads at a time."""
        return amx.K_STEP if self.amx else 16 if self.pairs else 4

    @property
    def k_steps(self) -> int:
        """64-byte steps along k on tile registers: whole runs of taps where rows lie in lines, else all taps one after the other."""
        return self.k_runs * -(-self.k * self.taps // self.k_runs // amx.K_STEP)

    @property
    def k_runs(self) -> int:
        """Stretches of k that tile registers load one by one."""
        return self.taps // self.run if self.lines is not None else 1

    def nr(self, steps: Steps) -> int:
        """Columns of that tile."""
        return amx.COLUMNS if self.amx else self.tile(steps).vectors * LANES[vector_isa(steps.target)]

    def columns(self, steps: Steps) -> int:
        """Columns of the packed B: n rounded up to the tile."""
        nr = self.nr(steps)
        return -(-self.n // nr) * nr

    def tile(self, steps: Steps) -> Tile:
        """The tile that suits this product."""
        return self.chosen or choose_tile(steps.target, self.m, self.n, self.k4 * self.k_pieces, self.epilogue.name)

    def on(self, target: Target) -> Product:
        """The product as `target` computes it."""
        return replace(self, pairs=in_pairs(vector_isa(target), self.epilogue.name))

    def _chosen(self, steps: Steps) -> Product:
        """The product on tile registers or with a tile of vectors: as `qrt tune` found on this machine, else as costs say."""
        tiles = {tile.name: tile for tile in tiles_for(vector_isa(steps.target), self.epilogue.name)}
        ways = [TILE_REGISTERS, *tiles] if amx.fits(steps.target, self) else [*tiles]
        usual = TILE_REGISTERS if amx.suits(steps.target, self) else self.tile(steps).name
        shape = f"{self.epilogue.name} {self.batch}x{self.groups}x{self.m}x{self.n}x{self.k}x{self.taps}"
        shape += f" run {self.run} lines {int(self.lines is not None)} threads {steps.threads}"
        way = tuned.choose("qrt.ops.gemm.cpu", steps.target, steps.current, shape, ways, usual)
        if way == TILE_REGISTERS:
            return replace(self, amx=True, packed=amx.COLUMNS if self.epilogue.name in CODES else 0)
        product = replace(self, chosen=self.tile(steps) if way == usual else tiles[way])
        packed = packs(vector_isa(steps.target), product.tile(steps), self.epilogue.name) and self.epilogue.steps_fit
        return replace(product, packed=product.nr(steps)) if packed else product

    def _ordered(self, columns: Array) -> Array:
        """[..., columns] in the order in which the kernel's lanes hold them."""
        if not self.packed:
            return columns
        order = list(ORDERS[self.packed])
        return columns.reshape(*columns.shape[:-1], -1, self.packed)[..., order].reshape(columns.shape)

    def _by_column(self, w: Array, columns: int, runs: int, piece: int) -> Array:
        """B of shape [groups, taps, k, n] as [groups][columns][runs][k], columns in the kernel's order, zeros up to whole pieces of k.

        Columns of one block come from neighbouring places of the file, whichever way it holds B: a whole axis at a time would miss
        the cache at each byte.
        """
        per_run = self.k * self.taps // runs
        rows = np.zeros((self.groups, columns, runs, -(-per_run // piece) * piece), w.dtype)
        split = (self.groups, self.n, runs, self.taps // runs, self.k)
        to, source = rows[:, : self.n, :, :per_run].reshape(split), w.transpose(0, 3, 1, 2).reshape(split)
        for column in range(0, self.n, _BLOCK):
            to[:, column : column + _BLOCK] = source[:, column : column + _BLOCK]
        if not self.packed:
            return rows
        blocks = rows.reshape(self.groups, -1, self.packed, *rows.shape[2:])
        return np.take(blocks, ORDERS[self.packed], 2).reshape(rows.shape)

    def pad(self, steps: Steps) -> Padder:
        """Lays constants out as kernels read them: [groups][columns]."""
        shape, columns = (self.groups, self.n), self.columns(steps)

        def lay(source: Array, how: str, array: Array) -> Ref:
            def make() -> Array:
                padded = np.zeros((shape[0], columns), array.dtype)
                padded[:, : shape[1]] = np.resize(array, shape)  # one value, one a column, or one a group and column
                return self._ordered(padded)

            return steps.packed(source, ("columns", how, columns, shape, self.packed, self.amx), make)

        return lay

    def step(self, steps: Steps, extra: Sequence[Operand], indirect: bool, fields: Fields) -> None:
        """Appends the kernel call. `fields`: addresses and strides; what the epilogue reads is added here."""
        named: Fields = {"batch": self.batch, "groups": self.groups, "m": self.m, "n": self.n, "taps": self.taps}
        fields = named | {"k4": self.k4} | self.epilogue.fields(extra, self.pad(steps)) | fields
        if (table := self.epilogue.table) is not None:
            fields["table"] = steps.packed(table, "table", table.copy)
        if self.amx:
            amx.add_step(steps, self, fields)
            return
        if indirect or self.epilogue.integer:
            self._vector_step(steps, self.epilogue.name, indirect, fields)
        else:
            self._stretches(steps, fields)

    def _vector_step(self, steps: Steps, epilogue: str, indirect: bool, fields: Fields) -> None:
        packed, tile = self.epilogue.saturation or "any" if self.packed else "", self.tile(steps)
        kernel = kernel_for(steps.target, tile, "indirect" if indirect else "direct", epilogue, packed)
        threads = 1 if self.batch * self.groups * self.m * self.n * self.k * self.taps < SMALL else steps.threads
        filled: Fields = dict.fromkeys((PAIRS_RECORD if self.pairs else RECORD).names or (), 0)
        filled |= {"w_block": self.k_bytes * self.nr(steps)} | fields
        if self.pairs:
            steps.step(kernel, threads, **filled | self._strip(steps, tile, threads))
            return
        # Windows read a row of an image several times for each block of columns: it may well come from beyond the cache.
        sizes = (self.m, self.n, int(filled["k4"]), self.taps)  # type: ignore[arg-type]
        filled["together"] = self.m if indirect else blocks_together(steps.target, tile, *sizes, threads)
        steps.step(kernel, threads, **filled)

    def _stretches(self, steps: Steps, fields: Fields) -> None:
        """A product of floats, with k in stretches where that is faster: each goes on from the sums of the one before, so that a sum is
        added up in the same order as at once. Between them they lie in scratch memory, as much as the whole result in float32 takes."""
        name, stretch = self.epilogue.name, k_stretch(steps.target, self.tile(steps), self.n, self.k)
        if stretch >= self.k:
            self._vector_step(steps, name, False, fields)
            return
        row, line, x, w = 4 * self.groups * self.columns(steps), 4 * self.nr(steps), fields["x"], fields["w"]
        sums = steps.scratch(self.batch * self.m * row)
        between: Fields = {"y": sums, "y_batch": self.m * row, "y_group": row // self.groups, "y_row": row, "lo": -inf, "hi": inf}
        go_on: Fields = {"bias": sums, "bias_batch": self.m * row, "bias_row": row}
        for start in range(0, self.k, stretch):
            last = start + stretch >= self.k
            own: Fields = {"x": x + 4 * start, "w": w + start * line, "k4": min(stretch, self.k - start)}
            own |= (go_on if start else {}) | ({} if last else between)
            self._vector_step(steps, name if last else "f32", False, fields | own)

    def _strip(self, steps: Steps, tile: Tile, threads: int) -> Fields:
        """Where rows are widened. They lie an odd number of cache lines apart: those of a tile fall into different sets of a cache."""
        row = (2 * (self.k * self.taps + self.piece) + 63) // 64 * 64 | 64
        together = chunk_of_blocks(tile, self.m, self.n, row, self.n * self.k_bytes, threads)
        size = together * tile.rows * row + 64
        return {
            "strip": steps.scratch(threads * size),
            "strip_bytes": size,
            "strip_row": row,
            "k": self.k,
            "run": self.run,
            "together": together,
        }

    def with_constant(self, steps: Steps, weights: Weights, a_zero_point: int) -> tuple[Product, Fields]:
        """The product over packed `weights` (more taps, if they are asymmetric), and the fields that name them.

        The bias that accumulators start from takes in a's zero point: Σ (a − za) · w = Σ a · w − za · Σ w.
        """
        parts = int8_parts(weights.centred()) if self.epilogue.integer and weights.zero_point is not None else [weights.w]
        product = self
        if len(parts) > 1:
            lines = self.lines and replace(self.lines, taps=tuple(np.repeat(self.lines.taps, len(parts)).tolist()))
            product = replace(self, taps=self.taps * len(parts), run=1, lines=lines)
        product = product.on(steps.target)._chosen(steps)
        nr, columns, per = product.nr(steps), product.columns(steps), product.step_bytes if self.epilogue.integer else 1
        zeros = weights.zero_point.tobytes() if weights.zero_point is not None else b""

        def pack() -> Array:
            w = parts[0] if len(parts) == 1 else np.stack(parts, 2).reshape(self.groups, product.taps, self.k, self.n)
            if product.amx:
                return amx.blocked(product._by_column(w, columns, product.k_runs, amx.K_STEP))
            rows = product._by_column(w, columns, product.k_pieces, per)
            words = rows.view(np.uint16 if product.pairs else np.uint32)
            words = words.reshape(self.groups, columns // nr, nr, product.k_pieces, product.k4)
            return np.ascontiguousarray(words.transpose(0, 1, 3, 4, 2))

        lay = product.pad(steps)
        fields: Fields = {
            "w": steps.packed(weights.w, ("b", nr, zeros, product.packed, product.step_bytes, product.amx and product.k_runs), pack),
            "w_group": columns * product.k_bytes,
        }
        if product.amx:
            fields |= amx.constants(steps, product, weights.w)
        bias = weights.bias if weights.bias is not None else np.zeros(1, np.float32)
        source = weights.w if weights.bias is None else weights.bias
        if self.epilogue.name == "f32d":
            fields["column_sums"] = lay(weights.w, f"sums{zeros!r}", wrap32(weights.sums()))
        elif self.epilogue.integer:
            bias = wrap32(bias.astype(np.int64) - a_zero_point * weights.sums())
            return product, fields | {"bias": lay(source, f"start{a_zero_point}{zeros!r}{id(weights.w)}", bias)}
        return product, fields | {"bias": lay(source, "bias", bias)}
