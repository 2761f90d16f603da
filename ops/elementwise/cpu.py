"""Kernels of the element-wise ops: loops around the functions of cpu_scalar.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from qrt.jit.lang import device, fields, share
from qrt.jit.lang.math import HALF
from qrt.jit.lang.streams import POINTERS, read, write
from qrt.ops.elementwise.cpu_scalar import BINARY, INTEGER_BINARY, SINGLE_BINARY, UNARY
from qrt.ops.elementwise.unary import SIXTEEN, bounds

# Elements below which it does not matter where they lie.
_FEW = 1024


@device
def share_rows(rows, n, tid, nthreads):  # type: ignore[no-untyped-def]
    """The rows, and the elements of each, that thread `tid` works on, as two half-open ranges: whole rows where there are enough."""
    if rows >= nthreads:
        return rows * tid // nthreads, rows * (tid + 1) // nthreads, 0, n
    return 0, rows, n * tid // nthreads, n * (tid + 1) // nthreads


def before_line(source: str, result: str) -> Any:
    """The function (x, at, y, to, n) → how many of the n elements from index `to` of the array at address y, made of those from `at` of x,
    lie before its first cache line: vectors that lie across two lines take twice the time, and arrays of NumPy start 16 bytes after one.
    Where elements of x are larger, its lines count; where they are as large, both arrays have to come to one together. All n else, and
    where they are few."""
    size, x_size = np.dtype(result).itemsize, np.dtype(source).itemsize
    widest = max(size, x_size)

    @device
    def count(x, at, y, to, n):  # type: ignore[no-untyped-def]
        first, x_first = y + to * size, x + at * x_size
        if n < _FEW or (size == x_size and (x_first - first) & 63 != 0):
            return n
        return (-(x_first if x_size > size else first) & 63) // widest

    return count


def unary(name, source, result):  # type: ignore[no-untyped-def]
    """y = f(x, p, q) over rows of n elements."""
    f, px, py, before = UNARY[name], POINTERS[source], POINTERS[result], before_line(source, result)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, p, q = px(r.x), py(r.y), r.p, r.q
        first, last, lo, hi = share_rows(r.rows, r.n, tid, nthreads)
        for row in range(first, last):
            at, to = row * r.x_row, row * r.y_row
            begin, end = lo, lo + before(r.x, at + lo, r.y, to + lo, hi - lo)
            while begin < hi:
                for i in range(begin, end):
                    write(y, to + i, f(read(x, at + i), p, q))
                begin, end = end, hi

    return kernel


def cast(source, result):  # type: ignore[no-untyped-def]
    """y = x in another dtype, over n elements; see unary.cast."""
    px, py = POINTERS[source], POINTERS[result]
    if source in SIXTEEN or result in SIXTEEN:
        change = HALF[f"from_{source}" if source in SIXTEEN else f"to_{result}"]
        convert = device(lambda x: change(x))
    elif result == "bool":
        convert = device(lambda x: x != 0)
    elif "float" in source and "float" not in result:
        wide = np.int64 if "64" in result or result == "uint32" else np.int32
        low, high = bounds(np.dtype(source), np.dtype(wide))

        @device
        def convert(x):  # type: ignore[no-untyped-def]
            x = x if x > low else low
            return wide(x if x < high else high)
    else:
        convert = device(lambda x: x)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y = px(r.x), py(r.y)
        lo, hi = share(r.n, tid, nthreads)
        for i in range(lo, hi):
            write(y, i, convert(read(x, i)))

    return kernel


# These take numbers and no record: numba converts a record to one that begins like it, and picks the wrong function.
@device
def tile(n4, n5, rows, cols, number):  # type: ignore[no-untyped-def]
    """Tile `number` of a walk: its index of axes 0 to 3, its rows of axis 4 and its columns of axis 5."""
    blocks, chunks = (n4 + rows - 1) // rows, (n5 + cols - 1) // cols
    column = number % chunks * cols
    rest = number // chunks
    row = rest % blocks * rows
    return rest // blocks, row, min(row + rows, n4), column, min(column + cols, n5)


@device
def tiles(outer, n4, n5, rows, cols):  # type: ignore[no-untyped-def]
    """How many tiles a walk has."""
    return outer * ((n4 + rows - 1) // rows) * ((n5 + cols - 1) // cols)


@device
def start(n1, n2, n3, outer, s0, s1, s2, s3):  # type: ignore[no-untyped-def]
    """Where an operand of strides s0 to s3 begins, for an index of axes 0 to 3."""
    i3, outer = outer % n3, outer // n3
    i2, outer = outer % n2, outer // n2
    return outer // n1 * s0 + outer % n1 * s1 + i2 * s2 + i3 * s3


def pairs(f: Any, params: Any, source: str, result: str) -> Any:
    """The kernel y = f(a, b, params(record)) along a walk of two operands of dtype `source`."""
    pa, py, before = POINTERS[source], POINTERS[result], before_line(source, result)

    @device
    def span(a, at, sa, b, bt, sb, y, to, n, head, p):  # type: ignore[no-untyped-def]
        if sa == 1 and sb == 1:
            begin, end = 0, head
            while begin < n:
                for i in range(begin, end):
                    write(y, to + i, f(read(a, at + i), read(b, bt + i), p))
                begin, end = end, n
        elif sa == 1 and sb == 0:
            right = read(b, bt)
            for i in range(n):
                write(y, to + i, f(read(a, at + i), right, p))
        elif sa == 0 and sb == 1:
            left = read(a, at)
            for i in range(n):
                write(y, to + i, f(left, read(b, bt + i), p))
        else:
            for i in range(n):
                write(y, to + i, f(read(a, at + i * sa), read(b, bt + i * sb), p))

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        a, b, y, p = pa(r.a), pa(r.b), py(r.y), params(r)
        n1, n2, n3, n4, n5, rows, cols = r.n1, r.n2, r.n3, r.n4, r.n5, r.rows, r.cols
        sa4, sa5, sb4, sb5, y4 = r.a4, r.a5, r.b4, r.b5, r.y4
        lo, hi = share(tiles(r.outer, n4, n5, rows, cols), tid, nthreads)
        for number in range(lo, hi):
            outer, row, last, column, end = tile(n4, n5, rows, cols, number)
            at = start(n1, n2, n3, outer, r.a0, r.a1, r.a2, r.a3) + column * sa5
            bt = start(n1, n2, n3, outer, r.b0, r.b1, r.b2, r.b3) + column * sb5
            to = start(n1, n2, n3, outer, r.y0, r.y1, r.y2, r.y3) + column
            for i in range(row, last):
                n, ai, yi = end - column, at + i * sa4, to + i * y4
                span(a, ai, sa5, b, bt + i * sb4, sb5, y, yi, n, before(r.a, ai, r.y, yi, n), p)

    return kernel


def binary(name, source, result):  # type: ignore[no-untyped-def]
    """y = f(a, b) along a walk of two operands."""
    f = {"float32": SINGLE_BINARY, "float64": BINARY}.get(source, INTEGER_BINARY)[name]
    return pairs(device(lambda a, b, p: f(a, b)), device(lambda r: 0), source, result)


def where(element):  # type: ignore[no-untyped-def]
    """y = a where c, else b, along a walk of three operands; elements move as unsigned integers."""
    pc, pa, number = POINTERS["bool"], POINTERS[element], getattr(np, element)

    @device
    def pick(c, left, right):  # type: ignore[no-untyped-def]
        # A mask and no choice: choices become branches that the data mispredict.
        return number(right ^ ((left ^ right) & number(-np.int64(c != 0))))

    @device
    def span(c, ct, sc, a, at, sa, b, bt, sb, y, to, n):  # type: ignore[no-untyped-def]
        if sc == 1 and sa == 1 and sb == 1:
            for i in range(n):
                write(y, to + i, pick(read(c, ct + i), read(a, at + i), read(b, bt + i)))
        elif sc == 1 and sa == 1 and sb == 0:
            right = read(b, bt)
            for i in range(n):
                write(y, to + i, pick(read(c, ct + i), read(a, at + i), right))
        elif sc == 1 and sa == 0 and sb == 1:
            left = read(a, at)
            for i in range(n):
                write(y, to + i, pick(read(c, ct + i), left, read(b, bt + i)))
        else:
            for i in range(n):
                write(y, to + i, pick(read(c, ct + i * sc), read(a, at + i * sa), read(b, bt + i * sb)))

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        c, a, b, y = pc(r.c), pa(r.a), pa(r.b), pa(r.y)
        n1, n2, n3, n4, n5, rows, cols = r.n1, r.n2, r.n3, r.n4, r.n5, r.rows, r.cols
        sc4, sc5, sa4, sa5, sb4, sb5, y4 = r.c4, r.c5, r.a4, r.a5, r.b4, r.b5, r.y4
        lo, hi = share(tiles(r.outer, n4, n5, rows, cols), tid, nthreads)
        for number in range(lo, hi):
            outer, row, last, column, end = tile(n4, n5, rows, cols, number)
            ct = start(n1, n2, n3, outer, r.c0, r.c1, r.c2, r.c3) + column * sc5
            at = start(n1, n2, n3, outer, r.a0, r.a1, r.a2, r.a3) + column * sa5
            bt = start(n1, n2, n3, outer, r.b0, r.b1, r.b2, r.b3) + column * sb5
            to = start(n1, n2, n3, outer, r.y0, r.y1, r.y2, r.y3) + column
            for i in range(row, last):
                span(c, ct + i * sc4, sc5, a, at + i * sa4, sa5, b, bt + i * sb4, sb5, y, to + i * y4, end - column)

    return kernel
