"""Loops of nothing but the tensor cores' products. Imported only to compile; the record is `gpu.LOOP_RECORD`."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import copies_commit, copies_wait, copy_async, cuda, int32, int64, load4, load_i32, mma, shared_base, store_i32
from qrt.jit.lang.cuda_hopper import barriers_ready, multiply_add, products_commit, products_fence, products_wait
from qrt.ops.gemm.cuda_wgmma import described


def mma_loop() -> Any:
    """Eight products of a warp in turn, into accumulators of their own."""

    def kernel(x, y, n):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        at = x + int64(16) * int64(thread)
        a, b = load4(at), load4(at + int64(4096))
        acc = cuda.local.array((8, 4), int32)
        for i in range(8):
            for q in range(4):
                acc[i, q] = int32(0)
        for _ in range(n):
            for i in range(8):
                total = mma(a, (b[0], b[1]), (acc[i, 0], acc[i, 1], acc[i, 2], acc[i, 3]))
                for q in range(4):
                    acc[i, q] = total[q]
        result = int32(0)
        for i in range(8):
            for q in range(4):
                result = int32(result ^ acc[i, q])
        store_i32(y + int64(4) * (int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(thread)), result)

    return kernel


def wgmma_loop() -> Any:
    """Two warpgroups, each with 64 rows of A of its own and the same 256 columns of B, in shared memory."""
    multiply, wait_for_one, wait_for_all = multiply_add(256), products_wait(256, 1), products_wait(256, 0)
    copied = copies_wait(0)

    def kernel(x, y, n):  # type: ignore[no-untyped-def]
        base = shared_base()
        thread = int32(cuda.threadIdx.x)
        for i in range(12):
            at = int32(thread * int32(16) + int32(i * 4096))
            copy_async(int32(base + at), x + int64(at), int32(16))
        copies_commit()
        copied()
        barriers_ready()  # products read what was copied
        cuda.syncthreads()
        acc = cuda.local.array(128, int32)
        for i in range(128):
            acc[i] = load_i32(x)
        a, b = described(int32(base + (thread >> int32(7)) * int32(8192))), described(int32(base + int32(16384)))
        for _ in range(n):
            products_fence()
            multiply(acc, a, b)
            multiply(acc, a + int64(2), b + int64(2))
            multiply(acc, a + int64(4), b + int64(4))
            multiply(acc, a + int64(6), b + int64(6))
            products_commit()
            wait_for_one(acc)
        wait_for_all(acc)
        result = int32(0)
        for i in range(128):
            result = int32(result ^ acc[i])
        store_i32(y + int64(4) * (int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(thread)), result)

    return kernel
