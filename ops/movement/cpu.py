"""Kernels of strided copies: what every movement op that knows its addresses is made of."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lang import fields, share, u8, u16, u32, u64
from qrt.ops.movement.strided import SIDES

_POINTER = {1: u8, 2: u16, 4: u32, 8: u64}

# Side of the block of elements that a thread takes at once.
_BLOCK = 64


def rows(size):  # type: ignore[no-untyped-def]
    """y = x, walked with six strides each, in elements of `size` bytes; fast where y has stride 1 along axis 5, and x 1 or 0."""
    pointer = _POINTER[size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y = pointer(r.x), pointer(r.y)
        n1, n2, n3, n4, n5 = r.n1, r.n2, r.n3, r.n4, r.n5
        # One long row is shared by splitting it.
        split = 1
        if r.n0 * n1 * n2 * n3 * n4 < nthreads:
            split = nthreads
        lo, hi = share(r.n0 * n1 * n2 * n3 * n4 * split, tid, nthreads)
        rest = lo // split
        i4 = rest % n4
        rest //= n4
        i3 = rest % n3
        rest //= n3
        i2 = rest % n2
        rest //= n2
        i1 = rest % n1
        i0 = rest // n1
        for unit in range(lo, hi):
            begin, end, last = 0, n5, True
            if split > 1:
                begin, end = share(n5, unit % split, split)
                last = unit % split == split - 1
            at = i0 * r.s0 + i1 * r.s1 + i2 * r.s2 + i3 * r.s3 + i4 * r.s4 + begin * r.s5
            to = i0 * r.t0 + i1 * r.t1 + i2 * r.t2 + i3 * r.t3 + i4 * r.t4 + begin * r.t5
            n = end - begin
            if r.t5 != 1:
                for i in range(n):
                    y[to + i * r.t5] = x[at + i * r.s5]
            elif r.s5 == 1:
                for i in range(n):
                    y[to + i] = x[at + i]
            elif r.s5 == 0:
                value = x[at]
                for i in range(n):
                    y[to + i] = value
            elif r.s5 == 2:  # as a constant, so that vectors are loaded whole and every second element is kept
                for i in range(n):
                    y[to + i] = x[at + 2 * i]
            else:
                for i in range(n):
                    y[to + i] = x[at + i * r.s5]
            if last:
                i4 += 1
                if i4 == n4:
                    i4 = 0
                    i3 += 1
                    if i3 == n3:
                        i3 = 0
                        i2 += 1
                        if i2 == n2:
                            i2 = 0
                            i1 += 1
                            if i1 == n1:
                                i1 = 0
                                i0 += 1

    return kernel


def square(size: int, rows: int) -> Any:
    """The intrinsic tile(x, x_stride, y, y_stride), all in bytes: `rows` rows of x, SIDES[size] elements each, are written transposed.

    log2(side) rounds of interleaving row i with row i + side / 2 transpose a square; rows that are missing are as good as any other.
    """
    side = SIDES[size]
    written_vector = ir.VectorType(ir.IntType(8 * size), rows)
    written = ir.Constant(ir.VectorType(ir.IntType(32), rows), list(range(rows)))
    vector = ir.VectorType(ir.IntType(8 * size), side)
    low = ir.Constant(ir.VectorType(ir.IntType(32), side), [i // 2 + side * (i % 2) for i in range(side)])
    high = ir.Constant(ir.VectorType(ir.IntType(32), side), [side // 2 + i // 2 + side * (i % 2) for i in range(side)])

    @intrinsic
    def tile(typing_context, x, x_stride, y, y_stride):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            def row(start: Any, stride: Any, i: int) -> Any:
                address = builder.add(start, builder.mul(stride, ir.Constant(stride.type, i)))
                return builder.inttoptr(address, vector.as_pointer())

            values = [builder.load(row(args[0], args[1], i), align=1) for i in range(rows)]
            values += values[:1] * (side - rows)
            for _ in range(side.bit_length() - 1):
                pairs = list(zip(values[: side // 2], values[side // 2 :], strict=True))
                values = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in (low, high)]
            for i, value in enumerate(values):
                start = builder.bitcast(row(args[2], args[3], i), written_vector.as_pointer())
                builder.store(builder.shuffle_vector(value, value, written), start, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), codegen

    return tile


def tiles(size, ragged):  # type: ignore[no-untyped-def]
    """As `rows`, where x has stride 1 along axis 4 and y along axis 5: squares are transposed in registers; `ragged`: also quarters of
    squares that are left along axis 5, one to three."""
    pointer, side = _POINTER[size], SIDES[size]
    tile, quarter = square(size, side), side // 4
    tile3, tile2, tile1 = (square(size, k * quarter) for k in (3, 2, 1))

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y = pointer(r.x), pointer(r.y)
        n4, n5, s5, t4 = r.n4, r.n5, r.s5, r.t4
        blocks4, blocks5 = (n4 + _BLOCK - 1) // _BLOCK, (n5 + _BLOCK - 1) // _BLOCK
        lo, hi = share(r.n0 * r.n1 * r.n2 * r.n3 * blocks4 * blocks5, tid, nthreads)
        for unit in range(lo, hi):
            rest = unit
            b = rest % blocks5 * _BLOCK
            rest //= blocks5
            a = rest % blocks4 * _BLOCK
            rest //= blocks4
            i3 = rest % r.n3
            rest //= r.n3
            i2 = rest % r.n2
            rest //= r.n2
            at = (rest // r.n1) * r.s0 + (rest % r.n1) * r.s1 + i2 * r.s2 + i3 * r.s3
            to = (rest // r.n1) * r.t0 + (rest % r.n1) * r.t1 + i2 * r.t2 + i3 * r.t3
            a_end, b_end = min(a + _BLOCK, n4), min(b + _BLOCK, n5)
            a_whole, b_whole = a + (a_end - a) // side * side, b + (b_end - b) // side * side
            for j in range(b, b_whole, side):
                for i in range(a, a_whole, side):
                    tile(r.x + (at + j * s5 + i) * size, s5 * size, r.y + (to + i * t4 + j) * size, t4 * size)
            quarters = (b_end - b_whole) // quarter if ragged else 0
            for i in range(a, a_whole if ragged else a, side):
                first, result = r.x + (at + b_whole * s5 + i) * size, r.y + (to + i * t4 + b_whole) * size
                if quarters == 3:
                    tile3(first, s5 * size, result, t4 * size)
                elif quarters == 2:
                    tile2(first, s5 * size, result, t4 * size)
                elif quarters == 1:
                    tile1(first, s5 * size, result, t4 * size)
            for i in range(a, a_whole):
                for j in range(b_whole + quarters * quarter, b_end):
                    y[to + i * t4 + j] = x[at + j * s5 + i]
            for i in range(a_whole, a_end):
                for j in range(b, b_end):
                    y[to + i * t4 + j] = x[at + j * s5 + i]

    return kernel


def zip_rows(size, count):  # type: ignore[no-untyped-def]
    """As `tiles` where axis 5 has `count` elements and axis 4 of y has that stride: rows of x are interleaved."""
    pointer = _POINTER[size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y = pointer(r.x), pointer(r.y)
        begin, end = share(r.n4, tid, nthreads)
        s1 = r.s5
        s2, s3 = 2 * s1, 3 * s1
        for row in range(r.n0 * r.n1 * r.n2 * r.n3):
            rest = row
            i3 = rest % r.n3
            rest //= r.n3
            i2 = rest % r.n2
            rest //= r.n2
            at = (rest // r.n1) * r.s0 + (rest % r.n1) * r.s1 + i2 * r.s2 + i3 * r.s3
            to = (rest // r.n1) * r.t0 + (rest % r.n1) * r.t1 + i2 * r.t2 + i3 * r.t3
            for i in range(begin, end):
                y[to + count * i] = x[at + i]
                y[to + count * i + 1] = x[at + s1 + i]
                if count > 2:
                    y[to + count * i + 2] = x[at + s2 + i]
                if count > 3:
                    y[to + count * i + 3] = x[at + s3 + i]

    return kernel


def unzip_rows(size, count):  # type: ignore[no-untyped-def]
    """As `tiles` where axis 4 has `count` elements and axis 5 of x has that stride: rows of y are picked apart from x."""
    pointer = _POINTER[size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y = pointer(r.x), pointer(r.y)
        begin, end = share(r.n5, tid, nthreads)
        t1 = r.t4
        t2, t3 = 2 * t1, 3 * t1
        for row in range(r.n0 * r.n1 * r.n2 * r.n3):
            rest = row
            i3 = rest % r.n3
            rest //= r.n3
            i2 = rest % r.n2
            rest //= r.n2
            at = (rest // r.n1) * r.s0 + (rest % r.n1) * r.s1 + i2 * r.s2 + i3 * r.s3
            to = (rest // r.n1) * r.t0 + (rest % r.n1) * r.t1 + i2 * r.t2 + i3 * r.t3
            for i in range(begin, end):
                y[to + i] = x[at + count * i]
                y[to + t1 + i] = x[at + count * i + 1]
                if count > 2:
                    y[to + t2 + i] = x[at + count * i + 2]
                if count > 3:
                    y[to + t3 + i] = x[at + count * i + 3]

    return kernel
