"""Device kernels between real numbers and codes, and on codes: each thread makes 16, which leave in whole words. Neighbouring words are
neighbouring threads', so that what a warp reads or writes at once lies in one piece."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    as_bits,
    as_float,
    clamp,
    cuda,
    device,
    divide,
    fma,
    int32,
    int64,
    load4,
    load_f32,
    load_i8,
    load_i32,
    load_u8,
    multiply,
    nearest,
    store4,
    store_f32,
    store_i32,
    store_u8,
    to_float,
)
from qrt.jit.lang.cuda_codes import looked_up
from qrt.jit.lang.cuda_walk import WARP, place, stretch


@device
def first():  # type: ignore[no-untyped-def]
    """The first of this thread's 16 elements."""
    return (int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)) * int64(16)


def quantize(per_channel: int) -> Any:
    """8-bit codes of float32: core.numerics.quantize."""

    @device
    def code(x, i, scale, low, high, zero, channels, inner):  # type: ignore[no-untyped-def]
        at = int64(4) * ((i // int64(inner)) % int64(channels)) if per_channel else int64(0)
        steps = clamp(divide(x, load_f32(scale + at)), load_f32(low + at), load_f32(high + at))
        return int32(nearest(steps) + load_i32(zero + at))

    @device
    def word(values, i, scale, low, high, zero, channels, inner):  # type: ignore[no-untyped-def]
        """Four codes."""
        codes = int32(0)
        for e in range(4):
            one = code(as_float(values[e]), i + int64(e), scale, low, high, zero, channels, inner)
            codes = int32(codes | ((one & int32(255)) << int32(8 * e)))
        return codes

    def kernel(x, y, scale, low, high, zero, n, channels, inner):  # type: ignore[no-untyped-def]
        one, end = stretch(16)
        if end <= n:
            i = one + int64(3) * (one & int64(WARP - 1))  # of each thread's words the first
            i1, i2, i3 = i + int64(4 * WARP), i + int64(8 * WARP), i + int64(12 * WARP)
            a, b = load4(x + int64(4) * i), load4(x + int64(4) * i1)
            c, d = load4(x + int64(4) * i2), load4(x + int64(4) * i3)
            store_i32(y + i, word(a, i, scale, low, high, zero, channels, inner))
            store_i32(y + i1, word(b, i1, scale, low, high, zero, channels, inner))
            store_i32(y + i2, word(c, i2, scale, low, high, zero, channels, inner))
            store_i32(y + i3, word(d, i3, scale, low, high, zero, channels, inner))
        else:
            for at in range(one, n, WARP):
                store_u8(y + at, code(load_f32(x + int64(4) * at), at, scale, low, high, zero, channels, inner))

    return kernel


def dequantize(of: str, per_channel: int) -> Any:
    """float32 of 8-bit codes: core.numerics.dequantize."""
    signed = of == "int8"

    @device
    def real(code, i, scale, zero, channels, inner):  # type: ignore[no-untyped-def]
        at = int64(4) * ((i // int64(inner)) % int64(channels)) if per_channel else int64(0)
        return multiply(to_float(int32(code - load_i32(zero + at))), load_f32(scale + at))

    @device
    def byte(word, e):  # type: ignore[no-untyped-def]
        return int32((word >> int32(8 * e)) & int32(255)) if not signed else int32(int32(word << int32(24 - 8 * e)) >> int32(24))

    @device
    def four(word, i, y, scale, zero, channels, inner):  # type: ignore[no-untyped-def]
        store4(
            y + int64(4) * i,
            (
                as_bits(real(byte(word, 0), i, scale, zero, channels, inner)),
                as_bits(real(byte(word, 1), i + int64(1), scale, zero, channels, inner)),
                as_bits(real(byte(word, 2), i + int64(2), scale, zero, channels, inner)),
                as_bits(real(byte(word, 3), i + int64(3), scale, zero, channels, inner)),
            ),
        )

    def kernel(x, y, scale, zero, n, channels, inner):  # type: ignore[no-untyped-def]
        one, end = stretch(16)
        if end <= n:
            i = one + int64(3) * (one & int64(WARP - 1))
            i1, i2, i3 = i + int64(4 * WARP), i + int64(8 * WARP), i + int64(12 * WARP)
            a, b, c, d = load_i32(x + i), load_i32(x + i1), load_i32(x + i2), load_i32(x + i3)
            four(a, i, y, scale, zero, channels, inner)
            four(b, i1, y, scale, zero, channels, inner)
            four(c, i2, y, scale, zero, channels, inner)
            four(d, i3, y, scale, zero, channels, inner)
        else:
            for at in range(one, n, WARP):
                code = load_i8(x + at) if signed else load_u8(x + at)
                store_f32(y + int64(4) * at, real(code, at, scale, zero, channels, inner))

    return kernel


def lut() -> Any:
    """y = table[x]."""

    def kernel(x, table, y, n):  # type: ignore[no-untyped-def]
        i = first()
        if i + int64(16) <= n:
            words = load4(x + i)
            a, b = looked_up(table, words[0]), looked_up(table, words[1])
            store4(y + i, (a, b, looked_up(table, words[2]), looked_up(table, words[3])))
        else:
            for at in range(i, n):
                store_u8(y + at, load_u8(table + int64(load_u8(x + at))))

    return kernel


def binary(name: str) -> Any:
    """Codes of the sum or the product of codes: `binary.QBinary`. Where `wide`, 16 neighbours at once: the last axis is a multiple of 16,
    and operands are walked along it by 0 or 1."""

    @device
    def code(a, b, fa, fb, fy, low, high, za, zb, zy):  # type: ignore[no-untyped-def]
        a, b = int32(a - za), int32(b - zb)
        if name == "add":
            steps = fma(to_float(a), fa, fma(to_float(b), fb, fy))
        else:
            left, right = multiply(to_float(a), fa), multiply(to_float(b), fb)
            steps = divide(multiply(left, right), fy)
        return int32(nearest(clamp(steps, low, high)) + zy)

    @device
    def word(a, b, fa, fb, fy, low, high, za, zb, zy):  # type: ignore[no-untyped-def]
        """Four codes."""
        found = int32(0)
        for shift in (0, 8, 16, 24):
            left, right = int32((a >> int32(shift)) & int32(255)), int32((b >> int32(shift)) & int32(255))
            found = int32(found | (code(left, right, fa, fb, fy, low, high, za, zb, zy) << int32(shift)))
        return found

    @device
    def sixteen(x, step):  # type: ignore[no-untyped-def]
        """The codes from x on, or 16 times the one there."""
        if step == int64(1):
            return load4(x)
        one = int32(load_u8(x) * int32(0x01010101))
        return one, one, one, one

    def kernel(  # type: ignore[no-untyped-def]
        y, n, wide, n1, n2, n3, n4, n5, a, a0, a1, a2, a3, a4, a5, b, b0, b1, b2, b3, b4, b5, fa, fb, fy, low, high, za, zb, zy,
    ):  # fmt: skip
        i = first()
        if wide:
            if i < int64(n):
                p = sixteen(a + place(i, n1, n2, n3, n4, n5, a0, a1, a2, a3, a4, a5), a5)
                q = sixteen(b + place(i, n1, n2, n3, n4, n5, b0, b1, b2, b3, b4, b5), b5)
                store4(
                    y + i,
                    (
                        word(p[0], q[0], fa, fb, fy, low, high, za, zb, zy),
                        word(p[1], q[1], fa, fb, fy, low, high, za, zb, zy),
                        word(p[2], q[2], fa, fb, fy, low, high, za, zb, zy),
                        word(p[3], q[3], fa, fb, fy, low, high, za, zb, zy),
                    ),
                )
        else:
            one, end = stretch(16)
            for at in range(one, min(end, int64(n)), WARP):
                left = load_u8(a + place(at, n1, n2, n3, n4, n5, a0, a1, a2, a3, a4, a5))
                right = load_u8(b + place(at, n1, n2, n3, n4, n5, b0, b1, b2, b3, b4, b5))
                store_u8(y + at, code(left, right, fa, fb, fy, low, high, za, zb, zy))

    return kernel
