"""The matrix product on Hopper: tiles come by the copy engine, and products read them where they come to lie in shared memory.

A block makes tile after tile of `bm` × `bn`. One warp asks for boxes of A and B, `bk` bytes of k at a time, in `stages` buffers; each
warpgroup multiplies 64 rows of the tile. Two barriers a buffer say that it is full and that it is empty. While a tile's codes leave, the
boxes of the next one come. The warp that copies is the last: a block of so few threads leaves each enough registers for its accumulators.
"""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import cuda, device, int32, int64, load_i32, nearest, quotient, remainder, shared_base
from qrt.jit.lang.cuda_hopper import (
    barrier_arrive,
    barrier_expect,
    barrier_init,
    barrier_wait,
    barriers_ready,
    copy_box,
    meet,
    multiply_add,
    products_commit,
    products_fence,
    products_wait,
    tensor_map_ready,
)
from qrt.ops.gemm.cuda_dynamic import in_floats
from qrt.ops.gemm.cuda_out import codes_in, codes_out, sums_out

__all__ = ["described", "gemm"]

# Blocks of rows whose tiles are made one after the other, so that what they share stays in the L2 cache.
BLOCKS_TOGETHER = 8


@device
def place_of(number, m_blocks, n_blocks):  # type: ignore[no-untyped-def]
    """Which block of rows and of columns the tile of this number is: down some blocks of rows, then to the next columns."""
    band = int32(int32(BLOCKS_TOGETHER) * n_blocks)
    first = int32(quotient(number, band) * int32(BLOCKS_TOGETHER))
    rows = int32(min(int32(BLOCKS_TOGETHER), int32(m_blocks - first)))
    within = remainder(number, band)
    return int32(first + remainder(within, rows)), quotient(within, rows)


