"""Kernels of the observers: binning, re-binning, and the search of the histogram observer. One thread each.

Bins are clamped: whatever the values are, NaN included, no count lands outside its table.
"""

from __future__ import annotations

import math

import numpy as np

from qrt.jit.lang import device, f32, fields, i32, i64
from qrt.jit.lang.math import fma
from qrt.jit.lang.streams import prefetch, read, write

LINE = 16  # float32 in a cache line
AHEAD = 2048  # how many elements before their turn they are asked for


@device
def _find_bins(x, start, size, low, high, bins, share, bin_of):  # type: ignore[no-untyped-def]
    """The bins of x[start:start + size]; gives 1 if an element is not inside low..high, else 0. Runs in vectors.

    `share`: 1 / (high - low) in float64. A product with it, rounded to float32, is the quotient of two float32: that is never as near the
    middle between two float32 as 2**-49 of itself, and the product is off by 2**-52 of it at most. Division takes several times as long.
    """
    last, inf, outside = bins - np.float32(1), np.float32(np.inf), np.int32(0)
    for i in range(size):
        value = read(x, start + i)
        outside = np.int32(outside | np.int32(not ((value >= low) & (value <= high))))
        steps = (value - low) * bins
        steps = steps if steps < inf else np.float32(0)  # as torch.histc does on x86, by what an infinity converts to
        position = np.float32(np.float64(steps) * share)
        position = position if position < last else last
        position = position if position > np.float32(0) else np.float32(0)
        write(bin_of, i, np.int32(position))
    return outside


