"""Device kernels of windows over images, channels last: depthwise, and of several groups; and what makes rows of windows for products.

A thread makes whole words of a pixel's results, by dot products of four bytes; a table of offsets says where a window's taps lie. The
record is `device.RECORD`; what epilogues read of it travels as `rules`: lo, hi, c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset.
"""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    add,
    as_float,
    cuda,
    device,
    dp4a,
    int32,
    int64,
    load4,
    load_f32,
    load_i32,
    load_u8,
    multiply,
    nearest,
    permute,
    quotient,
    store4,
    store_f32,
    store_i32,
    store_u8,
    to_float,
)
from qrt.jit.lang.cuda_codes import adder, code_of


@device
def word_of(x, count):  # type: ignore[no-untyped-def]
    """The first `count` of four bytes, then zeros."""
    word = int32(0)
    for e in range(4):
        if int32(e) < count:
            word = int32(word | (load_u8(x + int64(e)) << int32(8 * e)))
    return word


@device
def columns_of(a, b, c, d):  # type: ignore[no-untyped-def]
    """Four words of four bytes, turned over: the first bytes of all, the second ones, …"""
    front0, back0 = permute(a, b, int32(0x5140)), permute(a, b, int32(0x7362))
    front1, back1 = permute(c, d, int32(0x5140)), permute(c, d, int32(0x7362))
    return (
        permute(front0, front1, int32(0x5410)),
        permute(front0, front1, int32(0x7632)),
        permute(back0, back1, int32(0x5410)),
        permute(back0, back1, int32(0x7632)),
    )


def starter(epilogue: str) -> Any:
    """What four neighbours' accumulators start from, and the word that padding reads."""
    dynamic = epilogue == "f32d"

    @device
    def start(bias, column):  # type: ignore[no-untyped-def]
        if dynamic:
            return (int32(0), int32(0), int32(0), int32(0))
        return load4(bias + int64(4) * int64(column))

    @device
    def padding(pad, a_zero_point):  # type: ignore[no-untyped-def]
        return int32(load_u8(a_zero_point) * int32(0x01010101)) if dynamic else pad

    return start, padding


def coder(epilogue: str) -> Any:
    """What makes a word of codes of four neighbours' accumulators."""
    sums, looks_up = epilogue in ("u8add", "u8radd"), epilogue == "u8t"
    _, sums_of = adder(epilogue == "u8radd")

    @device
    def four(acc, factors, low, high, zero_point, table):  # type: ignore[no-untyped-def]
        word = int32(0)
        for e in range(4):
            one = code_of(acc[e], as_float(factors[e]), low, high, zero_point)
            word = int32(word | ((load_u8(table + int64(one)) if looks_up else one) << int32(8 * e)))
        return word

    @device
    def code(acc, factors, r, left, whole, y_zero_point, rules):  # type: ignore[no-untyped-def]
        """`factors`: the multipliers' bits; `r`: where the residual's codes are, which are `left` or a whole word; or the table."""
        if sums:
            c = four(acc, factors, rules[2], rules[3], int32(nearest(rules[6]) + y_zero_point), r)
            other = load_i32(r) if whole else word_of(r, left)
            return sums_of(c, other, y_zero_point, rules[4], rules[5], rules[7], rules[0], rules[1])
        return four(acc, factors, rules[0], rules[1], y_zero_point, r)

    return code


