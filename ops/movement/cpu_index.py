"""Kernels that look elements up: gather and scatter.

An index may be negative and counts from the end then. One that leaves its axis is clamped to it, as native code never leaves a buffer,
and left in the record's word `refused`, which is 0 otherwise.
"""

from __future__ import annotations

from numba import types

from qrt.jit.lang import device, fields, i32, i64, share, u8, u16, u32, u64

_POINTER = {1: u8, 2: u16, 4: u32, 8: u64}
_INDEX = {4: i32, 8: i64}


@device
def find(index, extent, refused):  # type: ignore[no-untyped-def]
    """`index`, counted from the end if it is negative, as one of 0 … extent − 1; and `refused`, or `index` if it leaves its axis.

    0 is never refused: axes have elements.
    """
    index = types.int64(index)
    from_start = index
    if index < 0:
        from_start += extent
    inside = max(0, min(from_start, extent - 1))
    if inside != from_start:
        refused = index
    return inside, refused


@device
def point(index, k, r, refused):  # type: ignore[no-untyped-def]
    """Where the tuple of `r.depth` indices from index[k] on points; and `refused`, or one of them that leaves its axis."""
    at, refused = find(index[k], r.n0, refused)
    at *= r.s0
    if r.depth > 1:
        inside, refused = find(index[k + 1], r.n1, refused)
        at += inside * r.s1
    if r.depth > 2:
        inside, refused = find(index[k + 2], r.n2, refused)
        at += inside * r.s2
    if r.depth > 3:
        inside, refused = find(index[k + 3], r.n3, refused)
        at += inside * r.s3
    return at, refused


def gather(size, index_size):  # type: ignore[no-untyped-def]
    """For each tuple of indices, `inner` elements from where it points."""
    pointer, indices = _POINTER[size], _INDEX[index_size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, index = pointer(r.x), pointer(r.y), indices(r.index)
        inner = r.inner
        refused = types.int64(0)
        lo, hi = share(r.batches * r.tuples, tid, nthreads)
        for unit in range(lo, hi):
            batch = unit // r.tuples
            k = batch * r.index_stride + unit % r.tuples * r.depth
            offset, refused = point(index, k, r, refused)
            at = batch * r.x_stride + offset
            to = unit * inner
            for i in range(inner):
                y[to + i] = x[at + i]
        if refused != 0:
            r.refused = refused

    return kernel


def scatter(size, index_size):  # type: ignore[no-untyped-def]
    """The reverse of `gather`, in order: for each tuple of indices, `inner` elements to where it points."""
    pointer, indices = _POINTER[size], _INDEX[index_size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, index = pointer(r.x), pointer(r.y), indices(r.index)
        inner = r.inner
        refused = types.int64(0)
        for unit in range(r.tuples):
            to, refused = point(index, unit * r.depth, r, refused)
            for i in range(inner):
                y[to + i] = x[unit * inner + i]
        if refused != 0:
            r.refused = refused

    return kernel


def along(size, index_size, scatters):  # type: ignore[no-untyped-def]
    """One element for each index: it replaces the coordinate of one axis of its own position."""
    pointer, indices = _POINTER[size], _INDEX[index_size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, index = pointer(r.x), pointer(r.y), indices(r.index)
        n5, s5, extent = r.n5, r.s5, r.extent
        refused = types.int64(0)
        lo, hi = share(r.n0 * r.n1 * r.n2 * r.n3 * r.n4, tid, nthreads)
        for row in range(lo, hi):
            rest = row
            at = rest % r.n4 * r.s4
            rest //= r.n4
            at += rest % r.n3 * r.s3
            rest //= r.n3
            at += rest % r.n2 * r.s2
            rest //= r.n2
            at += rest % r.n1 * r.s1 + rest // r.n1 * r.s0
            for i in range(n5):
                inside, refused = find(index[row * n5 + i], extent, refused)
                there = at + i * s5 + inside * r.stride
                if scatters:
                    y[there] = x[row * n5 + i]
                else:
                    y[row * n5 + i] = x[there]
        if refused != 0:
            r.refused = refused

    return kernel


def triangle(size, upper):  # type: ignore[no-untyped-def]
    """Matrices whose elements on the other side of a diagonal are 0."""
    pointer = _POINTER[size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y = pointer(r.x), pointer(r.y)
        n = r.columns
        lo, hi = share(r.matrices * r.rows, tid, nthreads)
        for row in range(lo, hi):
            # The first column on or above the diagonal, or the first strictly above it.
            edge = row % r.rows + r.diagonal
            if not upper:
                edge += 1
            edge = max(0, min(edge, n))
            for i in range(row * n, row * n + edge):
                y[i] = 0 if upper else x[i]
            for i in range(row * n + edge, row * n + n):
                y[i] = x[i] if upper else 0

    return kernel


def one_hot(size, index_size):  # type: ignore[no-untyped-def]
    """y[o, :, j] = values[0], but values[1] at the index [o, j]."""
    pointer, indices = _POINTER[size], _INDEX[index_size]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        values, y, index = pointer(r.values), pointer(r.y), indices(r.index)
        depth, inner, off, on = r.depth, r.inner, values[0], values[1]
        lo, hi = share(r.outer, tid, nthreads)
        if r.outer == 1:  # the only block is shared by its planes
            lo, hi = 0, 1
        first, last = (0, depth) if r.outer != 1 else share(depth, tid, nthreads)
        for outer in range(lo, hi):
            to = outer * depth * inner
            for i in range(to + first * inner, to + last * inner):
                y[i] = off
            for j in range(inner):
                place = types.int64(index[outer * inner + j])
                if place < 0:
                    place += depth
                if first <= place < last:
                    y[to + place * inner + j] = on

    return kernel
