"""Kernels of the movement ops."""

from __future__ import annotations

from qrt.jit.lang import fields, share, u8, u16, u32, u64

_POINTER = {1: u8, 2: u16, 4: u32, 8: u64}


def transpose(size):  # type: ignore[no-untyped-def]
    """y = x walked with six strides, in elements of `size` bytes."""
    pointer = _POINTER[size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y = pointer(r.x), pointer(r.y)
        n5, s5 = r.n5, r.s5
        rows = r.n0 * r.n1 * r.n2 * r.n3 * r.n4
        lo, hi = share(rows, tid, nthreads)
        for row in range(lo, hi):
            rest = row
            i4 = rest % r.n4
            rest //= r.n4
            i3 = rest % r.n3
            rest //= r.n3
            i2 = rest % r.n2
            rest //= r.n2
            at = (rest // r.n1) * r.s0 + (rest % r.n1) * r.s1 + i2 * r.s2 + i3 * r.s3 + i4 * r.s4
            to = row * n5
            if s5 == 1:
                for i in range(n5):
                    y[to + i] = x[at + i]
            else:
                for i in range(n5):
                    y[to + i] = x[at + i * s5]

    return kernel
