"""Kernel sources that must be refused. Imported only to compile."""

from __future__ import annotations

import numpy as np

from qrt.jit.lang import fields, u8


def raises():  # type: ignore[no-untyped-def]
    """Raises where n is 0."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        if r.n == 0:
            raise ValueError("n")
        u8(r.y)[0] = 1

    return kernel


def allocates():  # type: ignore[no-untyped-def]
    """Makes an array."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x = np.zeros(r.n, np.uint8)
        for i in range(r.n):
            x[i] = u8(r.y)[i]
        u8(r.y)[0] = x.sum()

    return kernel


def ill_typed():  # type: ignore[no-untyped-def]
    """Asks for a field that the record does not have."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        u8(fields(record).nothing)[0] = 1

    return kernel
