"""Device kernels of softmax and the norms: a row is a warp's, and what a thread wrote only itself reads again."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    cuda,
    device,
    float32,
    int32,
    int64,
    load_f32,
    load_shared_f32,
    shared_base,
    shuffle_xor,
    square_root,
    store_f32,
    store_shared_f32,
)
from qrt.jit.lang.cuda_math import exp, log
from qrt.jit.lang.cuda_rows import add, larger, row_and_lane, row_max, row_of, row_sum, row_sum_squares


def softmax_rows(with_log: int) -> Any:
    """Softmax along the last axis."""

    def kernel(x, y, rows, n):  # type: ignore[no-untyped-def]
        row, lane = row_and_lane()
        if row < rows:
            x_at, y_at = x + int64(4) * row * int64(n), y + int64(4) * row * int64(n)
            most = row_max(x_at, n, lane, float32(0))
            i = lane
            while i < n:
                store_f32(y_at + int64(4) * int64(i), exp(load_f32(x_at + int64(4) * int64(i)) - most))
                i = int32(i + int32(32))
            total = row_sum(y_at, n, lane, float32(0))
            factor = log(total) if with_log else float32(1) / total
            i = lane
            while i < n:
                if with_log:
                    value = load_f32(x_at + int64(4) * int64(i)) - most - factor
                else:
                    value = load_f32(y_at + int64(4) * int64(i)) * factor
                store_f32(y_at + int64(4) * int64(i), value)
                i = int32(i + int32(32))

    return kernel


def softmax_columns(with_log: int) -> Any:
    """Softmax along an axis that is not the last one: each thread makes a column."""

    def kernel(x, y, columns, n, inner):  # type: ignore[no-untyped-def]
        column = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if column < columns:
            outer = column // int64(inner)
            first = int64(4) * (outer * int64(n) * int64(inner) + (column - outer * int64(inner)))
            step = int64(4) * int64(inner)
            most, total = load_f32(x + first), float32(0)
            for i in range(n):
                most = larger(most, load_f32(x + first + int64(i) * step))
            for i in range(n):
                e = exp(load_f32(x + first + int64(i) * step) - most)
                store_f32(y + first + int64(i) * step, e)
                total = total + e
            factor = log(total) if with_log else float32(1) / total
            for i in range(n):
                at = first + int64(i) * step
                store_f32(y + at, load_f32(x + at) - most - factor if with_log else load_f32(y + at) * factor)

    return kernel


def layer_norm(has_bias: int) -> Any:
    """Layer normalization of rows."""

    def kernel(x, scale, bias, y, rows, n, epsilon):  # type: ignore[no-untyped-def]
        row, lane = row_and_lane()
        if row < rows:
            x_at, y_at = x + int64(4) * row * int64(n), y + int64(4) * row * int64(n)
            mean = row_sum(x_at, n, lane, float32(0)) / float32(n)
            factor = float32(1) / square_root(row_sum_squares(x_at, n, lane, mean) / float32(n) + epsilon)
            i = lane
            while i < n:
                at = int64(4) * int64(i)
                value = (load_f32(x_at + at) - mean) * factor * load_f32(scale + at)
                store_f32(y_at + at, value + load_f32(bias + at) if has_bias else value)
                i = int32(i + int32(32))

    return kernel


def rms_norm() -> Any:
    """Root mean square normalization of rows."""

    def kernel(x, scale, y, rows, n, epsilon):  # type: ignore[no-untyped-def]
        row, lane = row_and_lane()
        if row < rows:
            x_at, y_at = x + int64(4) * row * int64(n), y + int64(4) * row * int64(n)
            factor = float32(1) / square_root(row_sum_squares(x_at, n, lane, float32(0)) / float32(n) + epsilon)
            i = lane
            while i < n:
                at = int64(4) * int64(i)
                store_f32(y_at + at, load_f32(x_at + at) * factor * load_f32(scale + at))
                i = int32(i + int32(32))

    return kernel


@device
def _size(x, p):  # type: ignore[no-untyped-def]
    return abs(x)


def lp_norm(p: int) -> Any:
    """Rows over their norm."""
    row_size = row_of(add, _size, 0.0) if p == 1 else row_sum_squares

    def kernel(x, y, rows, n):  # type: ignore[no-untyped-def]
        row, lane = row_and_lane()
        if row < rows:
            x_at, y_at = x + int64(4) * row * int64(n), y + int64(4) * row * int64(n)
            norm = row_size(x_at, n, lane, float32(0))
            if p == 2:
                norm = square_root(norm)
            norm = float32(1) if norm == float32(0) else norm
            i = lane
            while i < n:
                store_f32(y_at + int64(4) * int64(i), load_f32(x_at + int64(4) * int64(i)) / norm)
                i = int32(i + int32(32))

    return kernel


def image_norm(threads: int) -> Any:
    """Instance and group normalization: a block makes one group of one image's channels."""

    @device
    def sum_of_block(total, base, thread):  # type: ignore[no-untyped-def]
        """The sum over the block's threads, for all of them."""
        for distance in (16, 8, 4, 2, 1):
            total = add(total, shuffle_xor(total, int32(distance)))
        cuda.syncthreads()  # the last sum has been read
        if int32(thread & int32(31)) == int32(0):
            store_shared_f32(int32(base + (thread >> int32(5)) * int32(4)), total)
        cuda.syncthreads()
        total = float32(0)
        for warp in range(threads // 32):
            total = total + load_shared_f32(int32(base + int32(4 * warp)))
        return total

    def kernel(x, scale, bias, y, pixels, channels, group, epsilon):  # type: ignore[no-untyped-def]
        base, thread = shared_base(), int32(cuda.threadIdx.x)
        size = int64(pixels) * int64(group)
        first_channel = int64(cuda.blockIdx.y) * int64(group)
        first = int64(cuda.blockIdx.x) * int64(pixels) * int64(channels) + first_channel
        total = float32(0)
        for i in range(int64(thread), size, int64(threads)):
            pixel = i // int64(group)
            total = total + load_f32(x + int64(4) * (first + pixel * int64(channels) + (i - pixel * int64(group))))
        mean = sum_of_block(total, base, thread) / float32(size)
        total = float32(0)
        for i in range(int64(thread), size, int64(threads)):
            pixel = i // int64(group)
            away = load_f32(x + int64(4) * (first + pixel * int64(channels) + (i - pixel * int64(group)))) - mean
            total = total + away * away
        deviation = square_root(sum_of_block(total, base, thread) / float32(size) + epsilon)
        for i in range(int64(thread), size, int64(threads)):
            pixel = i // int64(group)
            channel = i - pixel * int64(group)
            at = int64(4) * (first + pixel * int64(channels) + channel)
            of_channel = int64(4) * (first_channel + channel)
            value = (load_f32(x + at) - mean) * (load_f32(scale + of_channel) / deviation)
            store_f32(y + at, value + load_f32(bias + of_channel))

    return kernel
