"""Kernels between real numbers and codes, and on codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from qrt.jit.lang import device, f32, fields, i32, share, u8
from qrt.jit.lang.math import fma
from qrt.jit.lang.rounding import quotient, round_clamp, rounded
from qrt.jit.lang.rows import row_range
from qrt.jit.lang.streams import POINTERS, read, write
from qrt.jit.lang.tables import look_up, look_up_some
from qrt.ops.elementwise.cpu import before_line, pairs, share_rows

F = np.float32
_ZERO, _ONE, _LAST = F(0), F(1), F(255)


# Scales between which quotients by them, and their products with codes, are far from the ends of float32's range.
_LEAST, _MOST = F(2.0**-60), F(2.0**60)


def _rows(convert: Any) -> Any:
    """The function that converts elements lo … hi − 1 of x to y with one set of parameters, those before `line` first."""

    @device
    def row(x, y, lo, line, hi, p):  # type: ignore[no-untyped-def]
        while lo < hi:
            for i in range(lo, line):
                write(y, i, convert(read(x, i), p))
            lo, line = line, hi

    return row


_code = device(lambda x, p: round_clamp(x / p[0], p[1], p[2], p[3]))
_divided = _rows(_code)


@device
def _multiplied(x, y, lo, line, hi, p):  # type: ignore[no-untyped-def]
    """The same codes without a division, which takes as long as all else together."""
    scale, low, high, zero = p
    if not _LEAST <= scale <= _MOST:
        _divided(x, y, lo, line, hi, p)
        return
    # Bounds times the scale are as good as bounds of the quotient, which is rounded to an integer: they are next to it.
    inverse, least, most = _ONE / scale, low * scale, high * scale
    while lo < hi:
        for i in range(lo, line):
            value = read(x, i)
            value = value if value > least else least
            value = value if value < most else most
            write(y, i, rounded(quotient(value, scale, inverse), zero))
        lo, line = line, hi


def _by_channel(each: Any, row: Any, source: str, result: str) -> Any:
    """The kernel y = each(x, (scale, low, high, zero)) with parameters of each channel; `row` does so for all that have the same."""
    px, py, before = POINTERS[source], POINTERS[result], before_line(source, result)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, scale, low, high, zero = px(r.x), py(r.y), f32(r.scale), f32(r.low), f32(r.high), i32(r.zero)
        channels, inner = r.channels, r.inner
        if channels == 1:
            lo, hi = share(r.outer * inner, tid, nthreads)
            line = lo + before(r.x, lo, r.y, lo, hi - lo)
            row(x, y, lo, line, hi, (scale[0], low[0], high[0], zero[0]))
        elif inner == 1:
            lo, hi = share(r.outer, tid, nthreads)
            for number in range(lo, hi):
                at = number * channels
                for c in range(channels):
                    write(y, at + c, each(read(x, at + c), (read(scale, c), read(low, c), read(high, c), read(zero, c))))
        else:
            lo, hi = share(r.outer * channels, tid, nthreads)
            for number in range(lo, hi):
                c, at = number % channels, number * inner
                line = at + before(r.x, at, r.y, at, inner)
                row(x, y, at, line, at + inner, (scale[c], low[c], high[c], zero[c]))

    return kernel


def quantize(to, has_fma):  # type: ignore[no-untyped-def]
    """Codes of float32."""
    return _by_channel(_code, _multiplied if has_fma else _divided, "float32", to)


def dequantize(of):  # type: ignore[no-untyped-def]
    """float32 of codes."""
    real = device(lambda x, p: F(np.int32(np.int32(x) - p[3])) * p[0])
    return _by_channel(real, _rows(real), of, "float32")


def binary(name, has_fma):  # type: ignore[no-untyped-def]
    """Sum or product of uint8 codes along a walk."""
    params = device(lambda r: (r.fa, r.fb, r.fy, r.low, r.high, r.za, r.zb, r.zy))
    code_fma = fma if has_fma else device(lambda x, y, z: F(np.float64(x) * np.float64(y) + np.float64(z)))

    @device
    def add(a, b, p):  # type: ignore[no-untyped-def]
        ra, rb, k, low, high, za, zb, zy = p
        a, b = F(np.int32(np.int32(a) - za)), F(np.int32(np.int32(b) - zb))
        return round_clamp(code_fma(a, ra, code_fma(b, rb, k)), low, high, zy)

    @device
    def mul(a, b, p):  # type: ignore[no-untyped-def]
        sa, sb, sy, low, high, za, zb, zy = p
        product = (F(np.int32(np.int32(a) - za)) * sa) * (F(np.int32(np.int32(b) - zb)) * sb)
        return round_clamp(product / sy, low, high, zy)

    return pairs({"add": add, "mul": mul}[name], params, "uint8", "uint8")


def lut(width):  # type: ignore[no-untyped-def]
    """y = table[x] over rows of n bytes, in vectors of up to `width` bytes (0: none)."""
    nothing = device(lambda table, x, y, rows, x_row, y_row, vectors: None)
    by64, by32, by16 = (look_up(size) if size <= width else nothing for size in (64, 32, 16))
    pairs, fours = (look_up(width, together) if width else nothing for together in (2, 4))

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        first, end, lo, hi = share_rows(r.rows, r.n, tid, nthreads)
        table, at, to = u8(r.table), r.x + first * r.x_row + lo, r.y + first * r.y_row + lo
        rows, n, x_row, y_row = end - first, hi - lo, r.x_row, r.y_row
        # Of narrow rows, two or four fill a vector.
        begin = 0
        if width and 2 * n == width:
            begin = rows // 2 * 2
            pairs(table, u8(at), u8(to), rows // 2, x_row, y_row, 1)
        elif width and 4 * n == width:
            begin = rows // 4 * 4
            fours(table, u8(at), u8(to), rows // 4, x_row, y_row, 1)
        at, to, rows, done = at + begin * x_row, to + begin * y_row, rows - begin, 0
        if rows > 0 and width >= 64 and n >= 64:
            by64(table, u8(at), u8(to), rows, x_row, y_row, n // 64)
            done = n // 64 * 64
        if rows > 0 and width and n - done >= 32:
            by32(table, u8(at + done), u8(to + done), rows, x_row, y_row, (n - done) // 32)
            done += (n - done) // 32 * 32
        if rows > 0 and width and n - done >= 16:
            by16(table, u8(at + done), u8(to + done), rows, x_row, y_row, 1)
            done += 16
        for row in range(rows):
            x, y = u8(at + row * x_row), u8(to + row * y_row)
            for i in range(done, n):
                write(y, i, read(table, read(x, i)))

    return kernel


def lut_permuted():  # type: ignore[no-untyped-def]
    """y = table[x] over rows of n bytes, by byte permutes."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        first, end, lo, hi = share_rows(r.rows, r.n, tid, nthreads)
        for row in range(first, end):
            x, y = r.x + row * r.x_row, r.y + row * r.y_row
            for i in range(lo, hi, 64):
                look_up_some(u8(r.table), u8(x + i), u8(y + i), min(64, hi - i))

    return kernel


