"""Convolutions of floats in several groups on the device: a thread makes one channel of a pixel, or four neighbouring ones of a depthwise
convolution, and reads its window by a table of offsets. Sums are in the CPU's order: taps, and in a tap k."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import as_bits, as_float, cuda, device, fma, int32, int64, load4, load_f32, load_i32, quotient, store4, store_f32


def windows(residual: int, piece: int) -> Any:
    """y [images][pixels][channels] = bound(bias + Σ over taps and k of x · w [+ r]); the record is `device_float.RECORD`."""

    @device
    def finish(value, r, at, lo, hi):  # type: ignore[no-untyped-def]
        if residual:
            value = value + load_f32(r + at)
        value = lo if value < lo else value
        return hi if value > hi else value  # a NaN stays

    @device
    def one(x, tables, w, start, taps, k, channels):  # type: ignore[no-untyped-def]
        total = start
        for tap in range(taps):
            offset = load_i32(tables + int64(4) * int64(tap))
            if offset >= int32(0):
                for c in range(k):
                    weight = load_f32(w + int64(4) * int64(int32(tap * k + c)) * int64(channels))
                    total = fma(load_f32(x + int64(offset) + int64(4) * int64(c)), weight, total)
        return total

    @device
    def four(x, tables, w, start, taps, channels):  # type: ignore[no-untyped-def]
        """Those of a depthwise convolution: one input channel each."""
        a, b, c, d = as_float(start[0]), as_float(start[1]), as_float(start[2]), as_float(start[3])
        for tap in range(taps):
            offset = load_i32(tables + int64(4) * int64(tap))
            if offset >= int32(0):
                left, right = load4(x + int64(offset)), load4(w + int64(4) * int64(tap) * int64(channels))
                a, b = fma(as_float(left[0]), as_float(right[0]), a), fma(as_float(left[1]), as_float(right[1]), b)
                c, d = fma(as_float(left[2]), as_float(right[2]), c), fma(as_float(left[3]), as_float(right[3]), d)
        return a, b, c, d

    def kernel(x, offsets, w, bias, y, r, x_image, threads, pixels, taps, k, n, channels, lo, hi):  # type: ignore[no-untyped-def]
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(threads):
            pieces = int32(channels // int32(piece))
            place = quotient(int32(i), pieces)
            channel = int32(int32(int32(i) - place * pieces) * int32(piece))
            image = quotient(place, pixels)
            tables = offsets + int64(4) * int64(int32(place - image * pixels)) * int64(taps)
            x_at = x + int64(image) * x_image + int64(4) * int64(int32(quotient(channel, n) * k))
            of_channel = int64(4) * int64(channel)
            at = int64(4) * i * int64(piece)
            if piece == 4:
                a, b, c, d = four(x_at, tables, w + of_channel, load4(bias + of_channel), taps, channels)
                a, b = finish(a, r, at, lo, hi), finish(b, r, at + int64(4), lo, hi)
                c, d = finish(c, r, at + int64(8), lo, hi), finish(d, r, at + int64(12), lo, hi)
                store4(y + at, (as_bits(a), as_bits(b), as_bits(c), as_bits(d)))
            else:
                total = one(x_at, tables, w + of_channel, load_f32(bias + of_channel), taps, k, channels)
                store_f32(y + at, finish(total, r, at, lo, hi))

    return kernel
