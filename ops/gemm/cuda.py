"""The matrix product on the GPU's tensor cores: uint8 rows times packed int8 columns, int32 sums, a fused epilogue.

A block of threads makes a tile of `bm` × `bn`; its warps stand `warps_m` × `warps_n` over it. K runs in steps of `bk` bytes through
`stages` buffers of shared memory, filled ahead by asynchronous copies. A row's 16-byte chunks are permuted by its number, so that the
eight rows which `load_matrix` reads at a time lie in different banks.
"""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    copies_commit,
    copies_wait,
    copy_async,
    cuda,
    device,
    int32,
    int64,
    load_i32,
    load_matrix,
    load_u8,
    mma,
    nearest,
    quotient,
    shared_base,
    store_u8,
)
from qrt.jit.lang.cuda_walk import WARP, stretch
from qrt.ops.gemm.cuda_dynamic import in_floats
from qrt.ops.gemm.cuda_out import codes_in, codes_out, sums_out


def loader(indirect: bool, bm: int, bn: int, bk: int, threads: int) -> Any:
    """What asks for a step of A and B: each thread for 16 bytes of some rows."""
    rows_a_pass = threads // (bk // 16)
    a_passes, b_passes, a_bytes = bm // rows_a_pass, bn // rows_a_pass, bm * bk

    @device
    def load_stage(to, x, x_step, tables, tap, zeros, k_at, x_left, w, w_step, x_rows):  # type: ignore[no-untyped-def]
        """`x`: this thread's chunk of each of its rows; `x_left`: bytes of k from there on; `x_rows`: rows of A from its first one on."""
        a_count = int32(min(int32(16), max(int32(0), int32(x_left - k_at))))
        for i in range(a_passes):
            count = a_count if int32(i * rows_a_pass) < x_rows else int32(0)
            source = x[0] + int64(i) * x_step
            if indirect:
                offset = load_i32(tables[i] + int64(4) * int64(tap))
                source = x[i] + int64(offset) if offset >= int32(0) else zeros
            copy_async(int32(to + int32(i * rows_a_pass * bk)), source + int64(k_at), count)
        for i in range(b_passes):
            copy_async(int32(to + int32(a_bytes + i * rows_a_pass * bk)), w + int64(i) * w_step, int32(16))

    return load_stage


def finder(indirect: bool, rows: int, passes: int) -> Any:
    """What finds the rows of A that a thread copies, `rows` apart: by a stride, or where a table of offsets says for each tap."""

    @device
    def find(x, tables, first, x_at, x_row, x_batch, offsets, pixels, taps):  # type: ignore[no-untyped-def]
        if indirect:
            for i in range(passes):
                at = int32(first + int32(i * rows))  # past the last one, another of the table's, of which nothing is copied
                image = quotient(at, pixels)
                x[i] = x_at + int64(image) * x_batch
                tables[i] = offsets + int64(4) * int64(int32(at - image * pixels)) * int64(taps)
        else:
            x[0] = x_at + int64(first) * int64(x_row)

    return find


def ahead_of(bk: int) -> Any:
    """What says where the step after one starts: steps asked for, the next one's tap, and where in that it starts."""

    @device
    def after(loaded, tap, k_at, k):  # type: ignore[no-untyped-def]
        k_at = int32(k_at + int32(bk))
        if k_at >= k:
            return int32(loaded + int32(1)), int32(tap + int32(1)), int32(0)
        return int32(loaded + int32(1)), tap, k_at

    return after


