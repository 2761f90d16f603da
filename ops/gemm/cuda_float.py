"""The product of floats: tiles through shared memory, sums by fused multiply-adds in the order of k, as on the CPU.

A block of 256 threads makes a tile of `bm` × `bn`; each thread `bm` / 16 neighbouring rows by `bn` / 16 columns, in fours that lie 64
apart. k runs in steps of 16 through two buffers: while one is read, the next step's elements are on their way to registers, and then to
the other.
"""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    as_bits,
    as_float,
    cuda,
    device,
    float32,
    fma,
    int32,
    int64,
    load4_shared,
    load_f32,
    load_i32,
    quotient,
    shared_base,
    store4,
    store_f32,
    store_shared_f32,
)

BK, THREADS = 16, 256


def rows_of(indirect: int, passes: int) -> Any:
    """What gives the elements of A at column kk that a thread brings, its rows 16 apart: by a stride, or where a table of offsets says."""

    @device
    def find(x, tables, first, x_at, x_row, x_image, offsets, m, pixels, taps):  # type: ignore[no-untyped-def]
        for p in range(passes):
            row = int32(min(int32(first + int32(16 * p)), int32(m - int32(1))))  # past the last one, that one again: never stored
            if indirect:
                image = quotient(row, pixels)
                x[p] = x_at + int64(image) * x_image
                tables[p] = offsets + int64(4) * int64(int32(row - image * pixels)) * int64(taps)
            else:
                x[p] = x_at + int64(row) * x_row

    @device
    def bring(values, x, tables, kk, k, k_all):  # type: ignore[no-untyped-def]
        tap = quotient(kk, k) if indirect else int32(0)
        column = int64(4) * int64(int32(kk - tap * k))
        for p in range(passes):
            values[p] = float32(0)
            if kk < k_all:
                if indirect:
                    offset = load_i32(tables[p] + int64(4) * int64(tap))
                    if offset >= int32(0):
                        values[p] = load_f32(x[p] + int64(offset) + column)
                else:
                    values[p] = load_f32(x[p] + column)

    return find, bring


