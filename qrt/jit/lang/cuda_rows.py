"""Folds of rows of float32 by a warp, in the order of the CPU's `rows.py`: element i belongs to thread i mod 32, the threads' results are
then combined in halves. All threads of the warp get the result."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import cuda, device, float32, int32, int64, load_f32, shuffle_xor

__all__ = ["add", "itself", "larger", "row_and_lane", "row_max", "row_of", "row_sum", "row_sum_squares", "smaller"]


@device
def row_and_lane():  # type: ignore[no-untyped-def]
    """The warp's number in the grid, and the thread's in the warp."""
    thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
    return thread // int64(32), int32(thread & int64(31))


@device
def add(a, b):  # type: ignore[no-untyped-def]
    return a + b


@device
def larger(a, b):  # type: ignore[no-untyped-def]
    """The larger one; NaN where one is NaN."""
    return a if a > b or a != a else b


@device
def smaller(a, b):  # type: ignore[no-untyped-def]
    """The smaller one; NaN where one is NaN."""
    return a if a < b or a != a else b


@device
def itself(x, p):  # type: ignore[no-untyped-def]
    return x


@device
def _square(x, p):  # type: ignore[no-untyped-def]
    """(x − p)²."""
    away = x - p
    return away * away


def row_of(join: Any, term: Any, neutral: float) -> Any:
    """The function (x, n, lane, p) → join over the n floats at x of term(float, p); `neutral` for an empty row."""

    @device
    def fold(x, n, lane, p):  # type: ignore[no-untyped-def]
        total, i = float32(neutral), lane
        while i < n:
            total = join(total, term(load_f32(x + int64(4) * int64(i)), p))
            i = int32(i + int32(32))
        for distance in (16, 8, 4, 2, 1):
            total = join(total, shuffle_xor(total, int32(distance)))
        return total

    return fold


row_sum, row_sum_squares = row_of(add, itself, 0.0), row_of(add, _square, 0.0)
row_max = row_of(larger, itself, float("-inf"))
