"""How a tile of accumulators leaves the tensor cores: as it is, or as codes that are gathered in shared memory and stored in whole rows.

Of 16 × 8 accumulators, thread t of a warp has rows t / 4 + {0, 8} and columns 2 (t % 4) + {0, 1}.
"""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    device,
    int32,
    int64,
    load4,
    load4_shared,
    load_f32,
    load_shared_u8,
    load_u8,
    store2,
    store4,
    store_i32,
    store_shared_u16,
    store_u8,
)
from qrt.jit.lang.cuda_codes import adder, code_of, looked_up

__all__ = ["codes_in", "codes_out", "sums_out"]


def sums_out(bm: int, bn: int, warps_m: int, warps_n: int) -> Any:
    """What stores accumulators as they are."""
    tile_m, tile_n = bm // warps_m, bn // warps_n
    m_tiles, n_tiles = tile_m // 16, tile_n // 8

    @device
    def store(acc, thread, first_m, first_n, y, m, n):  # type: ignore[no-untyped-def]
        lane, warp = int32(thread & int32(31)), int32(thread >> int32(5))
        warp_m, warp_n = int32(warp % int32(warps_m)), int32(warp // int32(warps_m))
        column = int32(first_n + warp_n * int32(tile_n) + (lane & int32(3)) * int32(2))
        for i in range(m_tiles):
            for h in range(2):
                at_m = int32(first_m + warp_m * int32(tile_m) + int32(16 * i + 8 * h) + (lane >> int32(2)))
                here = y + int64(4) * (int64(at_m) * int64(n) + int64(column))
                left = int32(n - column) if at_m < m else int32(0)
                if int32(n & int32(1)) == int32(0):
                    for j in range(n_tiles):
                        if int32(8 * j) < left:
                            store2(here + int64(32 * j), acc[i, j, 2 * h], acc[i, j, 2 * h + 1])
                else:
                    for j in range(n_tiles):
                        if int32(8 * j) < left:
                            store_i32(here + int64(32 * j), acc[i, j, 2 * h])
                        if int32(8 * j + 1) < left:
                            store_i32(here + int64(32 * j + 4), acc[i, j, 2 * h + 1])

    return store


def codes_in(bm: int, bn: int, warps_m: int, warps_n: int) -> Any:
    """What gathers a tile's codes in shared memory, where rows lie bn + 16 bytes apart: in other banks."""
    tile_m, tile_n, out_row = bm // warps_m, bn // warps_n, bn + 16
    m_tiles, n_tiles = tile_m // 16, tile_n // 8

    @device
    def gather(acc, base, thread, first_n, scale, low, high, zero_point):  # type: ignore[no-untyped-def]
        lane, warp = int32(thread & int32(31)), int32(thread >> int32(5))
        warp_m, warp_n = int32(warp % int32(warps_m)), int32(warp // int32(warps_m))
        for j in range(n_tiles):
            column = int32(warp_n * int32(tile_n) + int32(8 * j) + (lane & int32(3)) * int32(2))
            factors = scale + int64(4) * int64(first_n + column)
            factor0, factor1 = load_f32(factors), load_f32(factors + int64(4))
            for i in range(m_tiles):
                for h in range(2):
                    at_m = int32(warp_m * int32(tile_m) + int32(16 * i + 8 * h) + (lane >> int32(2)))
                    code0 = code_of(acc[i, j, 2 * h], factor0, low, high, zero_point)
                    code1 = code_of(acc[i, j, 2 * h + 1], factor1, low, high, zero_point)
                    store_shared_u16(int32(base + at_m * int32(out_row) + column), int32(code0 | (code1 << int32(8))))

    return gather


def codes_out(epilogue: str, bm: int, bn: int, threads: int) -> Any:
    """What stores the gathered codes in whole rows, with the residual added; or looked up in the table at `r`."""
    out_row, out_chunks = bn + 16, bn // 16
    rows_an_out_pass = threads // out_chunks
    sums, looks_up = epilogue in ("u8add", "u8radd"), epilogue == "u8t"
    sum_of, sums_of = adder(epilogue == "u8radd")

    @device
    def store(base, thread, first_m, first_n, y, r, m, n, y_zero_point, c_ratio, r_ratio, sum_offset, lo, hi):  # type: ignore[no-untyped-def]
        out_m, out_n = int32(thread // int32(out_chunks)), int32(int32(thread % int32(out_chunks)) * int32(16))
        columns = int32(n - first_n - out_n)
        for p in range(bm // rows_an_out_pass):
            at_m = int32(out_m + int32(p * rows_an_out_pass))
            here = int32(base + at_m * int32(out_row) + out_n)
            at = int64(first_m + at_m) * int64(n) + int64(first_n + out_n)
            if int32(first_m + at_m) < m:
                if int32(n & int32(15)) == int32(0):
                    if int32(0) < columns:
                        c = load4_shared(here)
                        if sums:
                            d = load4(r + at)
                            c = (
                                sums_of(c[0], d[0], y_zero_point, c_ratio, r_ratio, sum_offset, lo, hi),
                                sums_of(c[1], d[1], y_zero_point, c_ratio, r_ratio, sum_offset, lo, hi),
                                sums_of(c[2], d[2], y_zero_point, c_ratio, r_ratio, sum_offset, lo, hi),
                                sums_of(c[3], d[3], y_zero_point, c_ratio, r_ratio, sum_offset, lo, hi),
                            )
                        elif looks_up:
                            c = (looked_up(r, c[0]), looked_up(r, c[1]), looked_up(r, c[2]), looked_up(r, c[3]))
                        store4(y + at, c)
                else:
                    for e in range(min(int32(16), columns)):
                        code = load_shared_u8(int32(here + int32(e)))
                        if sums:
                            code = sum_of(code, load_u8(r + at + int64(e)), y_zero_point, c_ratio, r_ratio, sum_offset, lo, hi)
                        elif looks_up:
                            code = load_u8(r + int64(code))
                        store_u8(y + at + int64(e), code)

    return store
