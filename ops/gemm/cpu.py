"""The matrix product's kernels: a micro-kernel in IR, and the loops around it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lanes import LANES
from qrt.jit.lang import fields, share
from qrt.jit.lang.simd import F32, I1, I8, I32, I64, Simd
from qrt.jit.lang.tables import load_permuted, permuted
from qrt.ops.gemm.table import CODES, SUMS

# Steps of k between what is multiplied and what of B is asked for: measured on products of 49 to 3136 rows, whose B comes from beyond the
# L1 cache. 8, 16 and 32 gain a tenth on float32, the last most.
AHEAD = 32


class Micro:
    """Builds one tile: accumulate over taps and K, then the epilogue."""

    def __init__(
        self, s: Simd, rows: int, vectors: int, addressing: str, epilogue: str, values: dict[str, Any], packed: bool = False
    ) -> None:
        self.s, self.b, self.packed = s, s.b, packed
        self.rows, self.vectors, self.addressing, self.epilogue = rows, vectors, addressing, epilogue
        self.v = values
        self.floats = epilogue in ("f32", "f32add")
        self.kind = s.f32 if self.floats else s.i32

    def row_index(self, i: int) -> Any:
        """Row i of the tile, or the last one there is: surplus rows repeat it, and store the same bytes again."""
        last = self.b.sub(self.v["rows"], I64(1))
        return self.b.select(self.b.icmp_signed("<", I64(i), last), I64(i), last)

    def build(self) -> None:
        b, s, v = self.b, self.s, self.v
        self.index = [self.row_index(i) for i in range(self.rows)]
        start = [self._start(j) for j in range(self.vectors)]
        direct = [b.add(v["x"], b.mul(self.index[i], v["x_row"])) for i in range(self.rows)]
        entry = b.block
        tap_block, k_block, tap_end, done = (b.append_basic_block(name) for name in ("tap", "k", "tap_end", "done"))
        b.branch(tap_block)

        b.position_at_end(tap_block)
        tap, w_tap = b.phi(I64), b.phi(I64)
        tap.add_incoming(I64(0), entry)
        w_tap.add_incoming(v["w"], entry)
        outer = [[b.phi(self.kind) for _ in range(self.vectors)] for _ in range(self.rows)]
        for row in outer:
            for j, phi in enumerate(row):
                phi.add_incoming(start[j], entry)
        a_rows = direct if self.addressing == "direct" else [self._indirect(i, tap) for i in range(self.rows)]
        b.branch(k_block)

        b.position_at_end(k_block)
        k, w_k = b.phi(I64), b.phi(I64)
        k.add_incoming(I64(0), tap_block)
        w_k.add_incoming(w_tap, tap_block)
        inner = [[b.phi(self.kind) for _ in range(self.vectors)] for _ in range(self.rows)]
        for i in range(self.rows):
            for j in range(self.vectors):
                inner[i][j].add_incoming(outer[i][j], tap_block)
        width = 4 * s.lanes
        w_vectors = [s.load(s.at(w_k, width * j), self.kind) for j in range(self.vectors)]
        for line in range(0, width * self.vectors, 64):
            s.prefetch(s.at(w_k, width * self.vectors * AHEAD + line))
        step = s.fma if self.floats else s.dot
        offset = b.shl(k, I64(2))
        acc = []
        for i in range(self.rows):
            a = s.splat(s.load(b.add(a_rows[i], offset), F32 if self.floats else I32))
            acc.append([step(inner[i][j], a, w_vectors[j]) for j in range(self.vectors)])
        k_next, w_next = b.add(k, I64(1)), b.add(w_k, I64(width * self.vectors))
        k.add_incoming(k_next, k_block)
        w_k.add_incoming(w_next, k_block)
        for i in range(self.rows):
            for j in range(self.vectors):
                inner[i][j].add_incoming(acc[i][j], k_block)
        b.cbranch(b.icmp_signed("<", k_next, v["k4"]), k_block, tap_end)

        b.position_at_end(tap_end)
        tap_next = b.add(tap, I64(1))
        tap.add_incoming(tap_next, tap_end)
        w_tap.add_incoming(w_next, tap_end)
        for i in range(self.rows):
            for j in range(self.vectors):
                outer[i][j].add_incoming(acc[i][j], tap_end)
        b.cbranch(b.icmp_signed("<", tap_next, v["taps"]), tap_block, done)

        b.position_at_end(done)
        whole = b.icmp_signed("==", v["columns"], I64(self.vectors * s.lanes))
        with b.if_else(whole) as (then, otherwise):
            finish = self._finish_packed if self.packed else self._finish
            with then:
                finish(acc, masked=False)
            with otherwise:
                finish(acc, masked=True)

    def _start(self, j: int) -> Any:
        if self.epilogue == "f32d":
            return ir.Constant(self.kind, [0] * self.s.lanes)
        return self.s.load(self.s.at(self.v["bias"], 4 * self.s.lanes * j), self.kind)

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
                address = b.add(v["y"], at)
                if mask is None:
                    s.store(address, value)
                else:
                    s.store_masked(address, value, mask)

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
            products = [b.fmul(s.to_float(a), scales[n % per_row]) for n, a in enumerate(acc)]
            if self.epilogue in SUMS:
                products = [self._sum(p, r) for p, r in zip(products, residuals(places), strict=True)]
            packed = s.pack_codes([s.round(p) for p in products], zero_point, low, high)
            packed = permuted(b, table, packed) if table else packed
            for row in reversed(range(len(places))):
                value, address = packed, b.add(v["y"], places[row])
                if per_row == 2:
                    picked = ir.Constant(ir.VectorType(I32, 4), [row + 2 * n for n in range(4)])
                    value = b.bitcast(b.shuffle_vector(b.bitcast(packed, words), ir.Constant(words, ir.Undefined), picked), codes)
                if mask is None:
                    s.store(address, value)
                else:
                    s.store_masked(address, value, mask)

        return store

    def _sum(self, product: Any, r: Any) -> Any:
        """A sum before its last bounds: the product rounded to its own codes, plus the residual's codes `r` (less 128 where they stand
        for int8)."""
        s, b, v = self.s, self.b, self.v
        c_lo, c_hi, c_ratio, r_ratio, offset = (s.splat(v[name]) for name in (*_FLOATS[2:6], "sum_offset"))
        # Codes are far below 2**22, where adding 1.5 · 2**23 rounds half to even.
        back = s.splat(b.fsub(F32(1.5 * 2**23), v["c_zero_point"]))
        c = b.fsub(b.fadd(s.clamp(product, c_lo, c_hi), s.splat(F32(1.5 * 2**23))), back)
        if self.epilogue == "u8radd":
            return s.fma_code(s.fma_code(offset, c, c_ratio), r, r_ratio)
        return s.fma_code(s.fma_code(offset, r, r_ratio), c, c_ratio)

    # Each epilogue loads what its column needs and gives the function (accumulator, offset in y, mask) → what is stored.
    def _column(self, name: str, j: int, kind: Any) -> Any:
        return self.s.load(self.s.at(self.v[name], 4 * self.s.lanes * j), kind)

    def _residual(self, at: Any, mask: Any, element: Any) -> Any:
        address = self.b.add(self.v["r"], at)
        kind = ir.VectorType(element, self.s.lanes)
        return self.s.load(address, kind) if mask is None else self.s.load_masked(address, kind, mask)

    def _u8(self, j: int) -> Any:
        s, b, v = self.s, self.b, self.v
        scale, lo, hi = self._column("scale", j, s.f32), s.splat(v["lo"]), s.splat(v["hi"])
        zero_point = s.splat(v["y_zero_point"])
        return lambda acc, at, mask: s.narrow_u8(b.add(s.round(s.clamp(b.fmul(s.to_float(acc), scale), lo, hi)), zero_point))

    def _u8t(self, j: int) -> Any:
        b, finish, table = self.b, self._u8(j), load_permuted(self.b, self.v["table"])
        wide = ir.Constant(ir.VectorType(I32, 64), [i % self.s.lanes for i in range(64)])
        narrow = ir.Constant(ir.VectorType(I32, self.s.lanes), list(range(self.s.lanes)))

        def look_up(acc: Any, at: Any, mask: Any) -> Any:
            codes = finish(acc, at, mask)
            found = permuted(b, table, b.shuffle_vector(codes, codes, wide))
            return b.shuffle_vector(found, found, narrow)

        return look_up

    def _u8radd(self, j: int) -> Any:
        return self._u8add(j)

    def _u8add(self, j: int) -> Any:
        s, b, v = self.s, self.b, self.v
        scale, lo, hi = self._column("scale", j, s.f32), s.splat(v["lo"]), s.splat(v["hi"])
        zero_point = s.splat(v["y_zero_point"])

        def finish(acc: Any, at: Any, mask: Any) -> Any:
            r = b.fsub(s.to_float(s.widen_u8(self._residual(at, mask, I8))), s.splat(b.sitofp(v["y_zero_point"], F32)))
            return s.narrow_u8(b.add(s.round(s.clamp(self._sum(b.fmul(s.to_float(acc), scale), r), lo, hi)), zero_point))

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


_ADDRESSES = ("x", "x_row", "offsets", "zeros", "w", "bias", "scale", "y", "y_row", "r", "a_scale", "a_zero_point", "table", "column_sums")
_COUNTS = ("rows", "columns", "taps", "k4")
_FLOATS = ("lo", "hi", "c_lo", "c_hi", "c_ratio", "r_ratio", "c_zero_point", "sum_offset")
_CODES = ("y_zero_point",)
NAMES = (*_ADDRESSES, *_COUNTS, *_FLOATS, *_CODES)
NUMBA_TYPES = (types.int64,) * (len(_ADDRESSES) + len(_COUNTS)) + (types.float32,) * len(_FLOATS) + (types.int32,) * len(_CODES)


# Row blocks for each thread that are enough to share a product by rows alone: one more or less is then a small part.
ROW_BLOCKS = 8


def gemm(isa, tile_rows, tile_vectors, addressing, epilogue, packed):  # type: ignore[no-untyped-def]
    """All tiles of one product, in order of (batch, group, column block, row block). Threads share the row blocks where there are many,
    so that none writes to another's cache lines; else all of them."""

    @intrinsic
    def micro(typing_context, values):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            members = [builder.extract_value(args[0], i) for i in range(len(NAMES))]
            named = dict(zip(NAMES, members, strict=True))
            Micro(Simd(isa, builder), tile_rows, tile_vectors, addressing, epilogue, named, packed).build()
            return context.get_dummy_value()

        return types.void(types.Tuple(NUMBA_TYPES)), codegen

    nr = tile_vectors * LANES[isa]
    size = 1 if epilogue in CODES else 4
    indirect = addressing == "indirect"

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        row_blocks = (r.m + tile_rows - 1) // tile_rows
        column_blocks = (r.n + nr - 1) // nr
        w_block = r.taps * r.k4 * nr * 4
        first, last = share(row_blocks, tid, nthreads) if row_blocks >= ROW_BLOCKS * nthreads else (0, row_blocks)
        rows = last - first
        outer = r.batch * r.groups * column_blocks
        lo, hi = share(outer * rows, tid, nthreads) if rows == row_blocks else (0, outer * rows)
        for block in range(lo, hi):
            m = (first + block % rows) * tile_rows
            rest = block // rows
            n = rest % column_blocks * nr
            rest //= column_blocks
            group = rest % r.groups
            image = rest // r.groups
            x = r.x + image * r.x_batch + group * r.x_group
            at = image * r.y_batch + group * r.y_group + m * r.y_row + n * size
            column = 4 * (group * column_blocks * nr + n)
            micro(
                (
                    x if indirect else x + m * r.x_row,
                    r.x_row,
                    r.offsets + 4 * m * r.taps,
                    r.zeros,
                    r.w + image * r.w_batch + group * r.w_group + n // nr * w_block,
                    r.bias + image * r.bias_batch + column,
                    r.scale + column,
                    r.y + at,
                    r.y_row,
                    r.r + at,
                    r.a_scale,
                    r.a_zero_point,
                    r.table,
                    r.column_sums + column,
                    min(tile_rows, r.m - m),
                    min(nr, r.n - n),
                    r.taps,
                    r.k4,
                    r.lo,
                    r.hi,
                    r.c_lo,
                    r.c_hi,
                    r.c_ratio,
                    r.r_ratio,
                    r.c_zero_point,
                    r.sum_offset,
                    r.y_zero_point,
                )
            )

    return kernel
