"""Device kernels that move what indices point at."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import cuda, int32, int64, load4, load_i32, load_i64, load_u8, quotient, store4, store_i32, store_i64, store_u8


def gather(piece: int, index_size: int) -> Any:
    """y [outer][count][inner] = x [outer][extent][inner] where each of `count` indices points, `inner` pieces of 16, 4 or 1 bytes.

    A negative index counts from the end. One out of range is left in `refused`, and clamped. Each thread moves a piece, of n.
    """

    def kernel(x, y, index, refused, n, count, extent, inner):  # type: ignore[no-untyped-def]
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(n):
            row = quotient(int32(i), inner)
            column, outer = int32(int32(i) - row * inner), quotient(row, count)
            which = int64(int32(row - outer * count))
            given = load_i64(index + int64(8) * which) if index_size == 8 else int64(load_i32(index + int64(4) * which))
            found = given + int64(extent) if given < int64(0) else given
            if found < int64(0) or found >= int64(extent):
                store_i64(refused, given)
                found = max(int64(0), min(found, int64(extent) - int64(1)))
            source = x + int64(piece) * ((int64(outer) * int64(extent) + found) * int64(inner) + int64(column))
            to = y + int64(piece) * i
            if piece == 16:
                store4(to, load4(source))
            elif piece == 4:
                store_i32(to, load_i32(source))
            else:
                store_u8(to, load_u8(source))

    return kernel
