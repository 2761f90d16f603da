"""Device kernels that move elements."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import cuda, int64, load_i32, load_u8, store_i32, store_u8


def strided(size: int) -> Any:
    """One strided copy along six axes of elements of 1 or 4 bytes: each thread moves one; n elements, y's last axis fastest."""
    step = size

    def kernel(x, y, n, n1, n2, n3, n4, n5, s0, s1, s2, s3, s4, s5, t0, t1, t2, t3, t4, t5):  # type: ignore[no-untyped-def]
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < n:
            source, to, rest = int64(0), int64(0), i
            for extent, s, t in ((n5, s5, t5), (n4, s4, t4), (n3, s3, t3), (n2, s2, t2), (n1, s1, t1)):
                outer = rest // extent
                index = rest - outer * extent
                source, to, rest = source + index * s, to + index * t, outer
            source, to = (source + rest * s0) * int64(step), (to + rest * t0) * int64(step)
            if step == 1:
                store_u8(y + to, load_u8(x + source))
            else:
                store_i32(y + to, load_i32(x + source))

    return kernel
