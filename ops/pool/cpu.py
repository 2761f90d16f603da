"""Kernels of pooling, channels last: one output pixel after the other, lanes run over its channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from qrt.jit.lang import device, f32, fields, i8, i32, share, u8
from qrt.jit.lang.rounding import round_clamp

_POINTER = {"f32": f32, "u8": u8, "s8": i8}
_LOWEST = {"f32": float("-inf"), "u8": 0, "s8": -128}
_BYTES = {"f32": 4, "u8": 1, "s8": 1}
# Channels at once from which on the usual windows have code of their own.
_WIDE = 16


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


def _reducer(kind: str, width: int, averages: bool) -> Any:
    """The function reduce(x, planes, plane, rows, row, columns, column, y): `width` channels from `x` on are reduced over
    planes × rows × columns taps, whose distances are in bytes, and go to `y`: their largest, or their sum (float32 or int32)."""
    element = ir.FloatType() if kind == "f32" else ir.IntType(8)
    vector = ir.VectorType(element, width)
    total = ir.VectorType(ir.IntType(32), width) if averages and kind != "f32" else vector
    start = ir.Constant(total, [0 if averages else _LOWEST[kind]] * width)

    def combine(b: Any, acc: Any, x: Any) -> Any:
        if averages:
            return b.fadd(acc, x) if kind == "f32" else b.add(acc, b.zext(x, total))
        larger = {"f32": b.fcmp_ordered, "u8": b.icmp_unsigned, "s8": b.icmp_signed}[kind](">", x, acc)
        return b.select(larger, x, acc)

    def load(b: Any, address: Any) -> Any:
        return b.load(b.inttoptr(address, vector.as_pointer()), align=1)

    def store(b: Any, value: Any, address: Any) -> None:
        b.store(value, b.inttoptr(address, total.as_pointer()), align=1)

    @intrinsic
    def reduce(typing_context, x, planes, plane, rows, row, columns, column, y):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            at, planes, plane, rows, row, columns, column, y = args
            acc = cgutils.alloca_once_value(builder, start)
            builder.store(start, acc)
            with cgutils.for_range(builder, planes) as d, cgutils.for_range(builder, rows) as h, cgutils.for_range(builder, columns) as w:
                offset = builder.add(builder.mul(d.index, plane), builder.add(builder.mul(h.index, row), builder.mul(w.index, column)))
                builder.store(combine(builder, builder.load(acc), load(builder, builder.add(at, offset))), acc)
            store(builder, builder.load(acc), y)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    def square(side: int) -> Any:
        """The same over a square, without a loop."""

        @intrinsic
        def reduce_square(typing_context, x, row, column, y):  # type: ignore[no-untyped-def]
            def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
                line, row, column, y = args
                acc = start
                for _ in range(side):
                    at = line
                    for _ in range(side):
                        acc, at = combine(builder, acc, load(builder, at)), builder.add(at, column)
                    line = builder.add(line, row)
                store(builder, acc, y)
                return context.get_dummy_value()

            return types.void(*[types.int64] * 4), codegen

        return reduce_square

    if width < _WIDE:
        return reduce
    square2, square3 = square(2), square(3)

    @device
    def reduce_some(x, planes, plane, rows, row, columns, column, y):  # type: ignore[no-untyped-def]
        if planes == 1 and rows == 3 and columns == 3:
            square3(x, row, column, y)
        elif planes == 1 and rows == 2 and columns == 2:
            square2(x, row, column, y)
        else:
            reduce(x, planes, plane, rows, row, columns, column, y)

    return reduce_some


def maximum(kind):  # type: ignore[no-untyped-def]
    """The largest of each window; taps outside the image do not count."""
    size = _BYTES[kind]
    largest64, largest16, largest4, largest1 = (_reducer(kind, width, False) for width in (64, 16, 4, 1))

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        channels, block = r.channels, r.block
        # Bytes from one tap to the next along each axis.
        x_pixel, y_pixel = r.x_pixel * size, r.y_pixel * size
        column, row, plane = r.dw * x_pixel, r.dh * r.nw * x_pixel, r.dd * r.nh * r.nw * x_pixel
        blocks = (channels + block - 1) // block
        lo, hi = share(r.rows * blocks, tid, nthreads)
        for unit in range(lo, hi):
            line, c0 = unit // blocks, unit % blocks * block
            c1 = min(c0 + block, channels)
            image, d0, h0 = place(r, line)
            dlo, dhi = inside(d0, r.dd, r.kd, r.nd)
            hlo, hhi = inside(h0, r.dh, r.kh, r.nh)
            first = image + (d0 + dlo * r.dd) * r.nh + h0 + hlo * r.dh
            d, h = dhi - dlo, hhi - hlo
            for ow in range(r.ow):
                w0 = ow * r.sw - r.pw
                wlo, whi = inside(w0, r.dw, r.kw, r.nw)
                w = whi - wlo
                at = r.x + (first * r.nw + w0 + wlo * r.dw) * x_pixel + c0 * size
                to = r.y + (line * r.ow + ow) * y_pixel + c0 * size
                left = c1 - c0
                while left >= 64:
                    largest64(at, d, plane, h, row, w, column, to)
                    at, to, left = at + 64 * size, to + 64 * size, left - 64
                while left > 0 and c1 - c0 >= 16:
                    if left < 16:  # the last 16, some of them again
                        at, to, left = at - (16 - left) * size, to - (16 - left) * size, 16
                    largest16(at, d, plane, h, row, w, column, to)
                    at, to, left = at + 16 * size, to + 16 * size, left - 16
                while left >= 4:
                    largest4(at, d, plane, h, row, w, column, to)
                    at, to, left = at + 4 * size, to + 4 * size, left - 4
                while left > 0:
                    largest1(at, d, plane, h, row, w, column, to)
                    at, to, left = at + size, to + size, left - 1

    return kernel


def _finisher(kind: str, width: int) -> Any:
    """finish(r, sums, y, valid, count): `width` sums become means of `count` taps, of which `valid` lie on the image."""
    if kind == "f32":

        @device
        def divide(r, sums, y, valid, count):  # type: ignore[no-untyped-def]
            total, out, divisor = f32(sums), f32(y), np.float32(count)
            for c in range(width):
                out[c] = total[c] / divisor

        return divide

    @device
    def requantize(r, sums, y, valid, count):  # type: ignore[no-untyped-def]
        total, out = i32(sums), u8(y)
        multiplier = r.x_scale / (r.y_scale * np.float32(count))
        shift = types.int32(valid * r.x_zero_point)
        for c in range(width):
            real = np.float32(types.int32(total[c] - shift)) * multiplier
            out[c] = round_clamp(real, r.low, r.high, r.y_zero_point)

    return requantize


def average(kind):  # type: ignore[no-untyped-def]
    """The mean of each window: taps outside the image are 0, and count if they lie on its counted padding."""
    size = _BYTES[kind]
    sum64, sum16, sum4, sum1 = (_reducer(kind, width, True) for width in (64, 16, 4, 1))
    finish64, finish16, finish4, finish1 = (_finisher(kind, width) for width in (64, 16, 4, 1))

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        channels, block, sums = r.channels, r.block, r.sums + tid * 256
        # Bytes from one tap to the next along each axis.
        x_pixel, y_pixel = r.x_pixel * size, r.y_pixel * size
        column, row, plane = r.dw * x_pixel, r.dh * r.nw * x_pixel, r.dd * r.nh * r.nw * x_pixel
        blocks = (channels + block - 1) // block
        lo, hi = share(r.rows * blocks, tid, nthreads)
        for unit in range(lo, hi):
            line, c0 = unit // blocks, unit % blocks * block
            c1 = min(c0 + block, channels)
            image, d0, h0 = place(r, line)
            dlo, dhi = inside(d0, r.dd, r.kd, r.nd)
            hlo, hhi = inside(h0, r.dh, r.kh, r.nh)
            first = image + (d0 + dlo * r.dd) * r.nh + h0 + hlo * r.dh
            d, h = dhi - dlo, hhi - hlo
            # Begins of padding always hold a whole tap; ends may not, where the output's extent was rounded up.
            _, dcount = inside(d0 + r.pd, r.dd, r.kd, r.nd + r.pd + r.qd)
            _, hcount = inside(h0 + r.ph, r.dh, r.kh, r.nh + r.ph + r.qh)
            for ow in range(r.ow):
                w0 = ow * r.sw - r.pw
                wlo, whi = inside(w0, r.dw, r.kw, r.nw)
                w = whi - wlo
                valid = d * h * w
                count = valid
                if r.padding_counts != 0:
                    _, wcount = inside(w0 + r.pw, r.dw, r.kw, r.nw + r.pw + r.qw)
                    count = dcount * hcount * wcount
                at = r.x + (first * r.nw + w0 + wlo * r.dw) * x_pixel + c0 * size
                to = r.y + (line * r.ow + ow) * y_pixel + c0 * size
                left = c1 - c0
                while left >= 64:
                    sum64(at, d, plane, h, row, w, column, sums)
                    finish64(r, sums, to, valid, count)
                    at, to, left = at + 64 * size, to + 64 * size, left - 64
                while left > 0 and c1 - c0 >= 16:
                    if left < 16:  # the last 16, some of them again
                        at, to, left = at - (16 - left) * size, to - (16 - left) * size, 16
                    sum16(at, d, plane, h, row, w, column, sums)
                    finish16(r, sums, to, valid, count)
                    at, to, left = at + 16 * size, to + 16 * size, left - 16
                while left >= 4:
                    sum4(at, d, plane, h, row, w, column, sums)
                    finish4(r, sums, to, valid, count)
                    at, to, left = at + 4 * size, to + 4 * size, left - 4
                while left > 0:
                    sum1(at, d, plane, h, row, w, column, sums)
                    finish1(r, sums, to, valid, count)
                    at, to, left = at + size, to + size, left - 1

    return kernel