def count_uniform(ways, block):  # type: ignore[no-untyped-def]
    """counts[ways][stride] over low..high, in the float32 arithmetic of torch.histc. done[0]: how many elements were counted: all, or those
    before the block of the first that is not inside low..high, if `strict`. `bin_of`: scratch (block,).

    Counts are int32, so that the tables stay in the first cache."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, counts, bin_of, n, stride, strict = f32(r.x), i32(r.counts), i32(r.bin_of), r.n, r.stride, r.strict
        bins, low, high, share, one = np.float32(r.bins), r.low, r.high, 1.0 / np.float64(r.high - r.low), np.int32(1)
        whole = n // block * block
        done = 0
        while done < whole:
            if (_find_bins(x, done, block, low, high, bins, share, bin_of) > 0) & (strict > 0):
                break
            for i in range(0, block, LINE):
                prefetch(x, done + AHEAD + i)
            for i in range(0, block, ways):
                for way in range(ways):
                    counts[way * stride + bin_of[i + way]] += one
            done += block
        if done == whole and not ((_find_bins(x, done, n - done, low, high, bins, share, bin_of) > 0) & (strict > 0)):
            for i in range(n - done):
                counts[bin_of[i]] += one
            done = n
        i64(r.done)[0] = done

    return kernel


def count_exact(ways, block):  # type: ignore[no-untyped-def]
    """counts[ways][bins], bin floor(x · scale) + bins / 2, where scale is a power of two: no rounding. `bin_of`: scratch (block,)."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, counts, bin_of, n, bins, scale = f32(r.x), i64(r.counts), i32(r.bin_of), r.n, r.bins, r.scale
        first, last = -np.float64(bins // 2), np.float64(bins // 2 - 1)
        for start in range(0, n, block):
            size = min(block, n - start)
            for i in range(size):  # a loop of its own: it runs in vectors
                position = np.float64(read(x, start + i)) * scale
                position = position if position < last else last
                position = position if position > first else first
                write(bin_of, i, np.int32(math.floor(position) + bins // 2))
            whole = size // ways * ways
            for i in range(0, whole, ways):
                for way in range(ways):
                    counts[way * bins + bin_of[i + way]] += 1
            for i in range(whole, size):
                counts[bin_of[i]] += 1

    return kernel


@device
def _point(start, stop, step, i, intervals):  # type: ignore[no-untyped-def]
    """Point `i` of torch.linspace(start, stop, intervals + 1): each half is counted from its own end, rounded once."""
    if i < (intervals + 1) // 2:
        return fma(step, np.float32(i), start)
    return fma(-step, np.float32(intervals - i), stop)


def rebin(parts):  # type: ignore[no-untyped-def]
    """Every bin of counts[bins] over low..high, cut into `parts`, goes to the bin over new_low..new_high where its middle lies: into
    sums[bins], in order. `edges`: scratch (bins + 1,)."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        counts, edges, sums, bins = f32(r.counts), f32(r.edges), f32(r.sums), r.bins
        fine = bins * parts
        step = (r.high - r.low) / np.float32(fine)
        half = np.float32(0.5) * step
        new_step = (r.new_high - r.new_low) / np.float32(bins)
        for i in range(bins + 1):
            edges[i] = _point(r.new_low, r.new_high, new_step, i, bins)
        bucket, total = 0, np.float32(0)
        for i in range(bins):
            part = counts[i] / np.float32(parts)
            for j in range(i * parts, (i + 1) * parts):
                middle = _point(r.low, r.high, step, j, fine) + half
                before = bucket
                while bucket < bins - 1 and edges[bucket + 1] <= middle:
                    bucket += 1
                while bucket > 0 and edges[bucket] > middle:  # where the halves meet
                    bucket -= 1
                if bucket != before:
                    sums[before] = total
                    total = sums[bucket]
                total += part
        sums[bucket] = total

    return kernel


@device
def _cubes(x0, x1):  # type: ignore[no-untyped-def]
    """The integral of x² from x0 to x1."""
    return ((x1 * x1) * x1 - (x0 * x0) * x0) / np.float32(3)


@device
def _code(x, step, last):  # type: ignore[no-untyped-def]
    """Which of the codes 0..last holds `x`. The quotient of two float32 is never so near an integer that float64 could
    round it there, so the floor is exact."""
    code = np.float32(math.floor(np.float64(x) / np.float64(step)))
    code = code if code > np.float32(0) else np.float32(0)
    return code if code < last else last


@device
def _error(density, norm, bins, width, start, end, levels):  # type: ignore[no-untyped-def]
    """Squared error of quantizing the histogram's data with `levels` codes over bins start..end. `norm`: scratch (bins,)."""
    step64 = width * (end - start + 1) / levels
    if step64 == 0.0:
        return 0.0
    w, step, half = np.float32(width), np.float32(step64), np.float32(step64 / 2)
    last, middle, one = np.float32(levels - 1), np.float32(0.5), np.float32(1)
    between = _cubes(-half, half)
    for i in range(bins):
        begin = np.float32(i - start) * w
        stop = begin + w
        first, second = _code(begin, step, last), _code(stop, step, last)
        value = density[i] * _cubes(begin - (first + middle) * step, half)
        value += (second - first - one) * (density[i] * between)
        value += density[i] * _cubes(-half, stop - (second * step + half))
        norm[i] = value
    # A loop of its own: the one above runs in vectors, this one keeps its order.
    total = 0.0
    for i in range(bins):
        total += np.float64(norm[i])
    return np.float64(np.float32(total))


def search():  # type: ignore[no-untyped-def]
    """range_[0], range_[1]: the first and the last bin to keep."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        density, cumulated, norm, kept = f32(r.density), f32(r.cumulated), f32(r.norm), i64(r.range_)
        alpha, beta, start, end, best = 0.0, 1.0, 0, r.bins - 1, np.inf
        while alpha < beta:
            next_alpha, next_beta = alpha + r.step, beta - r.step
            low, high = np.float32(next_alpha * r.total), np.float32(next_beta * r.total)
            left, right = start, end
            while left < end and cumulated[left] < low:
                left += 1
            while right > start and cumulated[right] > high:
                right -= 1
            next_start, next_end = start, end
            if left - start > end - right:
                next_start, alpha = left, next_alpha
            else:
                next_end, beta = right, next_beta
            if next_start == start and next_end == end:
                continue
            error = _error(density, norm, r.bins, r.width, next_start, next_end, r.levels)
            if error > best:  # not so where both overflow float32: torch goes on as well
                break
            best, start, end = error, next_start, next_end
        kept[0], kept[1] = start, end

    return kernel
