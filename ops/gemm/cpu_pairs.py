"""The product of codes where an instruction set multiplies pairs of 16 bits (AVX2): rows are widened once, to a strip that all columns
read; codes of B are widened as they are loaded, so that they take a byte each in memory.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lanes import LANES
from qrt.jit.lang import device, fields, i32, share
from qrt.jit.lang.simd import I8, I16, Simd
from qrt.ops.gemm.cpu_micro import Micro, numbers, places, row_block_tiles, whole_blocks
from qrt.ops.gemm.table import CODES


class _Pairs(Micro):
    """A tile over rows of a strip: a step is two codes, as words, times a line of B of as many bytes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.multiply, self.step = self.s.dot_pairs, 2 * self.s.lanes
        self.asks_ahead = 1 if self.rows > self.vectors else 0

    def _of_b(self, address: Any) -> Any:
        words = self.b.sext(self.s.load(address, ir.VectorType(I8, 2 * self.s.lanes)), ir.VectorType(I16, 2 * self.s.lanes))
        return self.b.bitcast(words, self.s.i32)


# Codes that are widened at a time: up to so many less one are read past a row's last, and written past the strip's.
_WIDENED = 16


@intrinsic
def _widen(typing_context, to, source):  # type: ignore[no-untyped-def]
    """16 codes as words."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        s = Simd("avx2", builder)
        codes = s.load(args[1], ir.VectorType(I8, _WIDENED))
        s.store(args[0], builder.zext(codes, ir.VectorType(I16, _WIDENED)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@device
def _widen_row(to, source, count):  # type: ignore[no-untyped-def]
    _widen(to, source)
    code = _WIDENED
    while code < count:
        _widen(to + 2 * code, source + code)
        code += _WIDENED


@device
def _gather(r, strip, x, first, last):  # type: ignore[no-untyped-def]
    """All taps of rows first … last − 1, one after the other; those that lie side by side are widened together."""
    together, tap = r.run * r.k, 0
    while tap < r.taps:
        at, to = r.offsets + 4 * (first * r.taps + tap), strip + 2 * tap * r.k
        for _ in range(first, last):
            offsets = i32(at)
            if offsets[0] >= 0 and offsets[r.run - 1] - offsets[0] == together - r.k:
                _widen_row(to, x + offsets[0], together)
            else:
                for i in range(r.run):
                    _widen_row(to + 2 * i * r.k, r.zeros if offsets[i] < 0 else x + offsets[i], r.k)
            at += 4 * r.taps
            to += r.strip_row
        tap += r.run


def gemm(isa, tile_rows, tile_vectors, addressing, epilogue):  # type: ignore[no-untyped-def]
    """All tiles of one product, in order of (batch, group, chunk of row blocks, column block, row block); row blocks as in `cpu.gemm`.
    Threads share (chunk, column block), and widen the rows of each chunk that they meet for themselves."""
    whole, less = row_block_tiles(_Pairs, isa, tile_rows, tile_vectors, "direct", epilogue)
    nr = tile_vectors * LANES[isa]
    size = 1 if epilogue in CODES else 4
    indirect = addressing == "indirect"

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        blocks = (r.m + tile_rows - 1) // tile_rows
        column_blocks = (r.n + nr - 1) // nr
        chunks = (blocks + r.together - 1) // r.together
        wholes = whole_blocks(blocks, r.m, tile_rows)
        # At two steps as much of the next block of columns is asked for as is there by its turn.
        together = min(r.together, blocks)
        piece = (2 * nr + together - 1) // together
        shared = (r.strip_row, *places(r), 1, r.k4, 2 * piece, 0, *numbers(r))
        strip = r.strip + tid * r.strip_bytes
        unit, end = share(r.batch * r.groups * chunks * column_blocks, tid, nthreads)
        while unit < end:
            item, start = unit // column_blocks, unit % column_blocks
            stop = min(column_blocks, start + end - unit)
            unit += stop - start
            begin = item % chunks * r.together
            until = min(begin + r.together, blocks)
            group, image = item // chunks % r.groups, item // chunks // r.groups
            first = begin * tile_rows - max(begin - wholes, 0)
            last = min(until * tile_rows - max(until - wholes, 0), r.m)
            x = r.x + image * r.x_batch + group * r.x_group
            if indirect:
                _gather(r, strip, x, first, last)
            else:
                for m in range(first, last):
                    for tap in range(r.taps):
                        _widen_row(strip + (m - first) * r.strip_row + 2 * tap * r.k, x + m * r.x_row, r.k)
            for columns in range(start, stop):
                n = columns * nr
                w = r.w + image * r.w_batch + group * r.w_group + columns * r.w_block
                y = image * r.y_batch + group * r.y_group + n * size
                column = 4 * (group * column_blocks * nr + n)
                for block in range(begin, until):
                    m = block * tile_rows - max(block - wholes, 0)
                    at = y + m * r.y_row
                    own = (
                        strip + (m - first) * r.strip_row,
                        0,
                        w,
                        r.bias + image * r.bias_batch + column,
                        r.scale + column,
                        r.y + at,
                        r.r + at,
                        r.column_sums + column,
                        w + r.w_block + (block - begin) * r.k4 * piece,
                        0,
                        min(tile_rows - 1, r.m - m),
                        min(nr, r.n - n),
                    )
                    if tile_rows == 1 or block < wholes:
                        whole(own + shared)
                    else:
                        less(own + shared)

    return kernel
