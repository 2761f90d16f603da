"""Batches of products of codes that are both made in the run, as attention has them: uint8 by uint8, sums by dp4a.

A block of 256 threads makes a tile of 64 × 64, each thread 4 × 4 of it. k runs in steps of 64: 16 words of four codes. Codes of b are
multiplied less 128, as int8; what zero points take from a sum follows from the sums of rows and columns.
"""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    cuda,
    device,
    dp4a,
    int32,
    int64,
    load4_shared,
    load_f32,
    load_i32,
    load_u8,
    quotient,
    shared_base,
    store_i32,
    store_shared_i32,
    store_u8,
)
from qrt.jit.lang.cuda_codes import code_of

WORDS, ROW, COLUMNS = 16, 20, 68  # of a step; words from one row of A to the next, and of B, in shared memory


@device
def word_of(x, step, left):  # type: ignore[no-untyped-def]
    """The first `left` (of four at the most) codes from x on, `step` bytes apart; 0 behind them."""
    word = int32(0)
    for e in range(4):
        if int32(e) < left:
            word = int32(word | (load_u8(x + int64(e) * step) << int32(8 * e)))
    return word


@device
def words_of(x, step, at, k, aligned):  # type: ignore[no-untyped-def]
    """Codes at … at + 3 of k that lie `step` bytes apart from x on; in one load where they are words."""
    if aligned != int32(0) and int32(at + int32(4)) <= k:
        return load_i32(x + int64(at))
    return word_of(x + int64(at) * step, step, int32(k - at))


@device
def bring_rows(to, x, x_row, first_m, row, at_k, m, k, step, aligned):  # type: ignore[no-untyped-def]
    """A thread's words of A in a step of k: of four rows, 16 apart."""
    for p in range(4):
        here = int32(row + int32(16 * p))
        word = int32(0)
        if int32(first_m + here) < m:
            word = words_of(x + int64(int32(first_m + here)) * x_row, int64(1), int32(step + int32(4) * at_k), k, aligned)
        store_shared_i32(int32(to + int32(4) * int32(here * int32(ROW) + at_k)), word)


@device
def bring_columns(to, w, w_k, w_n, first_n, column, at_k, column_step, k_step, n, k, step, aligned):  # type: ignore[no-untyped-def]
    """A thread's words of B, less 128: of four columns, or of four places in k."""
    for p in range(4):
        here, k4 = int32(column + int32(p) * column_step), int32(at_k + int32(p) * k_step)
        word = int32(0)
        if int32(first_n + here) < n:
            word = words_of(w + int64(int32(first_n + here)) * w_n, w_k, int32(step + int32(4) * k4), k, aligned)
            left = int32(int32(k - step) - int32(4) * k4)  # codes behind the last one stay 0 less 0
            for e in range(4):
                if int32(e) < left:
                    word = int32(word ^ int32(128 << (8 * e)))
        store_shared_i32(int32(to + int32(4) * int32(k4 * int32(COLUMNS) + here)), word)


@device
def multiply(a_at, b_at, acc, a, rows, columns):  # type: ignore[no-untyped-def]
    """Four words of k of four rows by four columns; and the sums of their codes."""
    for i in range(4):
        words = load4_shared(int32(a_at + int32(4 * i * ROW)))
        for e in range(4):
            a[i, e] = words[e]
    for e in range(4):
        b = load4_shared(int32(b_at + int32(4 * e * COLUMNS)))
        for j in range(4):
            columns[j] = dp4a(int32(0x01010101), b[j], columns[j])
        for i in range(4):
            rows[i] = dp4a(a[i, e], int32(0x01010101), rows[i])
            for j in range(4):
                acc[i, j] = dp4a(a[i, e], b[j], acc[i, j])


def batched(epilogue: str) -> Any:
    """y = epilogue(Σ (a − za)(b − zb) + bias) for each of a grid of matrices; the record is `device_batched.RECORD`."""
    codes = epilogue == "u8"

    def kernel(  # type: ignore[no-untyped-def]
        x, w, bias, scale, y, x_row, w_k, w_n, y_row, x_batch, x_group, w_batch, w_group, y_batch, y_group,
        groups, m, n, k, x_words, w_words, a_zero, b_zero, lo, hi, y_zero_point,
    ):  # fmt: skip
        base, thread = shared_base(), int32(cuda.threadIdx.x)
        m_tiles = int32(int32(m + int32(63)) >> int32(6))
        matrix = quotient(int32(cuda.blockIdx.x), m_tiles)
        first_m = int32(int32(int32(cuda.blockIdx.x) - matrix * m_tiles) * int32(64))
        first_n = int32(int32(cuda.blockIdx.y) * int32(64))
        batch = quotient(matrix, groups)
        group = int32(matrix - batch * groups)
        x_at = x + int64(batch) * x_batch + int64(group) * x_group
        w_at = w + int64(batch) * w_batch + int64(group) * w_group
        b_base = int32(base + int32(4 * 64 * ROW))

        # Which words this thread brings: of A four rows 16 apart; of B four columns likewise, or where rows lie together four words.
        across = w_n == int64(1)
        row, at_k = int32(thread >> int32(4)), int32(thread & int32(15))
        b_column, b_at_k = (int32(thread & int32(63)), int32(thread >> int32(6))) if across else (row, at_k)
        column_step, k_step = (int32(0), int32(4)) if across else (int32(16), int32(0))
        m_at, n_at = int32(int32(thread >> int32(4)) * int32(4)), int32(int32(thread & int32(15)) * int32(4))
        a_at, b_at = int32(base + int32(4 * ROW) * m_at), int32(b_base + int32(4) * n_at)
        acc, a, rows, columns = (
            cuda.local.array((4, 4), int32),
            cuda.local.array((4, 4), int32),
            cuda.local.array(4, int32),
            cuda.local.array(4, int32),
        )
        for i in range(4):
            rows[i] = int32(0)
            columns[i] = int32(0)
            for j in range(4):
                acc[i, j] = int32(0)

        step = int32(0)
        while step < k:
            bring_rows(base, x_at, x_row, first_m, row, at_k, m, k, step, x_words)
            bring_columns(b_base, w_at, w_k, w_n, first_n, b_column, b_at_k, column_step, k_step, n, k, step, w_words)
            cuda.syncthreads()
            for q in range(WORDS // 4):
                if int32(step + int32(16 * q)) < k:
                    multiply(int32(a_at + int32(16 * q)), int32(b_at + int32(16 * q * COLUMNS)), acc, a, rows, columns)
            cuda.syncthreads()
            step = int32(step + int32(64))

        zero = int32(b_zero - int32(128))
        whole = int32(int32(k * a_zero) * zero)
        for j in range(4):
            column = int32(first_n + n_at + int32(j))
            if column < n:
                of_column = int64(4) * int64(column)
                start = int32(load_i32(bias + of_column) + whole - int32(a_zero * columns[j]))
                for i in range(4):
                    at_m = int32(first_m + m_at + int32(i))
                    if at_m < m:
                        total = int32(int32(acc[i, j] - int32(zero * rows[i])) + start)
                        to = y + int64(batch) * y_batch + int64(group) * y_group + int64(at_m) * y_row
                        if codes:
                            store_u8(to + int64(column), code_of(total, load_f32(scale + of_column), lo, hi, y_zero_point))
                        else:
                            store_i32(to + int64(4) * int64(column), total)

    return kernel