def leaver(epilogue: str) -> Any:
    """What stores the results of four neighbours, of which `left` are there; codes go to a whole word if `whole`."""
    codes, dynamic, looks_up = epilogue not in ("s32", "f32d"), epilogue == "f32d", epilogue == "u8t"
    code = coder(epilogue)

    @device
    def number(acc, column, y, scale, bias, column_sums, a_scale, a_zero_point):  # type: ignore[no-untyped-def]
        """An accumulator as it is, or with the scale that the run computed."""
        if dynamic:
            at = int64(4) * int64(column)
            centred = int32(acc - int32(load_u8(a_zero_point) * load_i32(column_sums + at)))
            real = multiply(to_float(centred), multiply(load_f32(a_scale), load_f32(scale + at)))
            store_f32(y, add(real, load_f32(bias + at)))
        else:
            store_i32(y, acc)

    @device
    def leave(  # type: ignore[no-untyped-def]
        acc, column, at, left, whole, y, r, scale, bias, column_sums, a_scale, a_zero_point, y_zero_point, rules,
    ):  # fmt: skip
        """`column`: of the constants; `at`: of y, in elements."""
        if codes:
            other = r if looks_up else r + at
            word = code(acc, load4(scale + int64(4) * int64(column)), other, left, whole, y_zero_point, rules)
            if whole:
                store_i32(y + at, word)
            else:
                for e in range(4):
                    if int32(e) < left:
                        store_u8(y + at + int64(e), int32(word >> int32(8 * e)))
        else:
            for e in range(4):
                if int32(e) < left:
                    here = y + int64(4) * (at + int64(e))
                    number(acc[e], int32(column + int32(e)), here, scale, bias, column_sums, a_scale, a_zero_point)

    return leave


