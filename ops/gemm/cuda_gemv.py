"""The product of a few rows, which reads every weight once and has nothing else to wait for: a warp makes a column, with dp4a.

Each thread multiplies every 32nd chunk of 16 bytes; their sums are added up, and thread r finishes row r.
"""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    add,
    cuda,
    dp4a,
    int32,
    int64,
    load4,
    load_f32,
    load_i32,
    load_u8,
    multiply,
    nearest,
    shuffle_xor,
    store_f32,
    store_i32,
    store_u8,
    to_float,
)
from qrt.jit.lang.cuda_codes import adder, code_of


def gemv(epilogue: str, rows: int) -> Any:
    """y = epilogue(bias + Σ over taps and k of x · w) for m ≤ `rows` rows; the record is `device.RECORD`."""
    codes, sums, dynamic = epilogue not in ("s32", "f32d"), epilogue in ("u8add", "u8radd"), epilogue == "f32d"
    sum_of, _ = adder(epilogue == "u8radd")

    def kernel(  # type: ignore[no-untyped-def]
        x, x_batch, offsets, zeros, w, bias, scale, y, r, m, n, k, x_row, pixels, taps, lo, hi, y_zero_point,
        c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset, addend, column_sums, a_scale, a_zero_point,
    ):  # fmt: skip
        thread = int32(cuda.threadIdx.x)
        lane, column = int32(thread & int32(31)), int32(int32(cuda.blockIdx.y) * int32(8) + (thread >> int32(5)))
        chunks = int32(int32(k + int32(15)) >> int32(4))
        w_at = w + int64(column) * int64(taps) * int64(chunks) * int64(16)
        acc = cuda.local.array(rows, int32)
        for i in range(rows):
            acc[i] = int32(0)
        for _ in range(taps):
            chunk = lane
            while chunk < chunks:
                at = int64(16) * int64(chunk)
                b = load4(w_at + at)
                for i in range(rows):
                    a = load4(x + int64(min(int32(i), int32(m - int32(1)))) * int64(x_row) + at)
                    acc[i] = dp4a(a[3], b[3], dp4a(a[2], b[2], dp4a(a[1], b[1], dp4a(a[0], b[0], acc[i]))))
                chunk = int32(chunk + int32(32))
            w_at += int64(16) * int64(chunks)
        total = int32(0)
        for i in range(rows):
            whole = acc[i]
            for distance in (16, 8, 4, 2, 1):
                whole = int32(whole + shuffle_xor(whole, int32(distance)))
            if lane == int32(i):
                total = whole
        if lane < m and column < n:
            of_column = int64(4) * int64(column)
            at = int64(lane) * int64(n) + int64(column)
            total = int32(total + load_i32(bias + of_column))
            if codes:
                low, high, zero_point = lo, hi, y_zero_point
                if sums:
                    low, high, zero_point = c_lo, c_hi, int32(nearest(c_zero_point) + y_zero_point)
                code = code_of(total, load_f32(scale + of_column), low, high, zero_point)
                if sums:
                    code = sum_of(code, load_u8(r + at), y_zero_point, c_ratio, r_ratio, sum_offset, lo, hi)
                store_u8(y + at, code)
            elif dynamic:
                correction = int32(load_u8(a_zero_point) * load_i32(column_sums + of_column))
                factor = multiply(load_f32(a_scale), load_f32(scale + of_column))
                real = add(multiply(to_float(int32(total - correction)), factor), load_f32(addend + of_column))
                store_f32(y + int64(4) * at, real)
            else:
                store_i32(y + int64(4) * at, total)

    return kernel
