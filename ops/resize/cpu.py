"""Kernels of resizing: two neighbouring axes, read through tables; lanes run over what lies inside them."""

from __future__ import annotations

import numpy as np

from qrt.jit.lang import f32, fields, i32, share, u8, u16, u32, u64
from qrt.jit.lang.rounding import round_clamp

_POINTER = {1: u8, 2: u16, 4: u32, 8: u64}


def nearest(size):  # type: ignore[no-untyped-def]
    """Each pixel is a copy of one of x, in elements of `size` bytes."""
    pointer = _POINTER[size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, row_of, column_of = pointer(r.x), pointer(r.y), i32(r.row_of), i32(r.column_of)
        inner, columns, pixel = r.inner, r.columns, r.y_pixel
        lo, hi = share(r.outer * r.rows, tid, nthreads)
        for row in range(lo, hi):
            line = (row // r.rows * r.x_rows + row_of[row % r.rows]) * r.x_columns
            to = row * columns * pixel
            if inner == 1 and pixel == 1:
                for j in range(columns):
                    y[to + j] = x[line + column_of[j]]
            else:
                for j in range(columns):
                    at = (line + column_of[j]) * inner
                    for c in range(inner):
                        y[to + c] = x[at + c]
                    to += pixel

    return kernel


def linear(codes):  # type: ignore[no-untyped-def]
    """Each pixel is a mean of four of x: float32, or codes that are requantized."""
    pointer = u8 if codes else f32
    one = np.float32(1)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, row_of, column_of = pointer(r.x), pointer(r.y), i32(r.row_of), i32(r.column_of)
        row_part, column_part = f32(r.row_part), f32(r.column_part)
        inner = r.inner
        lo, hi = share(r.outer * r.rows, tid, nthreads)
        for row in range(lo, hi):
            i = row % r.rows
            image = row // r.rows * r.x_rows
            above = (image + row_of[i]) * r.x_columns
            below = (image + min(row_of[i] + 1, r.x_rows - 1)) * r.x_columns
            down = row_part[i]
            up = one - down
            for j in range(r.columns):
                left, right = column_of[j] * inner, min(column_of[j] + 1, r.x_columns - 1) * inner
                a, b, c, d = above * inner + left, above * inner + right, below * inner + left, below * inner + right
                far = column_part[j]
                near = one - far
                to = (row * r.columns + j) * r.y_pixel
                for k in range(inner):
                    if codes:
                        p, q = np.float32(x[a + k] - r.x_zero_point), np.float32(x[b + k] - r.x_zero_point)
                        s, t = np.float32(x[c + k] - r.x_zero_point), np.float32(x[d + k] - r.x_zero_point)
                        mean = (p * near + q * far) * up + (s * near + t * far) * down
                        y[to + k] = round_clamp(mean * r.multiplier, r.low, r.high, r.y_zero_point)
                    else:
                        y[to + k] = (x[a + k] * near + x[b + k] * far) * up + (x[c + k] * near + x[d + k] * far) * down

    return kernel
