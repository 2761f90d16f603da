"""The kernel that finds the largest elements: a heap of the best so far, whose root is the worst of them."""

from __future__ import annotations

import numpy as np

from qrt.jit.lang import device, fields, i8, i32, i64, share, u8
from qrt.jit.lang.heap import float_key, heapify, sift
from qrt.jit.lang.streams import POINTERS

# How keys are read: those of float32 are its bits.
_KEYS = {"float32": i32, "int32": i32, "int64": i64, "uint8": u8, "int8": i8}
_BLOCK = 32


def top(dtype):  # type: ignore[no-untyped-def]
    """The k largest or smallest of x[o, :, j], best first, and where they are."""
    pointer, raw = POINTERS[dtype], _KEYS[dtype]
    real = dtype == "float32"
    number = np.int64 if dtype == "int64" else np.int32
    lowest = number(np.iinfo(number).min)

    @device
    def key_of(value, flip):  # type: ignore[no-untyped-def]
        """Integers in the order of the elements, or with a `flip` of −1 in the reverse order."""
        return (float_key(value) if real else number(value)) ^ flip

    @device
    def best_of(x, at, flip):  # type: ignore[no-untyped-def]
        best = lowest
        for i in range(_BLOCK):
            best = max(best, key_of(x[at + i], flip))
        return best

    @device
    def offer(keys, places, x, at, i, inner, k, flip):  # type: ignore[no-untyped-def]
        key = np.int64(key_of(x[at + i * inner], flip))
        if key > keys[0]:
            keys[0], places[0] = key, i
            sift(keys, places, 0, k)

    @device
    def select(keys, places, x, at, n, inner, k, flip):  # type: ignore[no-untyped-def]
        for i in range(k):
            keys[i], places[i] = np.int64(key_of(x[at + i * inner], flip)), i
        heapify(keys, places, k)
        i = k
        if inner == 1:
            while i + _BLOCK <= n:
                if np.int64(best_of(x, at + i, flip)) > keys[0]:
                    for j in range(i, i + _BLOCK):
                        offer(keys, places, x, at, j, 1, k, flip)
                i += _BLOCK
        for j in range(i, n):
            offer(keys, places, x, at, j, inner, k, flip)
        for i in range(k - 1):
            last = k - 1 - i
            keys[0], keys[last] = keys[last], keys[0]
            places[0], places[last] = places[last], places[0]
            sift(keys, places, 0, last)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, codes, y, indices = pointer(r.x), raw(r.x), pointer(r.y), i64(r.indices)
        n, inner, k, flip = r.n, r.inner, r.k, number(r.flip)
        keys, places = i64(r.work + tid * 16 * k), i64(r.work + tid * 16 * k + 8 * k)
        lo, hi = share(r.outer * inner, tid, nthreads)
        for unit in range(lo, hi):
            outer, j = unit // inner, unit % inner
            at, to = outer * n * inner + j, outer * k * inner + j
            select(keys, places, codes, at, n, inner, k, flip)
            for i in range(k):
                indices[to + i * inner] = places[i]
                y[to + i * inner] = x[at + places[i] * inner]

    return kernel
