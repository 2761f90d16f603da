"""Device kernels of resizing: two neighbouring axes, read through tables; a thread makes one element of n. The record is in `device.py`."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    add,
    clamp,
    cuda,
    device,
    float32,
    int32,
    int64,
    load4,
    load_f32,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    multiply,
    nearest,
    quotient,
    store4,
    store_f32,
    store_i32,
    store_i64,
    store_u8,
    store_u16,
    to_float,
)


@device
def place(i, rows, columns, inner):  # type: ignore[no-untyped-def]
    """Of element i: its image, row and column, and its place in its pixel."""
    pixel = quotient(int32(i), inner)
    line = quotient(pixel, columns)
    image = quotient(line, rows)
    return image, int32(line - image * rows), int32(pixel - line * columns), int32(i - pixel * inner)


def copied(size: int) -> Any:
    """Each pixel is a copy of one of x, in elements of `size` bytes."""
    load = {1: load_u8, 2: load_u16, 4: load_i32, 8: load_i64, 16: load4}[size]
    store = {1: store_u8, 2: store_u16, 4: store_i32, 8: store_i64, 16: store4}[size]

    def kernel(x, y, row_of, column_of, n, rows, columns, inner, x_rows, x_columns):  # type: ignore[no-untyped-def]
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(n):
            image, row, column, k = place(int32(i), rows, columns, inner)
            line = int64(image) * int64(x_rows) + int64(load_i32(row_of + int64(4) * int64(row)))
            at = (line * int64(x_columns) + int64(load_i32(column_of + int64(4) * int64(column)))) * int64(inner) + int64(k)
            store(y + i * int64(size), load(x + at * int64(size)))

    return kernel


def linear(codes: int) -> Any:
    """Each element is a mean of four of x: float32, or codes that are requantized."""

    @device
    def read(x, at, x_zero_point):  # type: ignore[no-untyped-def]
        return to_float(int32(load_u8(x + at) - x_zero_point)) if codes else load_f32(x + int64(4) * at)

    @device
    def mean(a, b, far):  # type: ignore[no-untyped-def]
        return add(multiply(a, add(float32(1.0), -far)), multiply(b, far))

    def kernel(  # type: ignore[no-untyped-def]
        x, y, row_of, column_of, n, rows, columns, inner, x_rows, x_columns, row_part, column_part, multiplier, low, high, x_zero_point,
        y_zero_point,
    ):  # fmt: skip
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(n):
            image, row, column, k = place(int32(i), rows, columns, inner)
            above, left = load_i32(row_of + int64(4) * int64(row)), load_i32(column_of + int64(4) * int64(column))
            below, right = int32(min(int32(above + int32(1)), int32(x_rows - 1))), int32(min(int32(left + int32(1)), int32(x_columns - 1)))
            down, far = load_f32(row_part + int64(4) * int64(row)), load_f32(column_part + int64(4) * int64(column))
            first = int64(image) * int64(x_rows)
            above_at, below_at = (first + int64(above)) * int64(x_columns), (first + int64(below)) * int64(x_columns)
            p = read(x, (above_at + int64(left)) * int64(inner) + int64(k), x_zero_point)
            q = read(x, (above_at + int64(right)) * int64(inner) + int64(k), x_zero_point)
            s = read(x, (below_at + int64(left)) * int64(inner) + int64(k), x_zero_point)
            t = read(x, (below_at + int64(right)) * int64(inner) + int64(k), x_zero_point)
            found = mean(mean(p, q, far), mean(s, t, far), down)
            if codes:
                store_u8(y + i, int32(nearest(clamp(multiply(found, multiplier), low, high)) + y_zero_point))
            else:
                store_f32(y + int64(4) * i, found)

    return kernel
