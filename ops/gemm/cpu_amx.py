"""The integer product on AMX tiles: 32 rows by 32 columns of accumulators in four tile registers, 64 bytes of k at a step.

Rows that lie at a constant distance are read where they are (`amx.Lines`); others are copied to a panel of whole tiles first: any
window, padding and channel count becomes one flat k there. A tile's accumulators go through memory to the vector epilogue, two rows of
32 columns at a time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lang import device, fields, i32, share
from qrt.jit.lang.simd import I8, I32, I64, Simd
from qrt.ops.gemm.cpu import Micro
from qrt.ops.gemm.table import CODES

ROWS = COLUMNS = 32
_VOID = ir.VoidType()


def _pointer(s: Simd, address: Any) -> Any:
    return s.b.inttoptr(address, I8.as_pointer())


@intrinsic
def tiles_begin(typing_context):  # type: ignore[no-untyped-def]
    """Configures all eight tile registers as 16 rows of 64 bytes."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        s = Simd("avx512vnni", builder)
        config = bytearray(64)
        config[0] = 1
        for tile in range(8):
            config[16 + 2 * tile], config[48 + tile] = 64, 16
        block = builder.alloca(ir.ArrayType(I8, 64))
        block.align = 64
        builder.store(ir.Constant(ir.ArrayType(I8, 64), config), block)
        s.call("llvm.x86.ldtilecfg", _VOID, builder.bitcast(block, I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def tiles_end(typing_context):  # type: ignore[no-untyped-def]
    """Gives the tile registers back."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        Simd("avx512vnni", builder).call("llvm.x86.tilerelease", _VOID)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def multiply(typing_context, upper, lower, a_row, offsets, w, steps, acc, ahead, lines):  # type: ignore[no-untyped-def]
    """acc[32][32] int32 = A · B. A: 16 rows from `upper` and 16 from `lower` on, `a_row` bytes apart, with 64 bytes of k at each of the
    int64 `offsets`; w: [steps][2][16][16][4]. At each step `lines` cache lines from `ahead` on are asked for: what is read next."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        b, s = builder, Simd("avx512vnni", builder)
        upper, lower, a_row, offsets, w, steps, acc, ahead, lines = args
        for tile in range(4):
            s.call("llvm.x86.tilezero", _VOID, I8(tile))
        entry, loop, fetch, end, done = b.block, *(b.append_basic_block(name) for name in ("k", "ahead", "k_end", "done"))
        b.branch(loop)
        b.position_at_end(loop)
        k, w_k, ahead_k = b.phi(I64), b.phi(I64), b.phi(I64)
        for phi, start in ((k, I64(0)), (w_k, w), (ahead_k, ahead)):
            phi.add_incoming(start, entry)
        offset = s.load(b.add(offsets, b.shl(k, I64(3))), I64)
        s.call("llvm.x86.tileloadd64", _VOID, I8(4), _pointer(s, b.add(upper, offset)), a_row)
        s.call("llvm.x86.tileloadd64", _VOID, I8(6), _pointer(s, w_k), I64(64))
        s.call("llvm.x86.tdpbusd", _VOID, I8(0), I8(4), I8(6))
        s.call("llvm.x86.tileloadd64", _VOID, I8(7), _pointer(s, b.add(w_k, I64(1024))), I64(64))
        s.call("llvm.x86.tdpbusd", _VOID, I8(1), I8(4), I8(7))
        s.call("llvm.x86.tileloadd64", _VOID, I8(5), _pointer(s, b.add(lower, offset)), a_row)
        s.call("llvm.x86.tdpbusd", _VOID, I8(2), I8(5), I8(6))
        s.call("llvm.x86.tdpbusd", _VOID, I8(3), I8(5), I8(7))
        ahead_last = b.add(ahead_k, b.shl(lines, I64(6)))
        b.cbranch(b.icmp_signed(">", lines, I64(0)), fetch, end)
        b.position_at_end(fetch)
        line = b.phi(I64)
        line.add_incoming(ahead_k, loop)
        s.call("llvm.prefetch.p0", _VOID, _pointer(s, line), I32(0), I32(2), I32(1))  # to read, into the L2 cache
        line_next = b.add(line, I64(64))
        line.add_incoming(line_next, fetch)
        b.cbranch(b.icmp_unsigned("<", line_next, ahead_last), fetch, end)
        b.position_at_end(end)
        k_next = b.add(k, I64(1))
        for phi, after in ((k, k_next), (w_k, b.add(w_k, I64(2048))), (ahead_k, ahead_last)):
            phi.add_incoming(after, end)
        b.cbranch(b.icmp_signed("<", k_next, steps), loop, done)
        b.position_at_end(done)
        for tile in range(4):
            at = b.add(acc, I64((tile // 2) * 16 * 128 + (tile % 2) * 64))
            s.call("llvm.x86.tilestored64", _VOID, I8(tile), _pointer(s, at), I64(128))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 9), codegen


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


_ADDRESSES = ("acc", "bias", "scale", "y", "y_row", "r", "a_scale", "a_zero_point", "column_sums", "columns", "rows")
_FLOATS = ("lo", "hi", "c_lo", "c_hi", "c_ratio", "r_ratio", "c_zero_point", "sum_offset")
_NAMES = (*_ADDRESSES, *_FLOATS, "y_zero_point")
_TYPES = (types.int64,) * len(_ADDRESSES) + (types.float32,) * len(_FLOATS) + (types.int32,)


class _Rows(Micro):
    """The epilogue of a block of 32 columns, two rows at a time: accumulators [first a, first b, second a, second b].

    What a column needs is loaded once, before the rows.
    """

    def build(self) -> None:
        b, v = self.b, self.v
        whole = b.icmp_signed(">=", v["columns"], I64(COLUMNS))
        with b.if_else(whole) as (then, otherwise):
            with then:
                self._rows(masked=False)
            with otherwise:
                self._rows(masked=True)

    def _rows(self, masked: bool) -> None:
        b, s, v = self.b, self.s, self.v
        bias = [self._column("bias", j, s.i32) for j in range(2)] if self.epilogue != "f32d" else []
        store = self.code_store(2, masked) if self.epilogue in CODES else self._words(masked)
        entry, loop, done = b.block, b.append_basic_block("rows"), b.append_basic_block("rows_end")
        b.branch(loop)
        b.position_at_end(loop)
        i, acc, offset = b.phi(I64), b.phi(I64), b.phi(I64)
        for phi, start in ((i, I64(0)), (acc, v["acc"]), (offset, I64(0))):
            phi.add_incoming(start, entry)
        vectors = [s.load(s.at(acc, 64 * n), s.i32) for n in range(4)]
        if bias:
            vectors = [b.add(vector, bias[n % 2]) for n, vector in enumerate(vectors)]
        # Where there is no second row, both are stored to one place: the first, last.
        second = b.select(b.icmp_signed("<", b.add(i, I64(1)), v["rows"]), b.add(offset, v["y_row"]), offset)
        store(vectors, [offset, second])
        i_next = b.add(i, I64(2))
        for phi, after in ((i, i_next), (acc, b.add(acc, I64(256))), (offset, b.add(offset, b.shl(v["y_row"], I64(1))))):
            phi.add_incoming(after, b.block)
        b.cbranch(b.icmp_signed("<", i_next, v["rows"]), loop, done)
        b.position_at_end(done)

    def _words(self, masked: bool) -> Any:
        s, b, v = self.s, self.b, self.v
        finish = [getattr(self, f"_{self.epilogue}")(j) for j in range(2)]
        masks = [s.mask(b.sub(v["columns"], I64(16 * j))) for j in range(2)] if masked else [None, None]

        def store(acc: list[Any], places: list[Any]) -> None:
            first, second = places
            for n, at in ((2, second), (3, second), (0, first), (1, first)):
                value, address = finish[n % 2](acc[n], None, None), s.at(b.add(v["y"], at), 64 * (n % 2))
                if masks[n % 2] is None:
                    s.store(address, value)
                else:
                    s.store_masked(address, value, masks[n % 2])

        return store


def gemm(epilogue):  # type: ignore[no-untyped-def]
    """Blocks of 32 rows times blocks of 32 columns. Threads share the row blocks, or the column blocks; a thread takes `chunk` row blocks
    at a time through all its columns."""

    @intrinsic
    def finish(typing_context, values):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            members = [builder.extract_value(args[0], i) for i in range(len(_NAMES))]
            _Rows(Simd("avx512vnni", builder), 2, 2, "direct", epilogue, dict(zip(_NAMES, members, strict=True))).build()
            return context.get_dummy_value()

        return types.void(types.Tuple(_TYPES)), codegen

    size = 1 if epilogue in CODES else 4

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        panel, own = r.panel + tid * r.panel_bytes, r.acc + tid * 8192
        steps, pitch, width, length = r.k_steps, r.pitch, r.width, r.length
        line_blocks = (length + 31) // 32
        image_blocks = r.lines * line_blocks
        in_place = r.panel_bytes == 0
        # A line of less than two tiles is read as two that overlap.
        halves, most, second = (2, 16, length - 16) if in_place and length < 32 else (1, 32, 16)
        columns = (r.n + 31) // 32
        first, last = (0, columns) if r.by_columns == 0 else share(columns, tid, nthreads)
        lo, hi = share(r.batch * image_blocks, tid, nthreads) if r.by_columns == 0 else (0, r.batch * image_blocks)
        tiles_begin()
        while lo < hi:
            image, begin = lo // image_blocks, lo % image_blocks
            blocks = min(r.chunk, image_blocks - begin, hi - lo)
            lo += blocks
            x = r.x + image * r.x_batch
            if not in_place:
                fill(record, x, begin * 32, min(blocks * 32, length - begin * 32), panel, steps)
            lines = (31 + blocks) // blocks
            for column in range(first, last):
                n, w = column * 32, r.w + column * steps * 2048
                ahead = w + steps * 2048 if column + 1 < last else r.w + first * steps * 2048
                line, start = begin // line_blocks, begin % line_blocks * 32
                for block in range(blocks):
                    if in_place:
                        # The last block of a line begins early, since nothing past the line's end may be read.
                        early = min(start, max(length - 32, 0))
                        at = x + line * r.line + early * r.position
                    else:
                        early = start
                        at = panel + block * steps * 2048
                    multiply(at, at + second * r.position, r.position, r.offsets_k, w, steps, own, ahead, lines)
                    ahead += lines * 64 * steps
                    for half in range(halves):
                        p = start + half * second
                        acc = own + half * 2048 + (start - early) * 128
                        end = min(p + most, length)
                        row, across = 0, p
                        if p >= pitch:
                            row, across = p // pitch, p % pitch
                        while p < end:
                            # Of each `pitch` positions of a line those past `width` are no rows of the result.
                            rows = min(width - across, end - p)
                            if rows > 0:
                                y = image * r.y_batch + ((line + row) * width + across) * r.y_row + n * size
                                finish(
                                    (
                                        acc,
                                        r.bias + 4 * n,
                                        r.scale + 4 * n,
                                        r.y + y,
                                        r.y_row,
                                        r.r + y,
                                        r.a_scale,
                                        r.a_zero_point,
                                        r.column_sums + 4 * n,
                                        r.n - n,
                                        rows,
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
                            acc += (pitch - across) * 128
                            p += pitch - across
                            row, across = row + 1, 0
                    start += 32
                    if start >= length:
                        line, start = line + 1, 0
        tiles_end()

    return kernel
