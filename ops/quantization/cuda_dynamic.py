"""Device kernels of DynamicQuantize: the range of each part of a tensor, then its codes."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    as_float,
    clamp,
    cuda,
    device,
    divide,
    float32,
    int32,
    int64,
    load4,
    load_f32,
    load_shared_f32,
    nearest,
    shared_base,
    shuffle_xor,
    store4,
    store_f32,
    store_shared_f32,
    store_u8,
    to_float,
)
from qrt.jit.lang.cuda_rows import larger, smaller


@device
def range_of_warp(low, high):  # type: ignore[no-untyped-def]
    """The least and the largest number of the warp's threads, for all of them."""
    for distance in (16, 8, 4, 2, 1):
        low = smaller(low, shuffle_xor(low, int32(distance)))
        high = larger(high, shuffle_xor(high, int32(distance)))
    return low, high


def range_of(threads: int) -> Any:
    """ranges[k] = the least and the largest number of part k, and 0: a block finds them. `part` is a multiple of four."""
    warps = threads // 32

    def kernel(x, ranges, n, part):  # type: ignore[no-untyped-def]
        base, thread = shared_base(), int32(cuda.threadIdx.x)
        first = int64(cuda.blockIdx.x) * int64(part)
        last = min(first + int64(part), n)
        low, high = float32(0), float32(0)
        i = first + int64(4) * int64(thread)
        while i + int64(4) <= last:
            words = load4(x + int64(4) * i)
            for e in range(4):
                low, high = smaller(low, as_float(words[e])), larger(high, as_float(words[e]))
            i += int64(4 * threads)
        for at in range(i, last):
            low, high = smaller(low, load_f32(x + int64(4) * at)), larger(high, load_f32(x + int64(4) * at))
        low, high = range_of_warp(low, high)
        if int32(thread & int32(31)) == int32(0):
            place = int32(base + (thread >> int32(5)) * int32(8))
            store_shared_f32(place, low)
            store_shared_f32(int32(place + int32(4)), high)
        cuda.syncthreads()
        if thread == int32(0):
            for warp in range(1, warps):
                low = smaller(low, load_shared_f32(int32(base + int32(8 * warp))))
                high = larger(high, load_shared_f32(int32(base + int32(8 * warp + 4))))
            to = ranges + int64(8) * int64(cuda.blockIdx.x)
            store_f32(to, low)
            store_f32(to + int64(4), high)

    return kernel


@device
def range_of_parts(ranges, parts):  # type: ignore[no-untyped-def]
    """The least and the largest number of all parts: every warp finds them for itself."""
    low, high, k = float32(0), float32(0), int32(int32(cuda.threadIdx.x) & int32(31))
    while k < parts:
        low = smaller(low, load_f32(ranges + int64(8) * int64(k)))
        high = larger(high, load_f32(ranges + int64(8) * int64(k) + int64(4)))
        k = int32(k + int32(32))
    return range_of_warp(low, high)


def dynamic_quantize() -> Any:
    """Codes, scale and zero point, after range_of: each thread makes 16 neighbours."""

    @device
    def code(x, scale, zero):  # type: ignore[no-untyped-def]
        steps = clamp(divide(x, scale), to_float(int32(-zero)), to_float(int32(int32(255) - zero)))
        return int32(nearest(steps) + zero)

    @device
    def word(x, i, scale, zero):  # type: ignore[no-untyped-def]
        """Four codes."""
        values = load4(x + int64(4) * i)
        codes = int32(0)
        for e in range(4):
            codes = int32(codes | (code(as_float(values[e]), scale, zero) << int32(8 * e)))
        return codes

    def kernel(x, y, scale_at, zero_at, ranges, n, parts):  # type: ignore[no-untyped-def]
        low, high = range_of_parts(ranges, parts)
        scale = float32(1) if low == high else divide(high - low, float32(255))
        zero = int32(nearest(clamp(divide(-low, scale), float32(0), float32(255))))
        thread = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if thread == int64(0):
            store_f32(scale_at, scale)
            store_u8(zero_at, zero)
        i = int64(16) * thread
        if i + int64(16) <= n:
            words = (word(x, i, scale, zero), word(x, i + int64(4), scale, zero))
            store4(y + i, (words[0], words[1], word(x, i + int64(8), scale, zero), word(x, i + int64(12), scale, zero)))
        else:
            for at in range(i, n):
                store_u8(y + at, code(load_f32(x + int64(4) * at), scale, zero))

    return kernel