def multiplier(m_tiles: int, n_tiles: int, bk: int) -> Any:
    """What multiplies 32 bytes of k, from shared memory, for a warp's whole tile."""

    @device
    def multiply_step(a_at, a_high, a_swizzle, b_at, b_high, b_swizzle, step, acc, a, b):  # type: ignore[no-untyped-def]
        """`a_at`, `b_at`: the row that this thread names; `step`: which 32 bytes."""
        a_chunk = int32(a_at + ((int32(int32(2 * step) + a_high) ^ a_swizzle) << int32(4)))
        b_chunk = int32(b_at + ((int32(int32(2 * step) + b_high) ^ b_swizzle) << int32(4)))
        for i in range(m_tiles):
            words = load_matrix(int32(a_chunk + int32(i * 16 * bk)))
            for q in range(4):
                a[i, q] = words[q]
        for j in range(n_tiles // 2):
            words = load_matrix(int32(b_chunk + int32(j * 16 * bk)))
            b[2 * j, 0] = words[0]
            b[2 * j, 1] = words[1]
            b[2 * j + 1, 0] = words[2]
            b[2 * j + 1, 1] = words[3]
        for i in range(m_tiles):
            for j in range(n_tiles):
                total = mma(
                    (a[i, 0], a[i, 1], a[i, 2], a[i, 3]), (b[j, 0], b[j, 1]), (acc[i, j, 0], acc[i, j, 1], acc[i, j, 2], acc[i, j, 3])
                )
                for q in range(4):
                    acc[i, j, q] = total[q]

    return multiply_step


def starter(m_tiles: int, n_tiles: int) -> Any:
    """What lets a warp's accumulators start from the bias."""

    @device
    def begin(acc, bias, column):  # type: ignore[no-untyped-def]
        """`column`: this thread's first one."""
        for j in range(n_tiles):
            start = bias + int64(4) * int64(int32(column + int32(8 * j)))
            start0, start1 = load_i32(start), load_i32(start + int64(4))
            for i in range(m_tiles):
                acc[i, j, 0] = start0
                acc[i, j, 1] = start1
                acc[i, j, 2] = start0
                acc[i, j, 3] = start1

    return begin


def leaver(epilogue: str, bm: int, bn: int, warps_m: int, warps_n: int) -> Any:
    """What takes a block's sums through the epilogue to y, by way of the shared memory at `base`, which nobody reads any more."""
    codes, sums, dynamic = epilogue not in ("s32", "f32d"), epilogue in ("u8add", "u8radd"), epilogue == "f32d"
    store_sums, gather = sums_out(bm, bn, warps_m, warps_n), codes_in(bm, bn, warps_m, warps_n)
    store_codes, finish = codes_out(epilogue, bm, bn, 32 * warps_m * warps_n), in_floats(bn, warps_m, warps_n, bm // warps_m // 16)

    @device
    def leave(  # type: ignore[no-untyped-def]
        acc, base, thread, first_m, first_n, scale, y, r, m, n, lo, hi, y_zero_point,
        c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset, addend, column_sums, a_scale, a_zero_point,
    ):  # fmt: skip
        if codes:
            low, high, zero_point = lo, hi, y_zero_point
            if sums:
                low, high, zero_point = c_lo, c_hi, int32(nearest(c_zero_point) + y_zero_point)
            gather(acc, base, thread, first_n, scale, low, high, zero_point)
            cuda.syncthreads()
            store_codes(base, thread, first_m, first_n, y, r, m, n, y_zero_point, c_ratio, r_ratio, sum_offset, lo, hi)
        else:
            if dynamic:
                finish(acc, thread, first_n, scale, addend, column_sums, a_scale, a_zero_point)
            store_sums(acc, thread, first_m, first_n, y, m, n)

    return leave


def gemm(addressing: str, epilogue: str, bm: int, bn: int, bk: int, warps_m: int, warps_n: int, stages: int) -> Any:
    """y = epilogue(bias + Σ over taps and k of x · w); the record is `device.RECORD`."""
    threads = 32 * warps_m * warps_n
    tile_m, tile_n = bm // warps_m, bn // warps_n
    m_tiles, n_tiles = tile_m // 16, tile_n // 8
    chunks = bk // 16
    rows_a_pass = threads // chunks
    a_bytes = bm * bk
    stage = a_bytes + bn * bk
    swizzle_shift, swizzle_mask = (1 if bk == 64 else 0), chunks - 1
    ahead = stages - 1
    two_steps, four_steps = bk // 32 > 1, bk // 32 > 2
    wait_ahead, wait_all = copies_wait(stages - 2), copies_wait(0)
    indirect = addressing == "indirect"
    a_passes = bm // rows_a_pass
    find = finder(indirect, rows_a_pass, a_passes)
    after = ahead_of(bk)
    load_stage, multiply_step = loader(indirect, bm, bn, bk, threads), multiplier(m_tiles, n_tiles, bk)
    begin, leave = starter(m_tiles, n_tiles), leaver(epilogue, bm, bn, warps_m, warps_n)

    def kernel(  # type: ignore[no-untyped-def]
        x, x_batch, offsets, zeros, w, bias, scale, y, r, m, n, k, x_row, pixels, taps, lo, hi, y_zero_point,
        c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset, addend, column_sums, a_scale, a_zero_point,
    ):  # fmt: skip
        base = shared_base()
        thread = int32(cuda.threadIdx.x)
        lane, warp = int32(thread & int32(31)), int32(thread >> int32(5))
        warp_m, warp_n = int32(warp % int32(warps_m)), int32(warp // int32(warps_m))
        first_m, first_n = int32(int32(cuda.blockIdx.x) * int32(bm)), int32(int32(cuda.blockIdx.y) * int32(bn))

        # Which chunk of which row this thread copies, and where to.
        row, chunk = int32(thread // int32(chunks)), int32(thread % int32(chunks))
        to = int32(base + row * int32(bk) + ((chunk ^ ((row >> int32(swizzle_shift)) & int32(swizzle_mask))) << int32(4)))
        chunk_at = int32(chunk << int32(4))
        x_rows = int32(m - first_m - row)
        x_step = int64(x_row) * int64(rows_a_pass)
        steps_a_tap = int32(int32(k + int32(bk - 1)) // int32(bk))
        steps = int32(steps_a_tap * taps)
        w_row = int64(steps) * int64(bk)
        w_step = w_row * int64(rows_a_pass)
        x_left = int32(k - chunk_at)
        sources, tables = cuda.local.array(a_passes, int64), cuda.local.array(a_passes, int64)
        find(sources, tables, int32(first_m + row), x + int64(chunk_at), x_row, x_batch, offsets, pixels, taps)
        zeros_at = zeros + int64(chunk_at)
        w_at = w + int64(first_n + row) * w_row + int64(chunk_at)

        # Which rows this thread names to load_matrix.
        a_row = int32(warp_m * int32(tile_m) + (lane & int32(7)) + ((lane >> int32(3)) & int32(1)) * int32(8))
        b_row = int32(warp_n * int32(tile_n) + (lane & int32(7)) + ((lane >> int32(4)) & int32(1)) * int32(8))
        a_high, b_high = int32((lane >> int32(4)) & int32(1)), int32((lane >> int32(3)) & int32(1))
        a_swizzle = int32((a_row >> int32(swizzle_shift)) & int32(swizzle_mask))
        b_swizzle = int32((b_row >> int32(swizzle_shift)) & int32(swizzle_mask))
        a_at, b_at = int32(base + a_row * int32(bk)), int32(base + int32(a_bytes) + b_row * int32(bk))

        acc = cuda.local.array((m_tiles, n_tiles, 4), int32)
        a, b = cuda.local.array((m_tiles, 4), int32), cuda.local.array((n_tiles, 2), int32)
        begin(acc, bias, int32(first_n + warp_n * int32(tile_n) + (lane & int32(3)) * int32(2)))

        loaded, tap, k_at = int32(0), int32(0), int32(0)  # steps asked for; the next one's tap, and where in that it starts
        write, read = int32(0), int32(0)  # bytes from the first stage to the one that is filled next, and read next
        for _ in range(ahead):
            if loaded < steps:
                at = w_at + int64(loaded) * int64(bk)
                load_stage(int32(to + write), sources, x_step, tables, tap, zeros_at, k_at, x_left, at, w_step, x_rows)
            copies_commit()
            loaded, tap, k_at = after(loaded, tap, k_at, k)
            write = int32(write + int32(stage))
        for _ in range(steps):
            wait_ahead()
            cuda.syncthreads()
            if loaded < steps:
                at = w_at + int64(loaded) * int64(bk)
                load_stage(int32(to + write), sources, x_step, tables, tap, zeros_at, k_at, x_left, at, w_step, x_rows)
            copies_commit()
            loaded, tap, k_at = after(loaded, tap, k_at, k)
            multiply_step(int32(a_at + read), a_high, a_swizzle, int32(b_at + read), b_high, b_swizzle, int32(0), acc, a, b)
            if two_steps:
                multiply_step(int32(a_at + read), a_high, a_swizzle, int32(b_at + read), b_high, b_swizzle, int32(1), acc, a, b)
            if four_steps:
                multiply_step(int32(a_at + read), a_high, a_swizzle, int32(b_at + read), b_high, b_swizzle, int32(2), acc, a, b)
                multiply_step(int32(a_at + read), a_high, a_swizzle, int32(b_at + read), b_high, b_swizzle, int32(3), acc, a, b)
            write = int32(write + int32(stage)) if write != int32(ahead * stage) else int32(0)
            read = int32(read + int32(stage)) if read != int32(ahead * stage) else int32(0)
        wait_all()
        cuda.syncthreads()

        leave(
            acc, base, thread, first_m, first_n, scale, y, r, m, n, lo, hi, y_zero_point,
            c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset, addend, column_sums, a_scale, a_zero_point,
        )  # fmt: skip

    return kernel


def pad_rows() -> Any:
    """y [m][y_row] = rows of k bytes of x, then zeros: each thread makes 16 bytes, of which y_row is a multiple."""

    def kernel(x, y, m, k, y_row):  # type: ignore[no-untyped-def]
        one, end = stretch(16)
        row = one // int64(y_row)
        here = int32(one - row * int64(y_row))
        for at in range(one, min(end, int64(m) * int64(y_row)), WARP):
            store_u8(y + at, load_u8(x + row * int64(k) + int64(here)) if here < k else int32(0))
            here = int32(here + int32(WARP))
            while here >= y_row:
                here, row = int32(here - y_row), row + int64(1)

    return kernel
