"""Device kernels that move elements."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    cuda,
    device,
    int32,
    int64,
    load4,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    quotient,
    store4,
    store_i32,
    store_i64,
    store_u8,
    store_u16,
)


def mover(size: int) -> Any:
    """What copies an element of `size` bytes: 1, 2, 4, 8 or 16, of which both addresses are multiples."""
    load = {1: load_u8, 2: load_u16, 4: load_i32, 8: load_i64, 16: load4}[size]
    store = {1: store_u8, 2: store_u16, 4: store_i32, 8: store_i64, 16: store4}[size]

    @device
    def move(x, y):  # type: ignore[no-untyped-def]
        store(y, load(x))

    return move


def strided(size: int) -> Any:
    """One strided copy along six axes: each thread moves one of n elements; strides are in bytes, y's last axis is fastest."""
    move = mover(size)

    def kernel(x, y, n, n1, n2, n3, n4, n5, s0, s1, s2, s3, s4, s5, t0, t1, t2, t3, t4, t5):  # type: ignore[no-untyped-def]
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(n):
            source, to, rest = x, y, int32(i)
            for extent, s, t in ((n5, s5, t5), (n4, s4, t4), (n3, s3, t3), (n2, s2, t2), (n1, s1, t1)):
                outer = quotient(rest, extent)
                index = int64(int32(rest - outer * extent))
                source, to, rest = source + index * s, to + index * t, outer
            move(source + int64(rest) * s0, to + int64(rest) * t0)

    return kernel
