"""Kernels of softmax and the norms. A row, or a block of columns, is read again while it is in the cache."""

from __future__ import annotations

import numpy as np

from qrt.jit.lang import device, f32, fields, share
from qrt.jit.lang import math as m
from qrt.jit.lang.rows import LANES, add_to_lanes, read_some, row_max, row_sum, row_sum_abs, row_sum_squares, scaled_lanes, write_some
from qrt.jit.lang.streams import prefetch, read, write

F = np.float32
_ZERO, _ONE, _INF = F(0), F(1), F(np.inf)
# softmax.BLOCK and softmax.ROWS; bytes of a thread's scratch memory.
_BLOCK, _ROWS = 64, 16
_SCRATCH = 4 * _ROWS * (1 + 2 * LANES)


@device
def rows_together(rows, n):  # type: ignore[no-untyped-def]
    """How many of all `rows` of n elements are worked on together: of up to 3072 elements; of 512 where they come from beyond the L2 cache,
    as nothing is read while rows that were read are computed."""
    most = 3072 if rows * n <= 1 << 18 else 512
    return max(1, min(_ROWS, most // max(n, 1)))


@device
def exp_lanes(x, at, y, to, most, total):  # type: ignore[no-untyped-def]
    """y = exp(x − most) of as many elements as there are lanes, which are added to `total`."""
    for j in range(LANES):
        write(y, to + j, m.exp(read(x, at + j) - most))
    add_to_lanes(total, y, to)


@device
def softmax_together(x, y, source, first, count, ahead, n, log, scratch):  # type: ignore[no-untyped-def]
    """Softmax, or its logarithm, of `count` rows of x from `first` on, one step after the other: each step ends in a number that the next
    one waits for, and the other rows' fill that time. What lies `ahead` in y and in the rows' `source` is asked for."""
    # Of each row its largest number; its lanes; and its end that fills no lanes, as if numbers followed whose e**x is 0.
    largest, totals = f32(scratch), scratch + 4 * _ROWS
    rests = totals + 4 * LANES * _ROWS
    whole = n // LANES * LANES
    for k in range(count):
        largest[k] = row_max(x, (first + k) * n, n, _ZERO)
    for k in range(count):
        at, most = (first + k) * n, largest[k]
        total, rest = f32(totals + 4 * LANES * k), f32(rests + 4 * LANES * k)
        for j in range(LANES):
            total[j] = _ZERO
        for i in range(at, at + whole, LANES):
            # Of the next rows, which begin with their largest numbers, a long time without arithmetic.
            for line in range(0, LANES, 16):
                prefetch(source, i + ahead + line)
                prefetch(y, i + ahead + line)
            if log:
                exp_lanes(x, i, rest, 0, most, total)
            else:
                exp_lanes(x, i, y, i, most, total)
        if whole < n:
            read_some(rest, x, at + whole, n - whole, -_INF)
            exp_lanes(rest, 0, rest, 0, most, total)
    # From here on y holds what was just written: plain loads, which `write` does not overtake.
    for k in range(count):
        at, total, rest = (first + k) * n, f32(totals + 4 * LANES * k), f32(rests + 4 * LANES * k)
        if log:
            most, power = largest[k], m.log(row_sum(total, 0, LANES, _ZERO))
            for i in range(at, at + n):
                write(y, i, read(x, i) - most - power)
            continue
        factor = _ONE / row_sum(total, 0, LANES, _ZERO)
        for i in range(at, at + whole, LANES):
            for j in range(LANES):
                y[i + j] = y[i + j] * factor
        if whole < n:
            for j in range(LANES):
                rest[j] = rest[j] * factor
            write_some(y, at + whole, rest, n - whole)


def softmax_rows(log):  # type: ignore[no-untyped-def]
    """Softmax along the last axis."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, n, scratch = f32(r.x), f32(r.y), r.n, r.scratch + tid * _SCRATCH
        together = rows_together(r.outer, n)
        first, hi = share(r.outer, tid, nthreads)
        while first < hi:
            count = min(together, hi - first)
            softmax_together(x, y, x, first, count, together * n, n, log, scratch)
            first += count

    return kernel


def softmax_scaled(masked):  # type: ignore[no-untyped-def]
    """Softmax along the last axis of x · scale + mask."""
    scaled = scaled_lanes(masked)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, mask, n, n1, n2, scratch = f32(r.x), f32(r.y), f32(r.mask), r.n, r.n1, r.n2, r.scratch + tid * _SCRATCH
        whole, together = n // LANES * LANES, rows_together(r.outer, n)
        rest, more = f32(scratch), f32(scratch + 4 * LANES)
        first, hi = share(r.outer, tid, nthreads)
        i1, i2 = first // n2 % n1, first % n2
        given = first // n2 // n1 * r.m0 + i1 * r.m1 + i2 * r.m2
        while first < hi:
            count = min(together, hi - first)
            for row in range(first, first + count):
                at = row * n
                for i in range(0, whole, LANES):
                    scaled(y, at + i, x, at + i, mask, given + i, r.scale)
                if whole < n:
                    read_some(rest, x, at + whole, n - whole, _ZERO)
                    if masked:
                        read_some(more, mask, given + whole, n - whole, _ZERO)
                    scaled(rest, 0, rest, 0, more, 0, r.scale)
                    write_some(y, at + whole, rest, n - whole)
                i2 += 1
                given += r.m2
                if i2 == n2:
                    i1, i2 = i1 + 1, 0
                    given += r.m1 - n2 * r.m2
                if i1 == n1:
                    i1 = 0
                    given += r.m0 - n1 * r.m1
            softmax_together(y, y, x, first, count, together * n, n, False, scratch)
            first += count

    return kernel


def softmax_columns(log):  # type: ignore[no-untyped-def]
    """Softmax along an axis that is not the last one, _BLOCK columns at a time."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, n, inner = f32(r.x), f32(r.y), r.n, r.inner
        most = f32(r.scratch + tid * 8 * _BLOCK)
        total = f32(r.scratch + tid * 8 * _BLOCK + 4 * _BLOCK)
        blocks = (inner + _BLOCK - 1) // _BLOCK
        lo, hi = share(r.outer * blocks, tid, nthreads)
        for unit in range(lo, hi):
            first = unit % blocks * _BLOCK
            count, at = min(_BLOCK, inner - first), unit // blocks * n * inner + first
            for j in range(count):
                most[j], total[j] = x[at + j], _ZERO
            for row in range(n):
                i = at + row * inner
                for j in range(count):
                    new, old = read(x, i + j), most[j]
                    most[j] = old if old > new or old != old else new
            for row in range(n):
                i = at + row * inner
                for j in range(count):
                    e = m.exp(read(x, i + j) - read(most, j))
                    write(y, i + j, e)
                    total[j] = total[j] + e
            for j in range(count):
                total[j] = m.log(total[j]) if log else _ONE / total[j]
            for row in range(n):
                i = at + row * inner
                if log:
                    for j in range(count):
                        write(y, i + j, read(x, i + j) - most[j] - total[j])
                else:
                    for j in range(count):
                        write(y, i + j, y[i + j] * total[j])

    return kernel


_NORMS, _LINE = 4, 64  # rows that are normalized together; rows.SCRATCH


def layer_norm(has_bias, has_residual):  # type: ignore[no-untyped-def]
    """Layer normalization of rows, or of their sums with those of a residual: some together, as in softmax_together."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, residual, scale, bias, y, n = f32(r.x), f32(r.residual), f32(r.scale), f32(r.bias), f32(r.y), r.n
        means, factors = f32(r.scratch + tid * _LINE), f32(r.scratch + tid * _LINE + 4 * _NORMS)
        source, together = y if has_residual else x, max(1, min(_NORMS, 2048 // max(n, 1)))
        first, hi = share(r.rows, tid, nthreads)
        while first < hi:
            count = min(together, hi - first)
            if has_residual:
                for i in range(first * n, (first + count) * n):
                    write(y, i, read(x, i) + read(residual, i))
            for k in range(count):
                means[k] = row_sum(source, (first + k) * n, n, _ZERO) / F(n)
            for k in range(count):
                factors[k] = _ONE / m.sqrt(row_sum_squares(source, (first + k) * n, n, means[k]) / F(n) + r.epsilon)
            for k in range(count):
                at, mean, factor = (first + k) * n, means[k], factors[k]
                for i in range(n):
                    # What y holds was just written: plain loads and stores, which `write` does not overtake.
                    value = ((y[at + i] if has_residual else read(x, at + i)) - mean) * factor * read(scale, i)
                    value = value + read(bias, i) if has_bias else value
                    if has_residual:
                        y[at + i] = value
                    else:
                        write(y, at + i, value)
            first += count

    return kernel


def rms_norm():  # type: ignore[no-untyped-def]
    """Root mean square normalization of rows."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, scale, y, n = f32(r.x), f32(r.scale), f32(r.y), r.n
        lo, hi = share(r.rows, tid, nthreads)
        for row in range(lo, hi):
            at = row * n
            factor = _ONE / m.sqrt(row_sum_squares(x, at, n, _ZERO) / F(n) + r.epsilon)
            for i in range(n):
                write(y, at + i, read(x, at + i) * factor * read(scale, i))

    return kernel


def lp_norm(p):  # type: ignore[no-untyped-def]
    """Rows over their norm."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, n = f32(r.x), f32(r.y), r.n
        lo, hi = share(r.rows, tid, nthreads)
        for row in range(lo, hi):
            at = row * n
            norm = row_sum_abs(x, at, n, _ZERO) if p == 1 else m.sqrt(row_sum_squares(x, at, n, _ZERO))
            norm = _ONE if norm == _ZERO else norm
            for i in range(at, at + n):
                write(y, i, read(x, i) / norm)

    return kernel


def image_norm():  # type: ignore[no-untyped-def]
    """Instance and group normalization, a block of channels at a time."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, scale, bias, y = f32(r.x), f32(r.scale), f32(r.bias), f32(r.y)
        pixels, channels, group, block = r.pixels, r.channels, r.group, r.block
        mean = f32(r.scratch + tid * 8 * block)
        factor = f32(r.scratch + tid * 8 * block + 4 * block)
        blocks = (channels + block - 1) // block
        size = F(pixels * group)
        lo, hi = share(r.images * blocks, tid, nthreads)
        for unit in range(lo, hi):
            first = unit % blocks * block
            count, at = min(block, channels - first), unit // blocks * pixels * channels + first
            for j in range(count):
                mean[j], factor[j] = _ZERO, _ZERO
            for pixel in range(pixels):
                i = at + pixel * channels
                for j in range(count):
                    write(mean, j, mean[j] + read(x, i + j))
            for k in range(count // group):
                g, total = k * group, _ZERO
                for j in range(g, g + group):
                    total += mean[j]
                for j in range(g, g + group):
                    mean[j] = total / size
            for pixel in range(pixels):
                i = at + pixel * channels
                for j in range(count):
                    away = read(x, i + j) - read(mean, j)
                    write(factor, j, factor[j] + away * away)
            for k in range(count // group):
                g, total = k * group, _ZERO
                for j in range(g, g + group):
                    total += factor[j]
                for j in range(g, g + group):
                    factor[j] = scale[first + j] / m.sqrt(total / size + r.epsilon)
            for pixel in range(pixels):
                i = at + pixel * channels
                for j in range(count):
                    write(y, i + j, (read(x, i + j) - read(mean, j)) * read(factor, j) + read(bias, first + j))

    return kernel
