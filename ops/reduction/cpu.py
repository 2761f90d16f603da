"""Kernels of the reductions. Threads share results, never the elements of one sum."""

from __future__ import annotations

import numpy as np

from qrt.jit.lang import device, fields, i64, share
from qrt.jit.lang.rows import row_max, row_min, row_product, row_sum, row_sum_abs, row_sum_squares
from qrt.jit.lang.streams import POINTERS, read, write

_FLOAT_ROWS = {
    "l1": row_sum_abs,
    "max": row_max,
    "mean": row_sum,
    "min": row_min,
    "prod": row_product,
    "sum": row_sum,
    "sum_square": row_sum_squares,
}

_add = device(lambda a, b: a + b)
_itself = device(lambda x: x)
# How two partial results are joined, and what an element contributes.
_FOLDS = {
    "l1": (_add, device(lambda x: abs(x))),
    "max": (device(lambda a, b: a if a > b or a != a else b), _itself),
    "mean": (_add, _itself),
    "min": (device(lambda a, b: a if a < b or a != a else b), _itself),
    "prod": (device(lambda a, b: a * b), _itself),
    "sum": (_add, _itself),
    "sum_square": (_add, device(lambda x: x * x)),
}


def rows(kind, dtype):  # type: ignore[no-untyped-def]
    """y[i] = the fold of row i."""
    pointer, number, start = POINTERS[dtype], getattr(np, dtype), 1 if kind == "prod" else 0
    (join, term), float_row, mean = _FOLDS[kind], _FLOAT_ROWS[kind], kind == "mean"
    if dtype == "float32":

        @device
        def fold(x, at, n):  # type: ignore[no-untyped-def]
            whole = float_row(x, at, n, np.float32(0))
            return whole / np.float32(n) if mean else whole
    else:

        @device
        def fold(x, at, n):  # type: ignore[no-untyped-def]
            # max and min are never of nothing
            whole = number(start) if start == 1 or n == 0 else number(term(x[at]))
            for i in range(0 if start == 1 else 1, n):
                whole = number(join(whole, number(term(x[at + i]))))
            return whole

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, n = pointer(r.x), pointer(r.y), r.n
        lo, hi = share(r.outer, tid, nthreads)
        for row in range(lo, hi):
            y[row] = fold(x, row * n, n)

    return kernel


def columns(kind, dtype):  # type: ignore[no-untyped-def]
    """y[o, j] = the fold of x[o, :, j], block by block of neighbouring columns."""
    pointer, number, start = POINTERS[dtype], getattr(np, dtype), 1 if kind == "prod" else 0
    (join, term), mean = _FOLDS[kind], kind == "mean"

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, n, inner, block = pointer(r.x), pointer(r.y), r.n, r.inner, r.block
        blocks = (inner + block - 1) // block
        lo, hi = share(r.outer * blocks, tid, nthreads)
        for unit in range(lo, hi):
            outer, first = unit // blocks, unit % blocks * block
            count, at, to = min(block, inner - first), outer * n * inner + first, outer * inner + first
            if n == 0:
                for j in range(count):
                    y[to + j] = number(start)
                continue
            for j in range(count):
                y[to + j] = number(term(read(x, at + j)))
            i = 1
            while i + 4 <= n:
                a, b, c, d = at + i * inner, at + (i + 1) * inner, at + (i + 2) * inner, at + (i + 3) * inner
                for j in range(count):
                    two = join(join(y[to + j], term(read(x, a + j))), term(read(x, b + j)))
                    write(y, to + j, number(join(join(two, term(read(x, c + j))), term(read(x, d + j)))))
                i += 4
            while i < n:
                a = at + i * inner
                for j in range(count):
                    write(y, to + j, number(join(y[to + j], term(read(x, a + j)))))
                i += 1
            if mean:
                for j in range(count):
                    y[to + j] = y[to + j] / number(n)

    return kernel


def arg(kind, last, dtype):  # type: ignore[no-untyped-def]
    """y[o, j] = the index of the largest or smallest of x[o, :, j]."""
    pointer, largest = POINTERS[dtype], kind == "max"
    float_row = row_max if largest else row_min
    in_lanes = dtype == "float32"

    @device
    def beats(new, best):  # type: ignore[no-untyped-def]
        if new != new or best != best:
            return new != new and (last or best == best)
        if last:
            return new >= best if largest else new <= best
        return new > best if largest else new < best

    @device
    def scan(x, at, step, n):  # type: ignore[no-untyped-def]
        found, best = 0, x[at]
        for i in range(1, n):
            new = x[at + i * step]
            if beats(new, best):
                found, best = i, new
        return found

    if in_lanes:

        @device
        def find(x, at, step, n):  # type: ignore[no-untyped-def]
            if step != 1:
                return scan(x, at, step, n)
            best = float_row(x, at, n, np.float32(0))
            for k in range(n):
                i = n - 1 - k if last else k
                if x[at + i] == best or x[at + i] != x[at + i]:
                    return i
            return 0
    else:
        find = scan

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, n, inner = pointer(r.x), i64(r.y), r.n, r.inner
        lo, hi = share(r.outer * inner, tid, nthreads)
        for unit in range(lo, hi):
            y[unit] = find(x, unit // inner * n * inner + unit % inner, inner, n)

    return kernel


def cumsum(dtype):  # type: ignore[no-untyped-def]
    """Running sums of x[o, :, j]."""
    pointer, number = POINTERS[dtype], getattr(np, dtype)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, n, inner, exclusive = pointer(r.x), pointer(r.y), r.n, r.inner, r.exclusive != 0
        step = -inner if r.reverse != 0 else inner
        lo, hi = share(r.outer, tid, nthreads)
        for outer in range(lo, hi):
            at = (outer * n + (n - 1 if step < 0 else 0)) * inner
            for j in range(inner):
                y[at + j] = number(0) if exclusive else x[at + j]
            for _ in range(1, n):
                before, source = at, at
                at += step
                if not exclusive:
                    source = at
                for j in range(inner):
                    write(y, at + j, number(y[before + j] + read(x, source + j)))

    return kernel