def multiplier(rows: int, fours: int, bn: int) -> Any:
    """What multiplies a step from shared memory: `rows` rows of a thread by `fours` times four columns."""
    columns = 4 * fours

    @device
    def multiply_step(a_at, b_at, acc):  # type: ignore[no-untyped-def]
        a = cuda.local.array((rows, 4), float32)
        b = cuda.local.array(columns, float32)
        for k4 in range(BK // 4):
            for i in range(rows):
                words = load4_shared(int32(a_at + int32(4 * (i * (BK + 4) + 4 * k4))))
                for e in range(4):
                    a[i, e] = as_float(words[e])
            for e in range(4):
                for q in range(fours):
                    words = load4_shared(int32(b_at + int32(4 * ((4 * k4 + e) * (bn + 4) + 64 * q))))
                    for c in range(4):
                        b[4 * q + c] = as_float(words[c])
                for i in range(rows):
                    for j in range(columns):
                        acc[i, j] = fma(a[i, e], b[j], acc[i, j])

    return multiply_step


def out(rows: int, fours: int, residual: int) -> Any:
    """What stores a thread's results, within their bounds: four at once where rows are `wide`."""

    @device
    def finish(value, r, at, lo, hi):  # type: ignore[no-untyped-def]
        if residual:
            value = value + load_f32(r + at)
        value = lo if value < lo else value
        return hi if value > hi else value  # a NaN stays

    @device
    def store(acc, first_m, first_n, y, r, y_row, m, n, wide, lo, hi):  # type: ignore[no-untyped-def]
        for i in range(rows):
            row = int32(first_m + int32(i))
            if row < m:
                for q in range(fours):
                    column = int32(first_n + int32(64 * q))
                    at = int64(row) * y_row + int64(4) * int64(column)
                    if wide != int32(0):
                        if column < n:
                            a, b = finish(acc[i, 4 * q], r, at, lo, hi), finish(acc[i, 4 * q + 1], r, at + int64(4), lo, hi)
                            c, d = finish(acc[i, 4 * q + 2], r, at + int64(8), lo, hi), finish(acc[i, 4 * q + 3], r, at + int64(12), lo, hi)
                            store4(y + at, (as_bits(a), as_bits(b), as_bits(c), as_bits(d)))
                    else:
                        for e in range(4):
                            if int32(column + int32(e)) < n:
                                here = at + int64(4 * e)
                                store_f32(y + here, finish(acc[i, 4 * q + e], r, here, lo, hi))

    return store


def gemm(indirect: int, residual: int, bm: int, bn: int) -> Any:
    """y = bound(bias + Σ x · w [+ r]) for each of a grid of matrices; the record is `device_float.RECORD`."""
    rows, fours, columns = bm // 16, bn // 64, bn // 16
    a_passes, b_passes = bm * BK // THREADS, bn * BK // THREADS
    a_bytes = 4 * bm * (BK + 4)
    stage = a_bytes + 4 * BK * (bn + 4)
    find, bring = rows_of(indirect, a_passes)
    multiply_step, store = multiplier(rows, fours, bn), out(rows, fours, residual)

    @device
    def bring_columns(values, w, kk, kk_step, column, column_step, w_k, w_n, k_all, n):  # type: ignore[no-untyped-def]
        """Elements of B: from row kk and a column on, in steps of rows or of columns."""
        for p in range(b_passes):
            row, here = int32(kk + int32(p) * kk_step), int32(column + int32(p) * column_step)
            values[p] = float32(0)
            if row < k_all and here < n:
                values[p] = load_f32(w + int64(row) * w_k + int64(here) * w_n)

    @device
    def put(a, b, a_to, b_to, b_step):  # type: ignore[no-untyped-def]
        for p in range(a_passes):
            store_shared_f32(int32(a_to + int32(4 * 16 * p * (BK + 4))), a[p])
        for p in range(b_passes):
            store_shared_f32(int32(b_to + int32(p) * b_step), b[p])

    def kernel(  # type: ignore[no-untyped-def]
        x, offsets, w, bias, y, r, x_row, x_image, w_k, w_n, y_row, x_batch, x_group, w_batch, w_group, y_batch, y_group,
        groups, m, n, k, pixels, taps, wide, lo, hi,
    ):  # fmt: skip
        base, thread = shared_base(), int32(cuda.threadIdx.x)
        m_tiles = int32(int32(m + int32(bm - 1)) // int32(bm))
        matrix = quotient(int32(cuda.blockIdx.x), m_tiles)
        first_m = int32(int32(int32(cuda.blockIdx.x) - matrix * m_tiles) * int32(bm))
        first_n = int32(int32(cuda.blockIdx.y) * int32(bn))
        batch = quotient(matrix, groups)
        group = int32(matrix - batch * groups)
        w_at = w + int64(batch) * w_batch + int64(group) * w_group
        y_at = int64(batch) * y_batch + int64(group) * y_group
        k_all = int32(k * taps)

        # Which elements of A and B this thread brings, and where to.
        row, kk = int32(thread // int32(BK)), int32(thread % int32(BK))
        sources, tables = cuda.local.array(a_passes, int64), cuda.local.array(a_passes, int64)
        find(
            sources,
            tables,
            int32(first_m + row),
            x + int64(batch) * x_batch + int64(group) * x_group,
            x_row,
            x_image,
            offsets,
            m,
            pixels,
            taps,
        )
        across = w_n == int64(4)  # neighbours in a row of B lie together: threads bring rows; else columns
        b_kk = int32(thread // int32(bn)) if across else kk
        b_column = int32(thread % int32(bn)) if across else row
        kk_step, column_step = int32(THREADS // bn) if across else int32(0), int32(0) if across else int32(THREADS // BK)
        a_to = int32(base + int32(4) * int32(row * int32(BK + 4) + kk))
        b_to = int32(base + int32(a_bytes) + int32(4) * int32(b_kk * int32(bn + 4) + b_column))
        b_step = int32(int32(4) * int32(kk_step * int32(bn + 4) + column_step))

        # Which results it makes.
        m_at, n_at = int32(int32(thread >> int32(4)) * int32(rows)), int32(int32(thread & int32(15)) * int32(4))
        a_at = int32(base + int32(4 * (BK + 4)) * m_at)
        b_at = int32(base + int32(a_bytes) + int32(4) * n_at)
        acc = cuda.local.array((rows, columns), float32)
        for j in range(columns):
            start = load_f32(bias + int64(4) * int64(first_n + n_at + int32(64 * (j // 4) + j % 4)))
            for i in range(rows):
                acc[i, j] = start

        a, b = cuda.local.array(a_passes, float32), cuda.local.array(b_passes, float32)
        bring(a, sources, tables, kk, k, k_all)
        bring_columns(b, w_at, b_kk, kk_step, int32(first_n + b_column), column_step, w_k, w_n, k_all, n)
        put(a, b, a_to, b_to, b_step)
        cuda.syncthreads()
        at, step = int32(0), int32(BK)
        while step < k_all:
            bring(a, sources, tables, int32(step + kk), k, k_all)
            bring_columns(b, w_at, int32(step + b_kk), kk_step, int32(first_n + b_column), column_step, w_k, w_n, k_all, n)
            multiply_step(int32(a_at + at), int32(b_at + at), acc)
            at = int32(int32(stage) - at)
            put(a, b, int32(a_to + at), int32(b_to + at), b_step)
            cuda.syncthreads()
            step = int32(step + int32(BK))
        multiply_step(int32(a_at + at), int32(b_at + at), acc)
        store(acc, int32(first_m + m_at), int32(first_n + n_at), y + y_at, r + y_at, y_row, m, n, wide, lo, hi)

    return kernel