def range_of():  # type: ignore[no-untyped-def]
    """The least and the largest number of each part of x, and 0."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, ranges, n, part = f32(r.x), f32(r.ranges), r.n, r.part
        lo, hi = share((n + part - 1) // part, tid, nthreads)
        for k in range(lo, hi):
            at = k * part
            count = min(part, n - at)
            ranges[2 * k], ranges[2 * k + 1] = row_range(x, at, count)

    return kernel


def dynamic_quantize(has_fma):  # type: ignore[no-untyped-def]
    """Codes, scale and zero point, after range_of. Every thread combines the parts for itself."""
    row, before = _multiplied if has_fma else _divided, before_line("float32", "uint8")

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, ranges, n = f32(r.x), u8(r.y), f32(r.ranges), r.n
        low = high = _ZERO
        for k in range((n + r.part - 1) // r.part):
            a, b = ranges[2 * k], ranges[2 * k + 1]
            low = a if a < low or a != a else low  # a NaN stays
            high = b if b > high or b != b else high
        scale = _ONE if low == high else (high - low) / _LAST
        zero = round_clamp(-low / scale, _ZERO, _LAST, np.int32(0))
        if tid == 0:
            f32(r.scale)[0] = scale
            u8(r.zero)[0] = zero
        least, most = F(-zero), F(np.int32(255 - zero))
        lo, hi = share(n, tid, nthreads)
        line = lo + before(r.x, lo, r.y, lo, hi - lo)
        row(x, y, lo, line, hi, (scale, least, most, zero))

    return kernel
