"""A kernel source for test_math.py. Imported only to compile."""

from __future__ import annotations

from qrt.jit.lang import f32, fields
from qrt.jit.lang.math import fma
from qrt.jit.lang.streams import read, write


def fused():  # type: ignore[no-untyped-def]
    """out = x · y + z over n elements."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, z, out = f32(r.x), f32(r.y), f32(r.z), f32(r.out)
        for i in range(r.n):
            write(out, i, fma(read(x, i), read(y, i), read(z, i)))

    return kernel
