"""The integer product on AMX tiles: 32 rows by 32 columns of accumulators in four tile registers, 64 bytes of k at a step.

Rows that lie at a constant distance are read where they are (`amx.Lines`); others are copied to a panel of whole tiles first: any
window, padding and channel count becomes one flat k there. A tile's accumulators go through memory to the vector epilogue, two rows of
32 columns at a time, between the products of the next block: neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lang import device, fields, i32, i64, members, share, written
from qrt.jit.lang.simd import I8, I32, I64, Simd
from qrt.ops.gemm.amx import columns_of_line
from qrt.ops.gemm.cpu_micro import FLOATS, Micro
from qrt.ops.gemm.table import CODES

COLUMNS = 32
_VOID = ir.VoidType()
# How a tile is loaded that is read again from the L1 cache, and one that is not.
_STAYS, _STREAMS = "tileloadd64", "tileloaddt164"


def _pointer(s: Simd, address: Any) -> Any:
    return s.b.inttoptr(address, I8.as_pointer())


@intrinsic
def tiles_begin(typing_context, upper, lower):  # type: ignore[no-untyped-def]
    """Configures the tile registers, 64 bytes a row: 0, 1 and 4 of `upper` rows, 2, 3 and 5 of `lower`, 6 and 7 of 16."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        b, s = builder, Simd("avx512vnni", builder)
        config = bytearray(64)
        config[0] = 1
        for tile in range(8):
            config[16 + 2 * tile], config[48 + tile] = 64, 16
        block = b.alloca(ir.ArrayType(I8, 64))
        block.align = 64
        b.store(ir.Constant(ir.ArrayType(I8, 64), config), block)
        for tile in range(6):
            rows = b.trunc(args[0] if tile in (0, 1, 4) else args[1], I8)
            b.store(rows, b.gep(block, [I32(0), I32(48 + tile)]))
        s.call("llvm.x86.ldtilecfg", _VOID, b.bitcast(block, I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def tiles_end(typing_context):  # type: ignore[no-untyped-def]
    """Gives the tile registers back."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        Simd("avx512vnni", builder).call("llvm.x86.tilerelease", _VOID)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def copy64(typing_context, source, target):  # type: ignore[no-untyped-def]
    """Copies 64 bytes."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        s = Simd("avx512vnni", builder)
        s.store(args[1], s.load(args[0], ir.VectorType(I8, 64)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def copy_some(typing_context, source, target, count):  # type: ignore[no-untyped-def]
    """Copies the first `count` (below 64) bytes."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        s = Simd("avx512vnni", builder)
        mask, kind = s.mask_bytes(args[2]), ir.VectorType(I8, 64)
        s.store_masked(args[1], s.load_masked(args[0], kind, mask), mask)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 3), codegen


@device
def place(source, line, at, count):  # type: ignore[no-untyped-def]
    """Copies `count` bytes to position `at` of a row of the panel, whose 64-byte pieces lie 2048 bytes apart."""
    done = 0
    while done < count:
        inside = (at + done) % 64
        some = min(64 - inside, count - done)
        target = line + (at + done) // 64 * 2048 + inside
        if some == 64:
            copy64(source + done, target)
        else:
            copy_some(source + done, target, some)
        done += some


_floats = members(*FLOATS)


@device
def finishing(record, y, n, pairs, count):  # type: ignore[no-untyped-def]
    """What `block` needs to finish the accumulators of columns from `n` on, whose first result lies `y` bytes from the first of all."""
    r = fields(record)
    addresses = (r.bias + 4 * n, r.scale + 4 * n, r.y + y, r.y_row, r.r + y, r.a_scale, r.a_zero_point, r.table, r.column_sums + 4 * n)
    floats = _floats(r)
    rows = (min(r.n - n, 32), r.pairs + pairs, 1 if pairs == 0 else 0, count)
    zero_point = (r.y_zero_point,)
    return addresses + rows + floats + zero_point


@device
def fill(record, x, m, rows, panel, k_steps):  # type: ignore[no-untyped-def]
    """The panel [rows / 32][k / 64][32][64] of `rows` rows from `m` on: every tap's bytes one after the other. What lies past the
    last is left as it is: those weights are zero. Taps come in runs that lie side by side in the image, but for its border."""
    r = fields(record)
    k, taps, run, x_row, zeros, table = r.k, r.taps, r.run, r.x_row, r.zeros, r.offsets
    offsets = i32(table)
    for i in range(rows):
        line = panel + (i // 32 * k_steps * 32 + i % 32) * 64
        at = 0
        if table == 0:
            for _ in range(taps):
                place(x + (m + i) * x_row, line, at, k)
                at += k
            continue
        first = (m + i) * taps
        last = first + taps
        while first < last:
            begin, end = offsets[first], offsets[first + run - 1]
            if begin >= 0 and end == begin + (run - 1) * k:
                place(x + begin, line, at, run * k)
                at += run * k
            else:
                for tap in range(run):
                    offset = offsets[first + tap]
                    place(x + offset if offset >= 0 else zeros, line, at, k)
                    at += k
            first += run


_PRODUCTS = ("a", "a_row", "offsets", "w", "steps", "ahead", "lines", "acc", "upper_rows", "streams")
_ADDRESSES = ("bias", "scale", "y", "y_row", "r", "a_scale", "a_zero_point", "table", "column_sums")
_ROWS = ("columns", "pairs", "straight", "count")
_NAMES = (*_PRODUCTS, *_ADDRESSES, *_ROWS, *FLOATS, "y_zero_point")
_TYPES = (types.int64,) * len((*_PRODUCTS, *_ADDRESSES, *_ROWS)) + (types.float32,) * len(FLOATS) + (types.int32,)


class _Block(Micro):
    """The products of one block, and between them the epilogue of the block before, whose accumulators lie at `acc`: `count` pairs of
    rows. The new accumulators take their place at the end."""

    def build(self) -> None:
        b, s, v = self.b, self.s, self.v
        # What a column needs is loaded here, once.
        whole, some = self._finisher(masked=False), self._finisher(masked=True)
        straight = b.and_(b.icmp_signed("!=", v["straight"], I64(0)), b.icmp_signed("==", v["columns"], I64(COLUMNS)))
        # As many pairs of rows at each step that the last step sees the last pair.
        rounds = self._rounds()
        each = b.sdiv(b.add(v["count"], b.sub(rounds, I64(1))), rounds)
        for tile in range(4):
            s.call("llvm.x86.tilezero", _VOID, I8(tile))
        entry, loop, done = b.block, b.append_basic_block("k"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        k, w, ahead, pair = (b.phi(I64) for _ in range(4))
        for phi, start in ((k, I64(0)), (w, v["w"]), (ahead, v["ahead"]), (pair, I64(0))):
            phi.add_incoming(start, entry)
        w_next, ahead_next = self._multiply(k, w, ahead)
        self._pause(k)
        pair_next = b.add(pair, each)
        pair_next = b.select(b.icmp_signed("<", pair_next, v["count"]), pair_next, v["count"])
        with b.if_else(straight) as (then, otherwise):
            with then, self._counted(pair, pair_next, 1) as index:
                self._straight_pair(index, whole)
            with otherwise, self._counted(pair, pair_next, 1) as index:
                self._pair(index, some)
        k_next = b.add(k, I64(1))
        for phi, after in ((k, k_next), (w, w_next), (ahead, ahead_next), (pair, pair_next)):
            phi.add_incoming(after, b.block)
        b.cbranch(b.icmp_signed("<", k_next, rounds), loop, done)
        b.position_at_end(done)
        for tile in range(4):
            at = b.add(v["acc"], b.add(b.mul(v["upper_rows"], I64(tile // 2 * 128)), I64(tile % 2 * 64)))
            s.call("llvm.x86.tilestored64", _VOID, I8(tile), _pointer(s, at), I64(128))

    def _rounds(self) -> Any:
        """How often the loop is passed."""
        return self.v["steps"]

    def _multiply(self, k: Any, w: Any, ahead: Any) -> tuple[Any, Any]:
        """Four products of tiles, 64 bytes of k each. What comes next of B is asked for. Gives the next `w` and `ahead`."""
        b, s, v = self.b, self.s, self.v
        upper = b.add(v["a"], s.load(b.add(v["offsets"], b.shl(k, I64(3))), I64))
        lower = b.add(upper, b.mul(v["upper_rows"], v["a_row"]))
        with b.if_else(b.icmp_signed("!=", v["streams"], I64(0))) as (then, otherwise):
            for branch, how in ((then, _STREAMS), (otherwise, _STAYS)):
                with branch:
                    # All before the first product: measured, up to 9 % faster than each before its own, where k is about 1000.
                    self._load(6, w, I64(64), how)
                    self._load(4, upper, v["a_row"])
                    self._load(7, b.add(w, I64(1024)), I64(64), how)
                    self._load(5, lower, v["a_row"])
                    for half in range(2):
                        self._products(half)
        ahead_next = b.add(ahead, b.shl(v["lines"], I64(6)))
        with self._counted(ahead, ahead_next, 64) as line:
            s.call("llvm.prefetch.p0", _VOID, _pointer(s, line), I32(0), I32(2), I32(1))  # to read, into the L2 cache
        return b.add(w, I64(2048)), ahead_next

    def _load(self, tile: int, address: Any, stride: Any, how: str = _STAYS) -> None:
        """Loads a tile whose rows lie `stride` bytes apart, by the instruction `how`."""
        self.s.call(f"llvm.x86.{how}", _VOID, I8(tile), _pointer(self.s, address), stride)

    def _products(self, half: int) -> None:
        """Two products of tiles, of one `half` of the rows."""
        for column in range(2):
            self.s.call("llvm.x86.tdpbusd", _VOID, I8(2 * half + column), I8(4 + half), I8(6 + column))

    def _pause(self, k: Any) -> None:
        """Stores a tile that nobody needs, every 16 steps of a k longer than 24. Where the core may run further ahead of its tile products,
        what it does next waits for all of them: measured, about 700 cycles a block of more than 32 steps."""
        b = self.b
        with b.if_then(b.and_(b.icmp_signed("==", b.and_(k, I64(15)), I64(8)), b.icmp_signed(">", k, I64(8)))):
            self.s.call("llvm.x86.tilestored64", _VOID, I8(4), _pointer(self.s, b.add(self.v["acc"], I64(4096))), I64(64))

    @contextmanager
    def _counted(self, first: Any, last: Any, step: int) -> Iterator[Any]:
        """A loop over first, first + step, … below `last`."""
        b = self.b
        entry, loop, end = b.block, b.append_basic_block("each"), b.append_basic_block("each_end")
        b.cbranch(b.icmp_signed("<", first, last), loop, end)
        b.position_at_end(loop)
        i = b.phi(I64)
        i.add_incoming(first, entry)
        yield i
        i_next = b.add(i, I64(step))
        i.add_incoming(i_next, b.block)
        b.cbranch(b.icmp_signed("<", i_next, last), loop, end)
        b.position_at_end(end)

    def _straight_pair(self, index: Any, finish: Any) -> None:
        """Finishes two rows of a block whose rows follow each other, among the accumulators and in the result."""
        b, v = self.b, self.v
        acc, y = b.add(v["acc"], b.shl(index, I64(8))), b.mul(b.shl(index, I64(1)), v["y_row"])
        finish(self._accumulators(acc, b.add(acc, I64(128))), [y, b.add(y, v["y_row"])])

    def _pair(self, index: Any, finish: Any) -> None:
        """Finishes two rows of any block, by four bytes: where they are among the accumulators, and in the result."""
        b, v = self.b, self.v
        word = b.zext(self.s.load(b.add(v["pairs"], b.shl(index, I64(2))), I32), I64)
        acc, acc_second, y, y_second = (b.and_(b.lshr(word, I64(8 * n)), I64(255)) for n in range(4))
        vectors = self._accumulators(*(b.add(v["acc"], b.shl(row, I64(7))) for row in (acc, acc_second)))
        finish(vectors, [b.mul(row, v["y_row"]) for row in (y, y_second)])

    def _accumulators(self, *rows: Any) -> list[Any]:
        return [self.s.load(self.s.at(row, 64 * j), self.s.i32) for row in rows for j in range(2)]

    def _finisher(self, masked: bool) -> Any:
        """What takes four vectors of accumulators, two of each row, to the result at two offsets. Where a pair repeats a row, both
        store the same."""
        b = self.b
        bias = [self._column("bias", j, self.s.i32) for j in range(2)] if self.epilogue != "f32d" else []
        store = self.code_store(2, masked) if self.epilogue in CODES else self._words(masked)

        def finish(acc: list[Any], places: list[Any]) -> None:
            store([b.add(vector, bias[n % 2]) for n, vector in enumerate(acc)] if bias else acc, places)

        return finish

    def _words(self, masked: bool) -> Any:
        s, b, v = self.s, self.b, self.v
        finish = [getattr(self, f"_{self.epilogue}")(j) for j in range(2)]
        masks = [s.mask(b.sub(v["columns"], I64(16 * j))) if masked else None for j in range(2)]

        def store(acc: list[Any], places: list[Any]) -> None:
            for n, vector in enumerate(acc):
                value, address, mask = finish[n % 2](vector, None, None), s.at(b.add(v["y"], places[n // 2]), 64 * (n % 2)), masks[n % 2]
                if mask is None:
                    s.store(address, value)
                else:
                    s.store_masked(address, value, mask)

        return store


class _Narrow(_Block):
    """At most 16 rows: two tiles of accumulators are for even steps along k and two for odd ones, so that a tile of B takes part in one
    product and not in two of half as many rows. B is read once, in order, and core and caches then ask for it in time by themselves:
    measured, 8 rows of 1024 by 1024 take 9 µs instead of 14 from the L2 cache, and 40 instead of 54 from beyond it."""

    def _rounds(self) -> Any:
        return self.b.lshr(self.b.add(self.v["steps"], I64(1)), I64(1))

    def _multiply(self, k: Any, w: Any, ahead: Any) -> tuple[Any, Any]:
        b, v = self.b, self.v
        even = b.shl(k, I64(1))
        odd, at = b.add(even, I64(1)), b.add(v["offsets"], b.shl(even, I64(3)))
        self._step(0, at, w)
        with b.if_then(b.icmp_signed("<", odd, v["steps"])):
            self._step(1, b.add(at, I64(8)), b.add(w, I64(2048)))
        return b.add(w, I64(4096)), ahead

    def _step(self, half: int, offset: Any, w: Any) -> None:
        """A step: rows whose place is told at `offset`, times the panel of B at `w`."""
        b, v = self.b, self.v
        self._load(6, w, I64(64), _STREAMS)
        self._load(4 + half, b.add(v["a"], self.s.load(offset, I64)), v["a_row"])
        self._load(7, b.add(w, I64(1024)), I64(64), _STREAMS)
        self._products(half)

    def _accumulators(self, *rows: Any) -> list[Any]:
        odd = self.b.shl(self.v["upper_rows"], I64(7))
        halves = (super()._accumulators(*rows), super()._accumulators(*(self.b.add(row, odd) for row in rows)))
        return [self.b.add(even, odd) for even, odd in zip(*halves, strict=True)]


def gemm(epilogue, tile_rows):  # type: ignore[no-untyped-def]
    """Blocks of `tile_rows` rows, 32 or 16, by 32 columns. Threads share them evenly, row after row, or whole columns of them; a thread
    takes `chunk` rows of blocks at a time through `wide` of its columns."""
    kind = _Block if tile_rows == 32 else _Narrow

    def build(builder: Any, values: dict[str, Any]) -> None:
        kind(Simd("avx512vnni", builder), 2, 2, "direct", epilogue, values).build()

    block = written(_NAMES, _TYPES, build)
    size, unit = 1 if epilogue in CODES else 4, columns_of_line(epilogue)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        panel, acc, steps, in_place = r.panel + tid * r.panel_bytes, r.acc + tid * 8192, r.k_steps, r.panel_bytes == 0
        places = i64(r.places)
        columns, blocks = (r.n + 31) // 32, r.batch * r.blocks
        first, last = (0, columns) if r.by_columns == 0 else share(columns, tid, nthreads)
        # Blocks are counted row after row: two threads may share a row of them, by columns.
        units = (columns + unit - 1) // unit
        begin, end = share(blocks * units, tid, nthreads) if r.by_columns == 0 else (0, blocks * units)
        begin, end = begin // units * columns + begin % units * unit, end // units * columns + end % units * unit
        lo, hi = begin // columns, (end + columns - 1) // columns
        a, w = 0, 0
        y, n, pairs, count = 0, 0, 0, 0  # the block whose accumulators wait
        tiles_begin(r.upper, r.lower)
        left = first
        while left < last:
            right = min(left + r.wide, last)
            near = False  # whether these columns of B are in the L2 cache
            row = lo
            while row < hi:
                image, at = row // r.blocks, row % r.blocks
                rows = min(r.chunk, r.blocks - at, hi - row)
                x = r.x + image * r.x_batch
                if not in_place:
                    fill(record, x, at * 32, min(rows * 32, r.m - at * 32), panel, steps)
                lines = 0 if near else (31 + rows) // rows
                near = r.stays != 0 and row * columns >= begin
                for column in range(left, right):
                    w = r.w + column * steps * 2048
                    ahead = w + steps * 2048 if column + 1 < last else r.w + first * steps * 2048
                    top = 0 if row * columns + column >= begin else 1
                    bottom = rows if (row + rows - 1) * columns + column < end else rows - 1
                    for i in range(top, bottom):
                        entry = 4 * (at + i)
                        a = x + places[entry] if in_place else panel + i * steps * 2048
                        products = (a, r.position, r.offsets_k, w, steps, ahead, lines, acc, r.upper, r.streams)
                        block(products + finishing(record, y, n, pairs, count))
                        ahead += lines * 64 * steps
                        n = column * 32
                        y = image * r.y_batch + places[entry + 1] * r.y_row + n * size
                        pairs, count = places[entry + 2], places[entry + 3]
                row += rows
            left = right
        if count > 0:  # the last block, while products are made that nobody reads
            block((a, r.position, r.offsets_k, w, 1, w, 0, acc, r.upper, 0, *finishing(record, y, n, pairs, count)))
        tiles_end()

    return kernel
