"""Device kernels of the element-wise ops on floats: each thread makes four neighbours, where it can in one store."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import (
    as_bits,
    as_float,
    cuda,
    device,
    float32,
    int32,
    int64,
    load4,
    load_f32,
    load_i8,
    load_i32,
    load_i64,
    load_u8,
    store4,
    store_f32,
    store_i32,
    store_u8,
)
from qrt.jit.lang.cuda_math import BINARY, UNARY
from qrt.jit.lang.cuda_walk import place


@device
def first():  # type: ignore[no-untyped-def]
    """The first of this thread's four elements."""
    return (int64(cuda.blockIdx.x) * int64(cuda.blockDim.x) + int64(cuda.threadIdx.x)) * int64(4)


def unary(name: str) -> Any:
    """y = f(x, p, q) over n elements."""
    f = UNARY[name]

    def kernel(x, y, n, p, q):  # type: ignore[no-untyped-def]
        i = first()
        if i + int64(4) <= n:
            w = load4(x + int64(4) * i)
            a, b = as_bits(f(as_float(w[0]), p, q)), as_bits(f(as_float(w[1]), p, q))
            store4(y + int64(4) * i, (a, b, as_bits(f(as_float(w[2]), p, q)), as_bits(f(as_float(w[3]), p, q))))
        else:
            for at in range(i, n):
                store_f32(y + int64(4) * at, f(load_f32(x + int64(4) * at), p, q))

    return kernel


@device
def four(x, at, step):  # type: ignore[no-untyped-def]
    """The floats of an operand from element `at` on, `step` (0 or 1) apart; one in four at once where `step` is 1."""
    if step == int64(1):
        w = load4(x + int64(4) * at)
        return as_float(w[0]), as_float(w[1]), as_float(w[2]), as_float(w[3])
    one = load_f32(x + int64(4) * at)
    return one, one, one, one


def binary(name: str) -> Any:
    """y = f(a, b), where `wide` four neighbours at once: the last axis is a multiple of four, and operands are walked along it by 0 or 1.

    Comparisons give bytes.
    """
    f = BINARY[name]
    compares = name in ("equal", "greater", "greater_or_equal", "less", "less_or_equal")

    def kernel(  # type: ignore[no-untyped-def]
        y, n, wide, n1, n2, n3, n4, n5, a, a0, a1, a2, a3, a4, a5, b, b0, b1, b2, b3, b4, b5,
    ):  # fmt: skip
        i = first()
        if wide != int32(0) and i < int64(n):
            left = four(a, place(i, n1, n2, n3, n4, n5, a0, a1, a2, a3, a4, a5), a5)
            right = four(b, place(i, n1, n2, n3, n4, n5, b0, b1, b2, b3, b4, b5), b5)
            r0, r1, r2, r3 = f(left[0], right[0]), f(left[1], right[1]), f(left[2], right[2]), f(left[3], right[3])
            if compares:
                low, high = int32(r0) | (int32(r1) << int32(8)), (int32(r2) << int32(16)) | (int32(r3) << int32(24))
                store_i32(y + i, int32(low | high))
            else:
                store4(y + int64(4) * i, (as_bits(float32(r0)), as_bits(float32(r1)), as_bits(float32(r2)), as_bits(float32(r3))))
        else:
            for at in range(i, min(i + int64(4), int64(n))):
                left_at = place(at, n1, n2, n3, n4, n5, a0, a1, a2, a3, a4, a5)
                right_at = place(at, n1, n2, n3, n4, n5, b0, b1, b2, b3, b4, b5)
                result = f(load_f32(a + int64(4) * left_at), load_f32(b + int64(4) * right_at))
                if compares:
                    store_u8(y + at, int32(result))
                else:
                    store_f32(y + int64(4) * at, float32(result))

    return kernel


def where() -> Any:
    """y = a where the byte c is not 0, else b, of floats."""

    def kernel(  # type: ignore[no-untyped-def]
        y, n, n1, n2, n3, n4, n5, c, c0, c1, c2, c3, c4, c5, a, a0, a1, a2, a3, a4, a5, b, b0, b1, b2, b3, b4, b5,
    ):  # fmt: skip
        i = first()
        for at in range(i, min(i + int64(4), int64(n))):
            held = load_u8(c + place(at, n1, n2, n3, n4, n5, c0, c1, c2, c3, c4, c5))
            source = a + int64(4) * place(at, n1, n2, n3, n4, n5, a0, a1, a2, a3, a4, a5)
            other = b + int64(4) * place(at, n1, n2, n3, n4, n5, b0, b1, b2, b3, b4, b5)
            store_i32(y + int64(4) * at, load_i32(source if held != int32(0) else other))

    return kernel


def to_float(source: str) -> Any:
    """y = float32(x) over n elements of the integer dtype `source`."""
    size = {"int64": 8, "int32": 4}.get(source, 1)

    def kernel(x, y, n):  # type: ignore[no-untyped-def]
        i = first()
        for at in range(i, min(i + int64(4), int64(n))):
            here = x + int64(size) * at
            if size == 8:
                number = float32(load_i64(here))
            elif size == 4:
                number = float32(load_i32(here))
            else:
                number = float32(load_i8(here) if source == "int8" else load_u8(here))
            store_f32(y + int64(4) * at, number)

    return kernel
