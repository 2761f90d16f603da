"""Device kernels of the element-wise ops: each thread makes four elements, of floats where it can four neighbours in one store."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    load_u16,
    store4,
    store_f32,
    store_i32,
    store_i64,
    store_u8,
    store_u16,
)
from qrt.jit.lang.cuda_math import BINARY, HALF, UNARY
from qrt.jit.lang.cuda_walk import WARP, place, stretch

COMPARISONS = ("equal", "greater", "greater_or_equal", "less", "less_or_equal")


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
    compares = name in COMPARISONS

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
        elif wide == int32(0):
            one, end = stretch(4)
            for at in range(one, min(end, int64(n)), WARP):
                left_at = place(at, n1, n2, n3, n4, n5, a0, a1, a2, a3, a4, a5)
                right_at = place(at, n1, n2, n3, n4, n5, b0, b1, b2, b3, b4, b5)
                result = f(load_f32(a + int64(4) * left_at), load_f32(b + int64(4) * right_at))
                if compares:
                    store_u8(y + at, int32(result))
                else:
                    store_f32(y + int64(4) * at, float32(result))

    return kernel


def _bytes(dtype: str) -> int:
    return {"int64": 8, "int32": 4, "float32": 4, "float16": 2, "bfloat16": 2}.get(dtype, 1)


# How an element of each dtype is read, and what writes one.
_READ = {"bool": load_u8, "uint8": load_u8, "int8": load_i8, "int32": load_i32, "int64": load_i64, "float32": load_f32}
_WRITE = {"bool": store_u8, "uint8": store_u8, "int8": store_u8, "int32": store_i32, "int64": store_i64, "float32": store_f32}
_READ |= dict.fromkeys(("float16", "bfloat16"), load_u16)
_WRITE |= dict.fromkeys(("float16", "bfloat16"), store_u16)

_AND, _OR, _XOR = device(lambda a, b: a & b), device(lambda a, b: a | b), device(lambda a, b: a ^ b)
_BITS = {"and": _AND, "bitwise_and": _AND, "or": _OR, "bitwise_or": _OR, "xor": _XOR, "bitwise_xor": _XOR}


def binary_of_integers(name: str, dtype: str) -> Any:
    """y = f(a, b) of integers and bools, element by element; comparisons give bytes."""
    f, size, read = {**BINARY, **_BITS}[name], _bytes(dtype), _READ[dtype]
    compares = name in COMPARISONS
    to, write = 1 if compares else size, store_u8 if compares else _WRITE[dtype]
    kind = int64 if to == 8 else int32

    def kernel(  # type: ignore[no-untyped-def]
        y, n, n1, n2, n3, n4, n5, a, a0, a1, a2, a3, a4, a5, b, b0, b1, b2, b3, b4, b5,
    ):  # fmt: skip
        one, end = stretch(4)
        for at in range(one, min(end, int64(n)), WARP):
            left = read(a + int64(size) * place(at, n1, n2, n3, n4, n5, a0, a1, a2, a3, a4, a5))
            right = read(b + int64(size) * place(at, n1, n2, n3, n4, n5, b0, b1, b2, b3, b4, b5))
            write(y + int64(to) * at, kind(f(left, right)))

    return kernel


def where(size: int) -> Any:
    """y = a where the byte c is not 0, else b, of elements of 1, 4 or 8 bytes."""
    dtype = {1: "uint8", 4: "int32", 8: "int64"}[size]
    read, write = _READ[dtype], _WRITE[dtype]

    def kernel(  # type: ignore[no-untyped-def]
        y, n, n1, n2, n3, n4, n5, c, c0, c1, c2, c3, c4, c5, a, a0, a1, a2, a3, a4, a5, b, b0, b1, b2, b3, b4, b5,
    ):  # fmt: skip
        one, end = stretch(4)
        for at in range(one, min(end, int64(n)), WARP):
            held = load_u8(c + place(at, n1, n2, n3, n4, n5, c0, c1, c2, c3, c4, c5))
            source = a + int64(size) * place(at, n1, n2, n3, n4, n5, a0, a1, a2, a3, a4, a5)
            other = b + int64(size) * place(at, n1, n2, n3, n4, n5, b0, b1, b2, b3, b4, b5)
            write(y + int64(size) * at, read(source if held != int32(0) else other))

    return kernel


def cast(source: str, result: str) -> Any:
    """The n elements of x in another dtype: see unary.cast. "not" as the result is the bool that x is not."""
    size, to, read = _bytes(source), _bytes(result), _READ[source]
    inverts, of_floats = result == "not", source == "float32"
    write = store_u8 if inverts else _WRITE[result]
    whole = int64 if to == 8 else int32
    low = np.float32(-(2.0 ** (63 if to == 8 else 31)))
    high = np.nextafter(-low, np.float32(0))  # the largest float that `whole` holds

    @device
    def truncated(x):  # type: ignore[no-untyped-def]
        x = x if x > low else low  # a NaN gives the lower end
        return whole(x if x < high else high)

    logical = device(lambda x: int32(x == 0)) if inverts else device(lambda x: int32(x != 0))
    number = truncated if of_floats else device(lambda x: whole(x))
    convert = logical if result in ("not", "bool") else device(lambda x: float32(x)) if result == "float32" else number
    convert = HALF.get(f"from_{source}") or HALF.get(f"to_{result}") or convert

    def kernel(x, y, n):  # type: ignore[no-untyped-def]
        one, end = stretch(4)
        for at in range(one, min(end, n), WARP):
            write(y + int64(to) * at, convert(read(x + int64(size) * at)))

    return kernel
