"""Device kernels of the reductions of floats: a row is a warp's, a column a thread's. No sum is split any further."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    cuda,
    device,
    float32,
    int32,
    int64,
    load_f32,
    load_i32,
    load_i64,
    shuffle_xor,
    store_f32,
    store_i32,
    store_i64,
)
from qrt.jit.lang.cuda_rows import add, itself, larger, row_and_lane, row_of, smaller


@device
def _multiply(a, b):  # type: ignore[no-untyped-def]
    return a * b


@device
def _size(x, p):  # type: ignore[no-untyped-def]
    return abs(x)


@device
def _square(x, p):  # type: ignore[no-untyped-def]
    return x * x


# How two partial results are joined, what an element contributes, and the result of none.
_FOLDS = {
    "l1": (add, _size, 0.0),
    "max": (larger, itself, float("-inf")),
    "mean": (add, itself, 0.0),
    "min": (smaller, itself, float("inf")),
    "prod": (_multiply, itself, 1.0),
    "sum": (add, itself, 0.0),
    "sum_square": (add, _square, 0.0),
}


def rows(kind: str) -> Any:
    """y[row] = the fold of row."""
    row_fold, mean = row_of(*_FOLDS[kind]), kind == "mean"

    def kernel(x, y, rows, n):  # type: ignore[no-untyped-def]
        row, lane = row_and_lane()
        if row < rows:
            total = row_fold(x + int64(4) * row * int64(n), n, lane, float32(0))
            if lane == int32(0):
                store_f32(y + int64(4) * row, total / float32(n) if mean else total)

    return kernel


@device
def _column_and_start(n, inner):  # type: ignore[no-untyped-def]
    """This thread's number in the grid, and the first element of its column."""
    column = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
    outer = column // int64(inner)
    return column, outer * int64(n) * int64(inner) + (column - outer * int64(inner))


def columns(kind: str) -> Any:
    """y[o, j] = the fold of x[o, :, j]."""
    join, term, neutral = _FOLDS[kind]
    mean = kind == "mean"

    def kernel(x, y, columns, n, inner):  # type: ignore[no-untyped-def]
        column, first = _column_and_start(n, inner)
        if column < columns:
            total = float32(neutral)
            if n > int32(0):
                total = term(load_f32(x + int64(4) * first), float32(0))
            for i in range(1, n):
                total = join(total, term(load_f32(x + int64(4) * (first + int64(i) * int64(inner))), float32(0)))
            store_f32(y + int64(4) * column, total / float32(n) if mean else total)

    return kernel


def cumsum(dtype: str) -> Any:
    """y[o, :, j] = the running sums of x[o, :, j], in the order of the CPU's; see cumsum.CumSum."""
    size, load, store, number = {
        "float32": (4, load_f32, store_f32, float32),
        "int64": (8, load_i64, store_i64, int64),
        "int32": (4, load_i32, store_i32, int32),
    }[dtype]

    def kernel(x, y, columns, n, inner, exclusive, reverse):  # type: ignore[no-untyped-def]
        column, first = _column_and_start(n, inner)
        if column < columns:
            step = int64(inner)
            if reverse != int32(0):
                first, step = first + int64(int32(n - int32(1))) * step, -step
            at, total = int64(size) * first, number(0)
            step = int64(size) * step
            if exclusive == int32(0):
                total = load(x + at)
            store(y + at, total)
            for _ in range(1, n):
                total = number(total + load(x + (at if exclusive != int32(0) else at + step)))
                at = at + step
                store(y + at, total)

    return kernel


def arg(kind: str, last: int) -> Any:
    """y[o, j] = the index of the largest or smallest of x[o, :, j]: a warp finds it. A NaN is larger and smaller than every number."""
    largest = kind == "max"

    @device
    def beats(a, i, b, j):  # type: ignore[no-untyped-def]
        """Whether a, of index i, is to be found rather than b, of index j."""
        if a != a or b != b:
            both = a != a and b != b
            return (i > j if last else i < j) if both else a != a
        if a == b:
            return i > j if last else i < j
        return a > b if largest else a < b

    def kernel(x, y, rows, n, inner):  # type: ignore[no-untyped-def]
        row, lane = row_and_lane()
        if row < rows:
            outer = row // int64(inner)
            first = outer * int64(n) * int64(inner) + (row - outer * int64(inner))
            found = int32(min(lane, int32(n - int32(1))))
            best = load_f32(x + int64(4) * (first + int64(found) * int64(inner)))
            i = int32(lane + int32(32))
            while i < n:
                new = load_f32(x + int64(4) * (first + int64(i) * int64(inner)))
                if beats(new, i, best, found):
                    found, best = i, new
                i = int32(i + int32(32))
            for distance in (16, 8, 4, 2, 1):
                other, at = shuffle_xor(best, int32(distance)), shuffle_xor(found, int32(distance))
                if beats(other, at, best, found):
                    found, best = at, other
            if lane == int32(0):
                store_i64(y + int64(8) * row, int64(found))

    return kernel
