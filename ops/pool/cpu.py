"""Kernels of pooling, channels last: one output pixel after the other, lanes run over its channels."""

from __future__ import annotations

import numpy as np
from numba import types

from qrt.jit.lang import device, f32, fields, i8, i32, share, u8
from qrt.jit.lang.rounding import round_clamp

_POINTER = {"f32": f32, "u8": u8, "s8": i8}
_LOWEST = {"f32": np.float32(-np.inf), "u8": 0, "s8": -128}


@device
def inside(start, dilation, taps, n):  # type: ignore[no-untyped-def]
    """The half-open range of the taps at start + tap · dilation that fall on 0 … n − 1."""
    if start >= 0 and start + (taps - 1) * dilation < n:
        return 0, taps
    lo = 0
    if start < 0:
        lo = (-start + dilation - 1) // dilation
    hi = 0
    if start < n:
        hi = min(taps, (n - start + dilation - 1) // dilation)
    return min(lo, hi), hi


@device
def place(r, row):  # type: ignore[no-untyped-def]
    """Of output row `row`: first input row of its image, first plane and row of its window."""
    rest = row
    h = rest % r.oh
    rest //= r.oh
    d = rest % r.od
    return rest // r.od * r.nd * r.nh, d * r.sd - r.pd, h * r.sh - r.ph


def maximum(kind):  # type: ignore[no-untyped-def]
    """The largest of each window; taps outside the image do not count."""
    pointer, lowest = _POINTER[kind], _LOWEST[kind]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y = pointer(r.x), pointer(r.y)
        channels, block, step = r.channels, r.block, r.dw * r.channels
        blocks = (channels + block - 1) // block
        lo, hi = share(r.rows * blocks, tid, nthreads)
        for unit in range(lo, hi):
            row, c0 = unit // blocks, unit % blocks * block
            c1 = min(c0 + block, channels)
            image, d0, h0 = place(r, row)
            dlo, dhi = inside(d0, r.dd, r.kd, r.nd)
            hlo, hhi = inside(h0, r.dh, r.kh, r.nh)
            for ow in range(r.ow):
                w0 = ow * r.sw - r.pw
                wlo, whi = inside(w0, r.dw, r.kw, r.nw)
                to = (row * r.ow + ow) * channels
                for c in range(c0, c1):
                    y[to + c] = lowest
                for kd in range(dlo, dhi):
                    for kh in range(hlo, hhi):
                        line = image + (d0 + kd * r.dd) * r.nh + h0 + kh * r.dh
                        for kw in range(wlo, whi, 3):
                            # Three taps a round; at the edge the last one is looked at again.
                            a = (line * r.nw + w0 + kw * r.dw) * channels
                            b = a + min(1, whi - 1 - kw) * step
                            e = a + min(2, whi - 1 - kw) * step
                            for c in range(c0, c1):
                                m = y[to + c]
                                m = x[a + c] if x[a + c] > m else m
                                m = x[b + c] if x[b + c] > m else m
                                m = x[e + c] if x[e + c] > m else m
                                y[to + c] = m

    return kernel


def average(kind):  # type: ignore[no-untyped-def]
    """The mean of each window: taps outside the image are 0, and count if they lie on its counted padding."""
    pointer, codes = _POINTER[kind], kind == "u8"
    sums = i32 if codes else f32
    zero = types.int32(0) if codes else np.float32(0)
    number = types.int32 if codes else types.float32

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, acc = pointer(r.x), pointer(r.y), sums(r.sums + tid * r.channels * 4)
        channels, block, step = r.channels, r.block, r.dw * r.channels
        blocks = (channels + block - 1) // block
        lo, hi = share(r.rows * blocks, tid, nthreads)
        for unit in range(lo, hi):
            row, c0 = unit // blocks, unit % blocks * block
            c1 = min(c0 + block, channels)
            image, d0, h0 = place(r, row)
            dlo, dhi = inside(d0, r.dd, r.kd, r.nd)
            hlo, hhi = inside(h0, r.dh, r.kh, r.nh)
            # Begins of padding always hold a whole tap; ends may not, where the output's extent was rounded up.
            _, dcount = inside(d0 + r.pd, r.dd, r.kd, r.nd + r.pd + r.qd)
            _, hcount = inside(h0 + r.ph, r.dh, r.kh, r.nh + r.ph + r.qh)
            for ow in range(r.ow):
                w0 = ow * r.sw - r.pw
                wlo, whi = inside(w0, r.dw, r.kw, r.nw)
                valid = (dhi - dlo) * (hhi - hlo) * (whi - wlo)
                count = valid
                if r.padding_counts != 0:
                    _, wcount = inside(w0 + r.pw, r.dw, r.kw, r.nw + r.pw + r.qw)
                    count = dcount * hcount * wcount
                for c in range(c0, c1):
                    acc[c] = zero
                for kd in range(dlo, dhi):
                    for kh in range(hlo, hhi):
                        line = image + (d0 + kd * r.dd) * r.nh + h0 + kh * r.dh
                        a = (line * r.nw + w0 + wlo * r.dw) * channels
                        triples = (whi - wlo) // 3
                        for _ in range(triples):
                            b, e = a + step, a + 2 * step
                            for c in range(c0, c1):
                                acc[c] = ((acc[c] + number(x[a + c])) + number(x[b + c])) + number(x[e + c])
                            a += 3 * step
                        for _ in range(whi - wlo - 3 * triples):
                            for c in range(c0, c1):
                                acc[c] = acc[c] + number(x[a + c])
                            a += step
                to = (row * r.ow + ow) * channels
                if codes:
                    multiplier = r.x_scale / (r.y_scale * np.float32(count))
                    shift = types.int32(valid * r.x_zero_point)
                    for c in range(c0, c1):
                        real = np.float32(types.int32(acc[c] - shift)) * multiplier
                        y[to + c] = round_clamp(real, r.low, r.high, r.y_zero_point)
                else:
                    divisor = np.float32(count)
                    for c in range(c0, c1):
                        y[to + c] = acc[c] / divisor

    return kernel
