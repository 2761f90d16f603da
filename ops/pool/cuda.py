"""Device kernels of pooling, channels last. A table of offsets says where a window's taps lie; the record is `device.RECORD`."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    add,
    as_float,
    cuda,
    divide,
    float32,
    int32,
    int64,
    load_f32,
    load_i32,
    multiply,
    quotient,
    store_f32,
    store_i32,
    store_u8,
    to_float,
)
from qrt.jit.lang.cuda_codes import code_of


def codes(average: bool) -> Any:
    """The largest code of each window, or the code of the mean; a thread takes four channels of a pixel."""

    def kernel(  # type: ignore[no-untyped-def]
        x, y, offsets, counts, x_batch, threads, pixels, blocks, channels, taps, flip, x_zero_point, x_scale, y_scale, low, high,
        y_zero_point,
    ):  # fmt: skip
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(threads):
            pixel = quotient(int32(i), blocks)
            channel = int32(int32(int32(i) - pixel * blocks) * int32(4))
            image = quotient(pixel, pixels)
            place = int64(int32(pixel - image * pixels))
            table = offsets + int64(4) * place * int64(taps)
            source = x + int64(image) * x_batch + int64(channel)
            a, b, c, d, valid = int32(0), int32(0), int32(0), int32(0), int32(0)
            for _ in range(taps):
                offset = load_i32(table)
                if offset >= int32(0):
                    word = int32(load_i32(source + int64(offset)) ^ flip)
                    a1, b1 = int32(word & int32(255)), int32((word >> int32(8)) & int32(255))
                    c1, d1 = int32((word >> int32(16)) & int32(255)), int32((word >> int32(24)) & int32(255))
                    if average:
                        a, b, c, d = int32(a + a1), int32(b + b1), int32(c + c1), int32(d + d1)
                        valid = int32(valid + int32(1))
                    else:
                        a, b, c, d = int32(max(a, a1)), int32(max(b, b1)), int32(max(c, c1)), int32(max(d, d1))
                table = table + int64(4)
            if average:
                count = load_i32(counts + int64(4) * place)
                factor, shift = divide(x_scale, multiply(y_scale, to_float(count))), int32(valid * x_zero_point)
                a, b = (
                    code_of(int32(a - shift), factor, low, high, y_zero_point),
                    code_of(int32(b - shift), factor, low, high, y_zero_point),
                )
                c, d = (
                    code_of(int32(c - shift), factor, low, high, y_zero_point),
                    code_of(int32(d - shift), factor, low, high, y_zero_point),
                )
            found = int32(int32(a | (b << int32(8)) | (c << int32(16)) | (d << int32(24))) ^ flip)
            at = y + int64(pixel) * int64(channels) + int64(channel)
            if int32(channels & int32(3)) == int32(0):
                store_i32(at, found)
            else:
                for e in range(4):
                    if int32(channel + int32(e)) < channels:
                        store_u8(at + int64(e), int32(found >> int32(8 * e)))

    return kernel


def floats(average: bool) -> Any:
    """The largest number of each window, no NaN, or the mean; a thread takes one channel of a pixel."""

    def kernel(  # type: ignore[no-untyped-def]
        x, y, offsets, counts, x_batch, threads, pixels, blocks, channels, taps, flip, x_zero_point, x_scale, y_scale, low, high,
        y_zero_point,
    ):  # fmt: skip
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(threads):
            pixel = quotient(int32(i), blocks)
            channel = int32(int32(i) - pixel * blocks)
            image = quotient(pixel, pixels)
            place = int64(int32(pixel - image * pixels))
            table = offsets + int64(4) * place * int64(taps)
            source = x + int64(image) * x_batch + int64(4) * int64(channel)
            found = float32(0.0) if average else as_float(int32(-0x800000))  # −∞
            for _ in range(taps):
                offset = load_i32(table)
                if offset >= int32(0):
                    number = load_f32(source + int64(offset))
                    if average:
                        found = add(found, number)
                    elif number > found:
                        found = number
                table = table + int64(4)
            if average:
                found = divide(found, to_float(load_i32(counts + int64(4) * place)))
            store_f32(y + int64(4) * i, found)

    return kernel
