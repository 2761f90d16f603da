"""Kernel sources for the runtime's tests. Imported only to compile."""

from __future__ import annotations

from qrt.jit.lang import f32, fields, share
from qrt.jit.lang.atomic import atomic_add


def count():  # type: ignore[no-untyped-def]
    """counts[8 · tid] += 1, and the same for every thread at `total`."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        atomic_add(r.counts + 64 * tid, 1)
        atomic_add(r.total, 1)

    return kernel


def axpy():  # type: ignore[no-untyped-def]
    """y = x · 2 + z, shared by all threads."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, z = f32(r.x), f32(r.y), f32(r.z)
        lo, hi = share(r.n, tid, nthreads)
        for i in range(lo, hi):
            y[i] = x[i] + x[i] + z[i]

    return kernel
