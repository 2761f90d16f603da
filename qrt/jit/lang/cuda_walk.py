"""How device kernels walk operands that repeat along axes. Imported only to compile, as `cuda.py`."""

from __future__ import annotations

from qrt.jit.lang.cuda import device, int32, int64

__all__ = ["place"]


@device
def place(i, n1, n2, n3, n4, n5, s0, s1, s2, s3, s4, s5):  # type: ignore[no-untyped-def]
    """Where the operand of strides s0 … s5 has what element i of a result of extents n1 … n5 (and an outermost one) comes from."""
    at, rest = int64(0), int32(i)
    for extent, stride in ((n5, s5), (n4, s4), (n3, s3), (n2, s2), (n1, s1)):
        if extent != int32(1):
            outer = int32(rest // extent)
            at += int64(int32(rest - outer * extent)) * stride
            rest = outer
    return at + int64(rest) * s0
