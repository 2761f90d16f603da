"""The integer product on AMX tiles: 32 rows by 32 columns of accumulators in four tile registers, 64 bytes of k at a step.

Rows of A are copied to a panel of whole tiles first, unless they already lie 64 bytes at a time: any window, padding and channel count
becomes one flat k there. A tile's accumulators go through memory to the vector epilogue, two rows of 32 columns at a time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lang import device, fields, i32, share
from qrt.jit.lang.simd import I8, I32, I64, Simd
from qrt.ops.gemm.cpu import Micro

ROWS = COLUMNS = 32
_CODES = ir.VectorType(I8, 32)
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
def multiply(typing_context, a, a_step, a_row, w, steps, acc):  # type: ignore[no-untyped-def]
    """acc[32][32] int32 = A · B. A: rows `a_row` bytes apart, 64 bytes of k every `a_step`; w: [steps][2][16][16][4]."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        b, s = builder, Simd("avx512vnni", builder)
        a, a_step, a_row, w, steps, acc = args
        for tile in range(4):
            s.call("llvm.x86.tilezero", _VOID, I8(tile))
        entry, loop, done = b.block, b.append_basic_block("k"), b.append_basic_block("done")
        lower = b.mul(a_row, I64(16))
        b.branch(loop)
        b.position_at_end(loop)
        k, a_k, w_k = b.phi(I64), b.phi(I64), b.phi(I64)
        for phi, start in ((k, I64(0)), (a_k, a), (w_k, w)):
            phi.add_incoming(start, entry)
        s.call("llvm.x86.tileloadd64", _VOID, I8(4), _pointer(s, a_k), a_row)
        s.call("llvm.x86.tileloadd64", _VOID, I8(6), _pointer(s, w_k), I64(64))
        s.call("llvm.x86.tdpbusd", _VOID, I8(0), I8(4), I8(6))
        s.call("llvm.x86.tileloadd64", _VOID, I8(7), _pointer(s, b.add(w_k, I64(1024))), I64(64))
        s.call("llvm.x86.tdpbusd", _VOID, I8(1), I8(4), I8(7))
        s.call("llvm.x86.tileloadd64", _VOID, I8(5), _pointer(s, b.add(a_k, lower)), a_row)
        s.call("llvm.x86.tdpbusd", _VOID, I8(2), I8(5), I8(6))
        s.call("llvm.x86.tdpbusd", _VOID, I8(3), I8(5), I8(7))
        k_next = b.add(k, I64(1))
        for phi, after in ((k, k_next), (a_k, b.add(a_k, a_step)), (w_k, b.add(w_k, I64(2048)))):
            phi.add_incoming(after, loop)
        b.cbranch(b.icmp_signed("<", k_next, steps), loop, done)
        b.position_at_end(done)
        for tile in range(4):
            at = b.add(acc, I64((tile // 2) * 16 * 128 + (tile % 2) * 64))
            s.call("llvm.x86.tilestored64", _VOID, I8(tile), _pointer(s, at), I64(128))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 6), codegen


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
def fill(record, x, m, rows, panel, k_steps):  # type: ignore[no-untyped-def]
    """The panel [rows / 32][k / 64][32][64] of `rows` rows from `m` on: every tap's bytes one after the other. What lies past the
    last is left as it is: those weights are zero."""
    r = fields(record)
    offsets = i32(r.offsets)
    for i in range(rows):
        line = panel + (i // 32 * k_steps * 32 + i % 32) * 64
        at = 0
        for tap in range(r.taps):
            source = x + (m + i) * r.x_row
            if r.offsets != 0:
                offset = offsets[(m + i) * r.taps + tap]
                source = x + offset if offset >= 0 else r.zeros
            done = 0
            while done < r.k:
                inside = at % 64
                count = min(64 - inside, r.k - done)
                target = line + at // 64 * 2048 + inside
                if count == 64:
                    copy64(source + done, target)
                else:
                    copy_some(source + done, target, count)
                done += count
                at += count


_ADDRESSES = ("acc", "bias", "scale", "y", "y_next", "r", "r_next", "a_scale", "a_zero_point", "column_sums", "columns")
_FLOATS = ("lo", "hi", "c_lo", "c_hi", "c_ratio", "r_ratio", "c_zero_point", "sum_offset")
_NAMES = (*_ADDRESSES, *_FLOATS, "y_zero_point")
_TYPES = (types.int64,) * len(_ADDRESSES) + (types.float32,) * len(_FLOATS) + (types.int32,)


class _Pair(Micro):
    """The epilogue of two rows of 32 columns: accumulators [first a, first b, second a, second b]."""

    def store(self) -> None:
        b, v = self.b, self.v
        acc = [self._accumulator(i) for i in range(4)]
        finish = self._codes if self.epilogue in ("u8", "u8add") else self._words
        with b.if_else(b.icmp_signed(">=", v["columns"], I64(COLUMNS))) as (then, otherwise):
            with then:
                finish(acc, masked=False)
            with otherwise:
                finish(acc, masked=True)

    def _accumulator(self, i: int) -> Any:
        s, b = self.s, self.b
        acc = s.load(s.at(self.v["acc"], 128 * (i // 2) + 64 * (i % 2)), s.i32)
        return acc if self.epilogue == "f32d" else b.add(acc, self._column("bias", i % 2, s.i32))

    def _codes(self, acc: list[Any], masked: bool) -> None:
        s, b, v = self.s, self.b, self.v
        mask = b.bitcast(b.trunc(b.sub(b.shl(I64(1), v["columns"]), I64(1)), I32), ir.VectorType(ir.IntType(1), 32)) if masked else None
        adds = self.epilogue == "u8add"
        zero_point = v["y_zero_point"]
        low, high = (b.add(b.fptosi(v[name], I32), zero_point) for name in ("lo", "hi"))
        products = [b.fmul(s.to_float(a), self._column("scale", i % 2, s.f32)) for i, a in enumerate(acc)]
        if adds:
            rows = [s.load(v[n], _CODES) if mask is None else s.load_masked(v[n], _CODES, mask) for n in ("r", "r_next")]
            halves = [b.bitcast(row, ir.VectorType(I64, 4)) for row in rows]
            mixed = b.shuffle_vector(*halves, ir.Constant(ir.VectorType(I32, 8), [0, 4, 1, 5, 2, 6, 3, 7]))
            nothing = ir.Constant(ir.VectorType(I8, 64), None)
            widened = s.interleave([b.bitcast(mixed, nothing.type), nothing, nothing, nothing])
            products = [self._sum(p, s.to_float(r)) for p, r in zip(products, widened, strict=True)]
        packed = b.bitcast(s.pack_codes([s.round(p) for p in products], zero_point, low, high), ir.VectorType(I64, 8))
        for row, name in enumerate(("y_next", "y")):  # the first row last: where there is no second, both go to one place
            picked = ir.Constant(ir.VectorType(I32, 4), [1 - row + 2 * i for i in range(4)])
            value = b.bitcast(b.shuffle_vector(packed, ir.Constant(packed.type, ir.Undefined), picked), _CODES)
            if mask is None:
                s.store(v[name], value)
            else:
                s.store_masked(v[name], value, mask)

    def _words(self, acc: list[Any], masked: bool) -> None:
        s, b, v = self.s, self.b, self.v
        for i in (2, 3, 0, 1):
            value = getattr(self, f"_{self.epilogue}")(i % 2)(acc[i], None, None)
            address = s.at(v["y_next" if i // 2 else "y"], 64 * (i % 2))
            if masked:
                s.store_masked(address, value, s.mask(b.sub(v["columns"], I64(16 * (i % 2)))))
            else:
                s.store(address, value)


def gemm(epilogue):  # type: ignore[no-untyped-def]
    """Blocks of rows times blocks of columns: threads share the (image, row block, column share) blocks."""

    @intrinsic
    def pair(typing_context, values):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            members = [builder.extract_value(args[0], i) for i in range(len(_NAMES))]
            _Pair(Simd("avx512vnni", builder), 2, 2, "direct", epilogue, dict(zip(_NAMES, members, strict=True))).store()
            return context.get_dummy_value()

        return types.void(types.Tuple(_TYPES)), codegen

    size = 1 if epilogue in ("u8", "u8add") else 4

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        panel = r.panel + tid * r.panel_bytes
        acc = r.acc + tid * 4096
        k_steps = (r.k * r.taps + 63) // 64
        column_blocks = (r.n + 31) // 32
        row_blocks = (r.m + r.block_rows - 1) // r.block_rows
        tiles_begin()
        lo, hi = share(r.batch * row_blocks * r.column_shares, tid, nthreads)
        for item in range(lo, hi):
            part = item % r.column_shares
            rest = item // r.column_shares
            m = rest % row_blocks * r.block_rows
            image = rest // row_blocks
            rows = min(r.block_rows, r.m - m)
            x = r.x + image * r.x_batch
            if r.in_place == 0:
                fill(record, x, m, rows, panel, k_steps)
            n_first, n_last = share(column_blocks, part, r.column_shares)
            for block in range(n_first, n_last):
                n = block * 32
                for start in range(0, rows, 32):
                    # The last tile of rows in place begins early: there is nothing after the last row to read.
                    row = start
                    if r.in_place != 0:
                        row = min(start, rows - 32)
                        multiply(x + (m + row) * r.x_row, 64, r.x_row, r.w + block * k_steps * 2048, k_steps, acc)
                    else:
                        multiply(panel + start * k_steps * 64, 2048, 64, r.w + block * k_steps * 2048, k_steps, acc)
                    count = min(32, rows - row)
                    for i in range(0, count, 2):
                        at = r.y + image * r.y_batch + (m + row + i) * r.y_row + n * size
                        second = at + r.y_row if i + 1 < count else at
                        residual = r.r + image * r.y_batch + (m + row + i) * r.y_row + n
                        second_residual = residual + r.y_row if i + 1 < count else residual
                        pair(
                            (
                                acc + 128 * i,
                                r.bias + 4 * n,
                                r.scale + 4 * n,
                                at,
                                second,
                                residual,
                                second_residual,
                                r.a_scale,
                                r.a_zero_point,
                                r.column_sums + 4 * n,
                                r.n - n,
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
        tiles_end()

    return kernel
