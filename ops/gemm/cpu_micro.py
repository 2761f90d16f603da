"""The matrix product's micro-kernel: one tile, in LLVM IR. The loops around it: `cpu.py`, `cpu_pairs.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from qrt.jit.lang import device, members, written
from qrt.jit.lang.simd import F32, I1, I8, I32, I64, Simd
from qrt.jit.lang.tables import load_permuted, permuted
from qrt.ops.gemm.table import CODES, SATURATED, SUMS

# Steps of k between what is multiplied and what of B is asked for by tiles of few rows, which wait for B alone: measured, 8 to 64.
AHEAD = 32


class Micro:
    """Builds one tile: accumulate over taps and K, then the epilogue."""

    def __init__(self, s: Simd, rows: int, vectors: int, addressing: str, epilogue: str, values: dict[str, Any], packed: str = "") -> None:
        self.s, self.b, self.packed = s, s.b, packed
        self.rows, self.vectors, self.addressing, self.epilogue = rows, vectors, addressing, epilogue
        self.v = values
        self.floats = epilogue in ("f32", "f32add")
        self.kind = s.f32 if self.floats else s.i32
        self.multiply, self.step = (s.fma if self.floats else s.dot), 4 * s.lanes
        self.asks_ahead = 2 if rows > vectors else 0

    def row_index(self, i: int) -> Any:
        """Row i of the tile, or the last one there is: surplus rows repeat it, and store the same bytes again."""
        last = self.b.sub(self.v["rows"], I64(1))
        return self.b.select(self.b.icmp_signed("<", I64(i), last), I64(i), last)

    def build(self) -> None:
        b, s, v = self.b, self.s, self.v
        self.index = [self.row_index(i) for i in range(self.rows)]
        acc = self._sums()
        whole = b.icmp_signed("==", v["columns"], I64(self.vectors * s.lanes))
        finish = self._finish_packed if self.packed else self._finish
        with b.if_else(whole) as (then, otherwise):
            with then:
                if s.isa == "avx2" and self.epilogue in CODES:
                    self._finish_fours(acc)
                else:
                    finish(acc, masked=False)
            with otherwise:
                finish(acc, masked=True)

    def _sums(self) -> list[list[Any]]:
        """Accumulators over all taps and k. The variables become registers."""
        b, s, v = self.b, self.s, self.v
        acc = self._starts()
        w, ahead = self._variable(v["w"]), [self._variable(v[name]) for name in ("ahead", "also_ahead")]
        # Each row's address in a register of its own: the optimiser else computes them anew at every step.
        direct = [s.opaque(b.add(v["x"], b.mul(index, v["x_row"]))) for index in self.index]
        with cgutils.for_range(b, v["taps"]) as tap:
            rows = direct if self.addressing == "direct" else [s.opaque(self._indirect(i, tap.index)) for i in range(self.rows)]
            with cgutils.for_range(b, b.lshr(v["k4"], I64(1))) as pair:
                k = b.shl(pair.index, I64(3))
                for n, (offset, line, pace) in enumerate(zip((0, 4), ahead, ("pace", "also_pace"), strict=True)):
                    if n < self.asks_ahead:
                        s.prefetch(b.load(line))
                        b.store(b.add(b.load(line), v[pace]), line)
                    self._k_step(acc, [s.at(b.add(row, k), offset) for row in rows], w)
            with b.if_then(b.trunc(v["k4"], I1)):
                last = b.shl(b.sub(v["k4"], I64(1)), I64(2))
                self._k_step(acc, [b.add(row, last) for row in rows], w)
        return [[b.load(variable) for variable in row] for row in acc]

    def _variable(self, value: Any) -> Any:
        variable = cgutils.alloca_once(self.b, value.type)
        self.b.store(value, variable)
        return variable

    def _k_step(self, acc: list[list[Any]], rows: list[Any], w: Any) -> None:
        """Four bytes of every row times one line of B. What is multiplied after this tile is asked for a little at a time."""
        b, s = self.b, self.s
        at, width = b.load(w), self.step * self.vectors
        vectors = [self._of_b(s.at(at, self.step * j)) for j in range(self.vectors)]
        b.store(s.at(at, width), w)
        if self.rows <= self.vectors:
            for line in range(0, width, 64):
                s.prefetch(s.at(at, width * AHEAD + line))
        for variables, address in zip(acc, rows, strict=True):
            a = s.splat(s.load(address, F32 if self.floats else I32))
            for variable, vector in zip(variables, vectors, strict=True):
                b.store(self.multiply(b.load(variable), a, vector), variable)

    def _of_b(self, address: Any) -> Any:
        return self.s.load(address, self.kind)

    def _start(self, j: int) -> Any:
        return ir.Constant(self.kind, [0] * self.s.lanes) if self.epilogue == "f32d" else self._column("bias", j, self.kind)

    def _starts(self) -> list[list[Any]]:
        """Accumulators with what they start from: one bias for all rows or, of a product's later stretches of k, the sums so far."""
        b, s, v = self.b, self.s, self.v
        start = [self._start(j) for j in range(self.vectors)]
        acc = [[self._variable(vector) for vector in start] for _ in range(self.rows)]
        if self.floats and self.addressing == "direct":
            with b.if_then(b.icmp_signed("!=", v["bias_row"], I64(0))):
                for row, index in zip(acc[1:], self.index[1:], strict=True):
                    at = b.add(v["bias"], b.mul(index, v["bias_row"]))
                    for j, variable in enumerate(row):
                        b.store(s.load(s.at(at, 4 * s.lanes * j), self.kind), variable)
        return acc

    def _indirect(self, i: int, tap: Any) -> Any:
        b, s, v = self.b, self.s, self.v
        at = b.add(b.mul(self.index[i], v["taps"]), tap)
        offset = b.sext(s.load(b.add(v["offsets"], b.shl(at, I64(2))), I32), I64)
        return b.select(b.icmp_signed("<", offset, I64(0)), v["zeros"], b.add(v["x"], offset))

    def _finish(self, acc: list[list[Any]], masked: bool) -> None:
        s, b, v = self.s, self.b, self.v
        size = 1 if self.epilogue in CODES else 4
        for j in range(self.vectors):
            mask = s.mask(b.sub(v["columns"], I64(j * s.lanes))) if masked else None
            finish = getattr(self, f"_{self.epilogue}")(j)
            for i in range(self.rows):
                at = b.add(b.mul(self.index[i], v["y_row"]), I64(size * s.lanes * j))
                value = finish(acc[i][j], at, mask)
                value = self._code(value) if self.epilogue in CODES else value
                address = b.add(v["y"], at)
                if mask is None:
                    s.store(address, value)
                else:
                    s.store_masked(address, value, mask)

    def _code(self, x: Any) -> Any:
        """A vector of codes, of what is to be rounded."""
        s, v = self.s, self.v
        steps = s.round(s.clamp(x, s.splat(v["lo"]), s.splat(v["hi"])))
        return s.narrow_u8(self.b.add(steps, s.splat(v["y_zero_point"])))

    def codes_of_four(self, vectors: list[Any]) -> Any:
        """Those of four vectors, in the order of `Simd.pack_four`. Packing takes the lower bound."""
        s, b, v = self.s, self.b, self.v
        hi, zero_point = s.splat(v["hi"]), v["y_zero_point"]
        steps = [s.round(b.select(b.fcmp_ordered("<", x, hi), x, hi)) for x in vectors]
        return s.pack_four(steps, zero_point, b.add(b.fptosi(v["lo"], I32), zero_point))

    def _finish_fours(self, acc: list[list[Any]]) -> None:
        """Codes of four vectors are packed together, row by row, and those of a row stored together."""
        s, b, v = self.s, self.b, self.v
        finish = [getattr(self, f"_{self.epilogue}")(j) for j in range(self.vectors)]
        places = [(i, j) for i in range(self.rows) for j in range(self.vectors)]
        for first in range(0, len(places), 4):
            four = places[first : first + 4]
            offsets = [b.add(b.mul(self.index[i], v["y_row"]), I64(s.lanes * j)) for i, j in four]
            vectors = [finish[j](acc[i][j], at, None) for (i, j), at in zip(four, offsets, strict=True)]
            packed = s.in_order(self.codes_of_four((vectors * 4)[:4]))
            starts = [n for n, (_, j) in enumerate(four) if n == 0 or j == 0]
            for start, stop in zip(starts, [*starts[1:], len(four)], strict=True):
                s.store(b.add(v["y"], offsets[start]), s.part(packed, start * s.lanes, (stop - start) * s.lanes))

    def _finish_packed(self, acc: list[list[Any]], masked: bool) -> None:
        """Codes of four vectors, of one row or of two, are packed before they are stored."""
        store, together = self.code_store(self.vectors, masked), 4 // self.vectors
        for i in range(0, self.rows, together):
            places = [self.b.mul(index, self.v["y_row"]) for index in self.index[i : i + together]]
            store([vector for row in acc[i : i + together] for vector in row], places)

    def code_store(self, per_row: int, masked: bool) -> Any:
        """What takes four vectors of accumulators (`per_row` of them to a row) to codes, and stores each row at its offset.

        Packing saturates, and bounds are taken on bytes. What a column needs is loaded here, once. Rows are stored last to first: a
        row that repeats another's place has to come after it.
        """
        s, b, v = self.s, self.b, self.v
        columns = 16 * per_row
        codes, words = ir.VectorType(I8, columns), ir.VectorType(I64, 8)
        bits = b.sub(b.shl(I64(1), v["columns"]), I64(1)) if masked else None
        mask = None if bits is None else b.bitcast(bits if columns == 64 else b.trunc(bits, I32), ir.VectorType(I1, columns))
        zero_point = v["y_zero_point"]
        low, high = (b.add(b.fptosi(v[name], I32), zero_point) for name in ("lo", "hi"))
        scales = [self._column("scale", j, s.f32) for j in range(per_row)]
        table = load_permuted(b, v["table"]) if self.epilogue == "u8t" else []

        def residuals(places: list[Any]) -> list[Any]:
            rows = [b.add(v["r"], at) for at in places]
            loaded = [s.load(at, codes) if mask is None else s.load_masked(at, codes, mask) for at in rows]
            mixed = loaded[0]
            if per_row == 2:
                halves = [b.bitcast(row, ir.VectorType(I64, 4)) for row in loaded]
                mixed = b.shuffle_vector(*halves, ir.Constant(ir.VectorType(I32, 8), [0, 4, 1, 5, 2, 6, 3, 7]))
            # A code under the upper bytes of 2**23 is the float 2**23 + code: subtracting takes the place of converting.
            bytes_ = ir.VectorType(I8, 64)
            nothing, top = ir.Constant(bytes_, None), ir.Constant(bytes_, [0x4B] * 64)
            base = s.splat(b.fadd(F32(2.0**23), b.sitofp(zero_point, F32)))
            return [b.fsub(b.bitcast(r, s.f32), base) for r in s.interleave([b.bitcast(mixed, bytes_), nothing, nothing, top])]

        def store(acc: list[Any], places: list[Any]) -> None:
            acc, places = (acc * 2)[:4], (places * 2)[: 4 // per_row]  # a row without a partner is stored twice
            products = [b.fmul(s.to_float(a), scales[n % per_row]) for n, a in enumerate(acc)]
            if self.epilogue in SUMS:
                products = [self._sum(p, r) for p, r in zip(products, residuals(places), strict=True)]
            steps = [s.round(p) for p in products]
            packed = s.saturate(steps, self.packed == "half") if self.packed in SATURATED else s.pack_codes(steps, zero_point, low, high)
            packed = permuted(b, table, packed) if table else packed
            rows = [packed]
            if per_row == 2:
                # One permute for both rows: their halves are then stored as they lie.
                order = ir.Constant(ir.VectorType(I32, 8), [0, 2, 4, 6, 1, 3, 5, 7])
                sorted_ = s.opaque(b.shuffle_vector(b.bitcast(packed, words), ir.Constant(words, ir.Undefined), order))
                halves = [ir.Constant(ir.VectorType(I32, 4), list(range(first, first + 4))) for first in (0, 4)]
                rows = [b.bitcast(b.shuffle_vector(sorted_, ir.Constant(words, ir.Undefined), half), codes) for half in halves]
            for value, at in reversed(list(zip(rows, places, strict=True))):
                address = b.add(v["y"], at)
                if mask is None:
                    s.store(address, value)
                else:
                    s.store_masked(address, value, mask)

        return store

    def _sum(self, product: Any, r: Any) -> Any:
        """A sum before its last bounds: the product rounded to its own codes, plus the residual's codes `r` (less 128 where they stand
        for int8)."""
        s, b, v = self.s, self.b, self.v
        c_lo, c_hi, c_ratio, r_ratio, offset = (s.splat(v[name]) for name in (*FLOATS[2:6], "sum_offset"))
        # Codes are far below 2**22, where adding 1.5 · 2**23 rounds half to even.
        back = s.splat(b.fsub(F32(1.5 * 2**23), v["c_zero_point"]))
        c = b.fsub(b.fadd(s.clamp(product, c_lo, c_hi), s.splat(F32(1.5 * 2**23))), back)
        if self.epilogue == "u8radd":
            return s.fma_code(s.fma_code(offset, c, c_ratio), r, r_ratio)
        return s.fma_code(s.fma_code(offset, r, r_ratio), c, c_ratio)

    # Each epilogue loads what its column needs and gives the function (accumulator, offset in y, mask) → what is stored; what is rounded,
    # of those that end in codes.
    def _column(self, name: str, j: int, kind: Any) -> Any:
        return self.s.load(self.s.at(self.v[name], 4 * self.s.lanes * j), kind)

    def _residual(self, at: Any, mask: Any, element: Any) -> Any:
        address = self.b.add(self.v["r"], at)
        kind = ir.VectorType(element, self.s.lanes)
        return self.s.load(address, kind) if mask is None else self.s.load_masked(address, kind, mask)

    def _u8(self, j: int) -> Any:
        s, b = self.s, self.b
        scale = self._column("scale", j, s.f32)
        return lambda acc, at, mask: b.fmul(s.to_float(acc), scale)

    def _u8radd(self, j: int) -> Any:
        return self._u8add(j)

    def _u8add(self, j: int) -> Any:
        s, b, v = self.s, self.b, self.v
        scale = self._column("scale", j, s.f32)

        def finish(acc: Any, at: Any, mask: Any) -> Any:
            r = b.fsub(s.to_float(s.widen_u8(self._residual(at, mask, I8))), s.splat(b.sitofp(v["y_zero_point"], F32)))
            return self._sum(b.fmul(s.to_float(acc), scale), r)

        return finish

    def _s32(self, j: int) -> Any:
        return lambda acc, at, mask: acc

    def _f32d(self, j: int) -> Any:
        s, b, v = self.s, self.b, self.v
        a_scale = s.splat(s.load(v["a_scale"], F32))
        a_zero_point = s.splat(b.zext(s.load(v["a_zero_point"], I8), I32))
        scale = b.fmul(a_scale, self._column("scale", j, s.f32))
        bias = self._column("bias", j, s.f32)
        correction = b.mul(a_zero_point, self._column("column_sums", j, s.i32))
        return lambda acc, at, mask: b.fadd(b.fmul(s.to_float(b.sub(acc, correction)), scale), bias)

    def _f32(self, j: int) -> Any:
        s, v = self.s, self.v
        lo, hi = s.splat(v["lo"]), s.splat(v["hi"])
        return lambda acc, at, mask: s.bound(acc, lo, hi)

    def _f32add(self, j: int) -> Any:
        s, b, v = self.s, self.b, self.v
        lo, hi = s.splat(v["lo"]), s.splat(v["hi"])
        return lambda acc, at, mask: s.bound(b.fadd(acc, self._residual(at, mask, F32)), lo, hi)


# What a micro-kernel is told: addresses and counts of its own tile, then what all tiles share.
_OWN = ("x", "offsets", "w", "bias", "scale", "y", "r", "column_sums", "ahead", "also_ahead", "rows", "columns")
_PLACES = ("zeros", "y_row", "bias_row", "a_scale", "a_zero_point", "table")
_SHARED = ("x_row", *_PLACES, "taps", "k4", "pace", "also_pace")
FLOATS = ("lo", "hi", "c_lo", "c_hi", "c_ratio", "r_ratio", "c_zero_point", "sum_offset")
_NAMES = (*_OWN, *_SHARED, *FLOATS, "y_zero_point")
_TYPES = (types.int64,) * len((*_OWN, *_SHARED)) + (types.float32,) * len(FLOATS) + (types.int32,)

# Two runs of what tiles share are words that every record has.
places, numbers = members(*_PLACES), members(*FLOATS, "y_zero_point")


def tile(build: Callable[[Any, dict[str, Any]], None]) -> Any:
    """The intrinsic tile(own + shared) that `build(builder, values by their names)` writes."""
    return written(_NAMES, _TYPES, build)


@device
def whole_blocks(blocks, m, tile_rows):  # type: ignore[no-untyped-def]
    """How many of the row blocks that m rows make have `tile_rows` rows (`table.row_blocks`)."""
    wholes = m - blocks * (tile_rows - 1)
    if wholes < 0:
        wholes = blocks - 1  # the last one repeats rows
    return wholes


def row_block_tiles(
    kind: type[Micro], isa: str, tile_rows: int, tile_vectors: int, addressing: str, epilogue: str, packed: str = ""
) -> tuple[Any, Any]:
    """The tiles, as `tile` gives them, of a row block of `tile_rows` rows, and of one of at most one less."""

    def of(rows: int, whole: bool) -> Any:
        def build(builder: Any, values: dict[str, Any]) -> None:
            values |= {"rows": I64(rows)} if whole else {}
            kind(Simd(isa, builder), rows, tile_vectors, addressing, epilogue, values, packed).build()

        return tile(build)

    return of(tile_rows, True), of(max(tile_rows - 1, 1), False)