@device
def described(at):  # type: ignore[no-untyped-def]
    """A matrix of rows of 128 bytes at `at`, a multiple of 1024, as wgmma wants it: addresses in units of 16 bytes, eight rows take 1024,
    and the copy engine has permuted their chunks ("Matrix Descriptor Format", swizzling mode 1)."""
    return int64((at & int32(0x3FFFF)) >> int32(4)) | int64(1 << 16) | int64(1024 // 16 << 32) | int64(1 << 62)


def producer(bm: int, bn: int, bk: int, stages: int) -> Any:
    """What asks for the boxes of all tiles of a block."""
    a_bytes, stage = bm * bk, (bm + bn) * bk

    @device
    def copy_tiles(base, full, empty, a_map, b_map, m_blocks, n_blocks, steps_a_tap, taps):  # type: ignore[no-untyped-def]
        tensor_map_ready(a_map)
        tensor_map_ready(b_map)
        buffer, parity = int32(0), int32(1)
        number = int32(cuda.blockIdx.x)
        while number < int32(m_blocks * n_blocks):
            block_m, block_n = place_of(number, m_blocks, n_blocks)
            b_column = int32(0)
            for _ in range(taps):
                for step in range(steps_a_tap):
                    barrier_wait(int32(empty + int32(8) * buffer), parity)
                    there, to = int32(full + int32(8) * buffer), int32(base + int32(stage) * buffer)
                    barrier_expect(there, int32(stage))
                    copy_box(to, a_map, int32(int32(step) * int32(bk)), int32(block_m * int32(bm)), there)
                    copy_box(int32(to + int32(a_bytes)), b_map, b_column, int32(block_n * int32(bn)), there)
                    b_column = int32(b_column + int32(bk))
                    buffer = int32(buffer + int32(1))
                    if buffer == int32(stages):
                        buffer, parity = int32(0), int32(parity ^ int32(1))
            number = int32(number + int32(cuda.gridDim.x))

    return copy_tiles


def gemm(epilogue: str, bm: int, bn: int, bk: int, stages: int) -> Any:
    """y = epilogue(bias + Σ over taps and k of x · w); the record is `device.HOPPER_RECORD`."""
    groups, eights = bm // 64, bn // 8
    a_bytes, stage = bm * bk, (bm + bn) * bk
    out_at, out_bytes = stages * stage, 64 * (bn + 16)
    full_at = out_at + groups * out_bytes
    empty_at = full_at + 8 * stages
    codes, sums, dynamic = epilogue not in ("s32", "f32d"), epilogue in ("u8add", "u8radd"), epilogue == "f32d"
    copy_tiles = producer(bm, bn, bk, stages)
    multiply, wait_for_one, wait_for_all = multiply_add(bn), products_wait(bn, 1), products_wait(bn, 0)
    # A warpgroup's 64 rows as four warps of 16.
    store_sums, gather, store_codes = sums_out(64, bn, 4, 1), codes_in(64, bn, 4, 1), codes_out(epilogue, 64, bn, 128)
    finish = in_floats(bn, 4, 1, 1)

    def kernel(  # type: ignore[no-untyped-def]
        a_map, b_map, bias, scale, y, r, m, n, k, taps, lo, hi, y_zero_point,
        c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset, addend, column_sums, a_scale, a_zero_point,
    ):  # fmt: skip
        base = shared_base()
        full, empty = int32(base + int32(full_at)), int32(base + int32(empty_at))
        thread = int32(cuda.threadIdx.x)
        group, lane = int32(thread >> int32(7)), int32(thread & int32(31))
        m_blocks, n_blocks = quotient(int32(m + int32(bm - 1)), int32(bm)), quotient(int32(n + int32(bn - 1)), int32(bn))
        steps_a_tap = quotient(int32(k + int32(bk - 1)), int32(bk))
        steps = int32(steps_a_tap * taps)
        if thread == int32(0):
            for i in range(stages):
                barrier_init(int32(full + int32(8 * i)), int32(1))
                barrier_init(int32(empty + int32(8 * i)), int32(4 * groups))
            barriers_ready()
        cuda.syncthreads()

        if group == int32(groups):
            if lane == int32(0):
                copy_tiles(base, full, empty, a_map, b_map, m_blocks, n_blocks, steps_a_tap, taps)
        else:
            member = int32(thread & int32(127))
            out = int32(base + int32(out_at) + group * int32(out_bytes))
            low, high, zero_point = lo, hi, y_zero_point
            if sums:
                low, high, zero_point = c_lo, c_hi, int32(nearest(c_zero_point) + y_zero_point)
            acc = cuda.local.array((1, eights, 4), int32)
            buffer, before, parity = int32(0), int32(0), int32(0)
            number = int32(cuda.blockIdx.x)
            while number < int32(m_blocks * n_blocks):
                block_m, block_n = place_of(number, m_blocks, n_blocks)
                first_m, first_n = int32(block_m * int32(bm) + group * int32(64)), int32(block_n * int32(bn))
                start = bias + int64(4) * int64(int32(first_n + (lane & int32(3)) * int32(2)))
                for j in range(eights):
                    start0, start1 = load_i32(start + int64(32 * j)), load_i32(start + int64(32 * j + 4))
                    acc[0, j, 0] = start0
                    acc[0, j, 1] = start1
                    acc[0, j, 2] = start0
                    acc[0, j, 3] = start1
                for step in range(steps):
                    barrier_wait(int32(full + int32(8) * buffer), parity)
                    at = int32(base + int32(stage) * buffer)
                    a, b = described(int32(at + group * int32(64 * bk))), described(int32(at + int32(a_bytes)))
                    products_fence()
                    multiply(acc, a, b)
                    multiply(acc, a + int64(2), b + int64(2))  # 32 bytes of k further
                    multiply(acc, a + int64(4), b + int64(4))
                    multiply(acc, a + int64(6), b + int64(6))
                    products_commit()
                    wait_for_one(acc)
                    if step > 0 and lane == int32(0):
                        barrier_arrive(int32(empty + int32(8) * before))
                    before = buffer
                    buffer = int32(buffer + int32(1))
                    if buffer == int32(stages):
                        buffer, parity = int32(0), int32(parity ^ int32(1))
                wait_for_all(acc)
                if lane == int32(0):
                    barrier_arrive(int32(empty + int32(8) * before))

                if codes:
                    meet(int32(group + int32(1)), int32(128))  # the codes of the tile before have left
                    gather(acc, out, member, first_n, scale, low, high, zero_point)
                    meet(int32(group + int32(1)), int32(128))
                    store_codes(out, member, first_m, first_n, y, r, m, n, y_zero_point, c_ratio, r_ratio, sum_offset, lo, hi)
                else:
                    if dynamic:
                        finish(acc, member, first_n, scale, addend, column_sums, a_scale, a_zero_point)
                    store_sums(acc, member, first_m, first_n, y, m, n)
                number = int32(number + int32(cuda.gridDim.x))

    return kernel
