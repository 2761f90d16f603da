"""The kernel that reads an image at computed places: channels last, lanes run over channels."""

from __future__ import annotations

import numpy as np

from qrt.jit.lang import device, f32, fields, i64, share
from qrt.jit.lang.math import nearest

# The numbers of paddings; any other one reflects.
ZEROS, BORDER = 0, 1
# Places further away than this are as far: beyond it a float32 cannot tell neighbours apart.
_FAR = np.float32(1 << 24)
_ONE, _TWO, _HALF = np.float32(1), np.float32(2), np.float32(0.5)
# Pixels along each axis that a result is made of.
_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


@device
def _inner_cubic(t):  # type: ignore[no-untyped-def]
    """Keys' cubic convolution (a = −0.75) at a distance of at most 1."""
    return (np.float32(1.25) * t - np.float32(2.25)) * t * t + _ONE


@device
def _outer_cubic(t):  # type: ignore[no-untyped-def]
    """The same, from 1 to 2."""
    return ((np.float32(-0.75) * t + np.float32(3.75)) * t - np.float32(6)) * t + np.float32(3)


@device
def _place(g, n, align):  # type: ignore[no-untyped-def]
    """Where −1 … 1 lies among n pixels."""
    if align != 0:
        at = (g + _ONE) / _TWO * np.float32(n - 1)
    else:
        at = ((g + _ONE) * np.float32(n) - _ONE) / _TWO
    return at if abs(at) < _FAR else (_FAR if at > 0 else -_FAR)


@device
def _pixel(i, n, padding, align):  # type: ignore[no-untyped-def]
    """Which of n pixels is meant by i; −1 for none."""
    if padding == ZEROS:
        return i if 0 <= i < n else -1
    if padding == BORDER:
        return max(0, min(i, n - 1))
    around = max(2 * (n - 1), 1) if align != 0 else 2 * n
    i = i % around
    return min(i, around - i if align != 0 else around - 1 - i)


def sample(mode):  # type: ignore[no-untyped-def]
    """y[n, i, j, :] = the image x[n] at the place grid[n, i, j]."""
    taps = _TAPS[mode]

    @device
    def look(g, n, padding, align, which, weights, first):  # type: ignore[no-untyped-def]
        """The pixels along one axis, and their weights."""
        at = _place(g, n, align)
        if taps == 1:
            which[first], weights[first] = _pixel(np.int64(nearest(at)), n, padding, align), _ONE
            return
        begin = np.floor(at)
        t, k = at - begin, np.int64(begin)
        if taps == 2:
            weights[first], weights[first + 1] = _ONE - t, t
        else:
            k -= 1
            weights[first], weights[first + 1] = _outer_cubic(t + _ONE), _inner_cubic(t)
            weights[first + 2], weights[first + 3] = _inner_cubic(_ONE - t), _outer_cubic(_TWO - t)
        for i in range(taps):
            which[first + i] = _pixel(k + i, n, padding, align)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        y, grid, channels = f32(r.y), f32(r.grid), r.channels
        work = r.work + tid * r.work_bytes
        which, weights, zeros = i64(work), f32(work + 64), f32(work + 128)
        for c in range(channels):
            zeros[c] = np.float32(0)
        lo, hi = share(r.images * r.points, tid, nthreads)
        for unit in range(lo, hi):
            image = unit // r.points * r.rows
            look(grid[2 * unit], r.columns, r.padding, r.align, which, weights, 0)
            look(grid[2 * unit + 1], r.rows, r.padding, r.align, which, weights, taps)
            to = unit * channels
            for j in range(taps):
                for i in range(taps):
                    row, column = which[taps + j], which[i]
                    x = zeros
                    if row >= 0 and column >= 0:
                        x = f32(r.x + ((image + row) * r.columns + column) * channels * 4)
                    weight = weights[taps + j] * weights[i]
                    if i == 0 and j == 0:
                        for c in range(channels):
                            y[to + c] = weight * x[c]
                    else:
                        for c in range(channels):
                            y[to + c] += weight * x[c]

    return kernel
