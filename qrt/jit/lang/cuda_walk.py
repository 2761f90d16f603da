"""How device kernels walk their elements, and operands that repeat along axes. Imported only to compile, as `cuda.py`."""

from __future__ import annotations

from qrt.jit.lang.cuda import cuda, device, int32, int64, quotient

__all__ = ["WARP", "place", "stretch"]

WARP = 32


@device
def stretch(count):  # type: ignore[no-untyped-def]
    """Of `count` elements for each thread, which the threads of a warp take in turn, so that neighbours have neighbours: this thread's
    first, and the end of its warp's. WARP · `count` further lies the next warp's."""
    thread = int32(cuda.threadIdx.x)
    lane = int32(thread & int32(WARP - 1))
    start = (int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(int32(thread - lane))) * int64(count)
    return start + int64(lane), start + int64(WARP) * int64(count)


@device
def place(i, n1, n2, n3, n4, n5, s0, s1, s2, s3, s4, s5):  # type: ignore[no-untyped-def]
    """Where the operand of strides s0 … s5 has what element i of a result of extents n1 … n5 (and an outermost one) comes from."""
    at, rest = int64(0), int32(i)
    for extent, stride in ((n5, s5), (n4, s4), (n3, s3), (n2, s2), (n1, s1)):
        if extent != int32(1):
            outer = quotient(rest, extent)
            at += int64(int32(rest - outer * extent)) * stride
            rest = outer
    return at + int64(rest) * s0