def depthwise(epilogue: str, words: int) -> Any:
    """y[…, c] = epilogue(bias + Σ over taps of x[…, c] · w[tap, c]); a thread makes `words` words of codes, or one of anything else."""
    lanes = 4 * words
    start, padding = starter(epilogue)
    code, leave = coder(epilogue), leaver(epilogue)

    @device
    def read(source, offset, pad):  # type: ignore[no-untyped-def]
        """One tap's codes: `words` words."""
        found = (pad, pad, pad, pad)
        if offset >= int32(0):
            if words == 4:
                found = load4(source + int64(offset))
            else:
                found = (load_i32(source + int64(offset)), pad, pad, pad)
        return found

    @device
    def four_taps(source, offsets, w, pad, acc):  # type: ignore[no-untyped-def]
        a, b = read(source, offsets[0], pad), read(source, offsets[1], pad)
        c, d = read(source, offsets[2], pad), read(source, offsets[3], pad)
        for q in range(words):
            taps, factors = columns_of(a[q], b[q], c[q], d[q]), load4(w + int64(16 * q))
            for e in range(4):
                acc[4 * q + e] = dp4a(taps[e], factors[e], acc[4 * q + e])

    @device
    def chunk(acc, column, scale, table, y_zero_point, rules):  # type: ignore[no-untyped-def]
        """16 codes."""
        at = scale + int64(4) * int64(column)
        return (
            code((acc[0], acc[1], acc[2], acc[3]), load4(at), table, int32(4), True, y_zero_point, rules),
            code((acc[4], acc[5], acc[6], acc[7]), load4(at + int64(16)), table, int32(4), True, y_zero_point, rules),
            code((acc[8], acc[9], acc[10], acc[11]), load4(at + int64(32)), table, int32(4), True, y_zero_point, rules),
            code((acc[12], acc[13], acc[14], acc[15]), load4(at + int64(48)), table, int32(4), True, y_zero_point, rules),
        )

    def kernel(  # type: ignore[no-untyped-def]
        x, offsets, w, bias, scale, y, r, a_scale, a_zero_point, column_sums, x_batch, threads, pixels, columns, taps, k, n, channels, pad,
        y_zero_point, lo, hi, c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset,
    ):  # fmt: skip
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(threads):
            blocks = int32(columns // int32(lanes))
            pixel = quotient(int32(i), blocks)
            column = int32(int32(int32(i) - pixel * blocks) * int32(lanes))
            image = quotient(pixel, pixels)
            table = offsets + int64(4) * int64(int32(pixel - image * pixels)) * int64(taps)
            source, w_at = x + int64(image) * x_batch + int64(column), w + int64(4) * int64(column)
            outside = padding(pad, a_zero_point)
            acc = cuda.local.array(lanes, int32)
            for q in range(words):
                first = start(bias, int32(column + int32(4 * q)))
                for e in range(4):
                    acc[4 * q + e] = first[e]
            for _ in range(int32(taps >> int32(2))):
                four_taps(source, load4(table), w_at, outside, acc)
                table, w_at = table + int64(16), w_at + int64(4) * int64(columns)
            at = int64(pixel) * int64(channels) + int64(column)
            rules = (lo, hi, c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset)
            if words == 4:
                store4(y + at, chunk(acc, column, scale, r, y_zero_point, rules))
            else:
                left, whole = int32(channels - column), int32(channels & int32(3)) == int32(0)
                leave(
                    (acc[0], acc[1], acc[2], acc[3]), column, at, left, whole, y, r, scale, bias, column_sums, a_scale, a_zero_point,
                    y_zero_point, rules,
                )  # fmt: skip

    return kernel


def grouped(epilogue: str) -> Any:
    """y[…, g, c] = epilogue(bias + Σ over taps and k of x[…, g, :] · w[g, tap, :, c]); a thread makes four neighbours of a group.

    Constants and weights hold the columns of each group up to a multiple of four: `columns` of all.
    """
    start, padding = starter(epilogue)
    leave = leaver(epilogue)

    def kernel(  # type: ignore[no-untyped-def]
        x, offsets, w, bias, scale, y, r, a_scale, a_zero_point, column_sums, x_batch, threads, pixels, columns, taps, k, n, channels, pad,
        y_zero_point, lo, hi, c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset,
    ):  # fmt: skip
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(threads):
            blocks = int32(columns >> int32(2))
            pixel = quotient(int32(i), blocks)
            block = int32(int32(i) - pixel * blocks)
            blocks_a_group = int32(int32(n + int32(3)) >> int32(2))
            group = quotient(block, blocks_a_group)
            within = int32(int32(block - group * blocks_a_group) * int32(4))
            column, image = int32(block * int32(4)), quotient(pixel, pixels)
            table = offsets + int64(4) * int64(int32(pixel - image * pixels)) * int64(taps)
            source, w_at = x + int64(image) * x_batch + int64(group) * int64(k), w + int64(4) * int64(column)
            outside, whole = padding(pad, a_zero_point), int32(k & int32(3)) == int32(0)
            acc = start(bias, column)
            for _ in range(taps):
                offset = load_i32(table)
                here = source + int64(offset)
                for step in range(0, k, 4):
                    word = outside
                    if offset >= int32(0):
                        word = load_i32(here + int64(step)) if whole else word_of(here + int64(step), int32(k - int32(step)))
                    factors = load4(w_at)
                    acc = (
                        dp4a(word, factors[0], acc[0]),
                        dp4a(word, factors[1], acc[1]),
                        dp4a(word, factors[2], acc[2]),
                        dp4a(word, factors[3], acc[3]),
                    )
                    w_at = w_at + int64(4) * int64(columns)
                table = table + int64(4)
            at = int64(pixel) * int64(channels) + int64(group) * int64(n) + int64(within)
            rules = (lo, hi, c_lo, c_hi, c_ratio, r_ratio, c_zero_point, sum_offset)
            left, words = int32(n - within), int32(n & int32(3)) == int32(0)
            leave(acc, column, at, left, words, y, r, scale, bias, column_sums, a_scale, a_zero_point, y_zero_point, rules)

    return kernel


def rows_of_windows() -> Any:
    """y [m][row]: of each place of a window the codes of all its taps, then zeros; a thread makes 16 bytes. `code`: where padding's is."""

    def kernel(x, offsets, y, code, x_batch, threads, pixels, taps, k, row):  # type: ignore[no-untyped-def]
        i = int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)
        if i < int64(threads):
            chunks = int32(row >> int32(4))
            place = quotient(int32(i), chunks)
            at = int32(int32(int32(i) - place * chunks) * int32(16))
            image = quotient(place, pixels)
            table = offsets + int64(4) * int64(int32(place - image * pixels)) * int64(taps)
            source, pad = x + int64(image) * x_batch, load_u8(code)
            tap = quotient(at, k)
            channel = int32(at - tap * k)
            words = cuda.local.array(4, int32)
            for q in range(4):
                word = int32(0)
                for e in range(4):
                    if tap < taps:
                        offset = load_i32(table + int64(4) * int64(tap))
                        one = load_u8(source + int64(offset) + int64(channel)) if offset >= int32(0) else pad
                        word = int32(word | (one << int32(8 * e)))
                    channel = int32(channel + int32(1))
                    if channel == k:
                        channel, tap = int32(0), int32(tap + int32(1))
                words[q] = word
            store4(y + int64(16) * i, (words[0], words[1], words[2], words[3]))

    return kernel
