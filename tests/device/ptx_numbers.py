"""What PTX's instructions on numbers compute, on arrays of a number for each thread. After NVIDIA's "Parallel Thread Execution ISA"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from device.ptx import KINDS, PtxError

from qrt.jit.lang.cuda_twins import TWINS

Array = np.ndarray
Function = Callable[..., Any]

BITS = {np.dtype("f4"): np.dtype("u4"), np.dtype("f8"): np.dtype("u8")}
# Floats are rounded once, to even: an instruction that does not say so may be fused with another.
ROUNDED = ("add", "sub", "mul", "fma", "div", "sqrt", "rcp")


def _shift_left(a: Array, by: Array) -> Array:
    width = 8 * a.itemsize
    return np.where(by < width, a << (by & (width - 1)).astype(a.dtype), a.dtype.type(0))


def _shift_right(a: Array, by: Array) -> Array:
    """Of signed numbers, the sign comes in."""
    return a >> np.minimum(by, 8 * a.itemsize - 1).astype(a.dtype) if a.dtype.kind == "i" else _shift_right_unsigned(a, by)


def _shift_right_unsigned(a: Array, by: Array) -> Array:
    width = 8 * a.itemsize
    return np.where(by < width, a >> (by & (width - 1)).astype(a.dtype), a.dtype.type(0))


def _divide(a: Array, b: Array) -> Array:
    """Of integers, towards 0."""
    return a / b if a.dtype.kind == "f" else (a - np.fmod(a, b)) // b


def _largest(pick: Function, of_zeros: Function) -> Function:
    """max and min: a number wins against NaN; -0 is less than +0."""

    def choose(a: Array, b: Array) -> Array:
        a, b = np.broadcast_arrays(a, b)
        if a.dtype.kind != "f":
            return np.asarray(pick(a, b))
        kind = BITS[a.dtype]
        zeros = of_zeros(np.ascontiguousarray(a).view(kind), np.ascontiguousarray(b).view(kind)).view(a.dtype)
        return np.where((a == 0) & (b == 0), zeros, pick(a, b))

    return choose


def _sign(change: Callable[[Array, Any], Array]) -> Callable[[Array], Array]:
    """abs and neg of floats touch the sign alone."""

    def act(a: Array) -> Array:
        bits = np.ascontiguousarray(a).view(BITS[a.dtype])
        return change(bits, bits.dtype.type(1 << 8 * a.itemsize - 1)).view(a.dtype)

    return act


def _bit_field_insert(a: Array, b: Array, at: Array, count: Array) -> Array:
    """The low `count` bits of a, at bit `at` of b. Both are literals in what is compiled here."""
    where = ((1 << int(count)) - 1) << int(at) & (1 << 8 * b.itemsize) - 1
    mask = b.dtype.type(where)
    return (b & ~mask) | (_shift_left(a, np.uint32(int(at))) & mask)


def _permute(a: Array, b: Array, which: Array) -> Array:
    """Four times one of the eight bytes of a and b, or the sign of that, by a digit of `which`."""
    pair, found = a.astype("u8") | b.astype("u8") << np.uint64(32), np.uint32(0)
    for k in range(4):
        digit = (which >> np.uint32(4 * k)).astype("u8") & np.uint64(15)
        byte = (pair >> (digit & np.uint64(7)) * np.uint64(8) & np.uint64(255)).astype("u4")
        byte = np.where(digit & np.uint64(8), np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0)), byte)
        found = found | byte << np.uint32(8 * k)
    return np.asarray(found)


def _wide(a: Array, b: Array) -> Array:
    kind = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
    return a.astype(kind) * b.astype(kind)


PLAIN: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mad": lambda a, b, c: a * b + c,
    "div": _divide,
    "rem": np.fmod,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": _shift_left,
    "shr": _shift_right,
    "min": _largest(np.fmin, np.bitwise_or),
    "max": _largest(np.fmax, np.bitwise_and),
    "sqrt": np.sqrt,
    "rcp": lambda a: a.dtype.type(1) / a,
    "bfi": _bit_field_insert,
    "prmt": _permute,
    "mov": lambda a: a,
}
SIGNS = {"neg": _sign(np.bitwise_xor), "abs": _sign(lambda bits, sign: bits & ~sign)}
# setp: of numbers and codes; then of floats, where NaN makes all but "neu", "geu" … false.
COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "ne_float": lambda a, b: (a < b) | (a > b),
    "neu": np.not_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
ROUNDINGS: dict[str, Function] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(modes: tuple[str, ...], to: np.dtype, kind: np.dtype) -> Function:
    """cvt of `kind` to `to`."""
    if to.kind != "f" and kind.kind != "f":
        return lambda a: a.astype(to)
    (mode,) = modes or ("",)
    if kind.kind != "f" or (to.kind == "f" and to.itemsize < kind.itemsize):
        if mode != "rn":
            raise PtxError(f"cvt of {kind} to {to} rounds {mode or 'in no way'}")
        return lambda a: a.astype(to)
    if to == kind:
        return ROUNDINGS[mode]
    if to.kind == "f":
        return lambda a: a.astype(to)
    limits = np.iinfo(to)
    nan = 0 if to.itemsize < 8 and kind.itemsize < 8 else limits.min

    def whole(a: Array) -> Array:
        """What does not fit becomes the bound on its side."""
        rounded = ROUNDINGS[mode](a.astype(np.longdouble))
        held = np.clip(np.where(np.isnan(a), 0, rounded), limits.min, limits.max).astype(to)
        return np.where(np.isnan(a), to.type(nan), held)

    return whole


def number_function(name: tuple[str, ...]) -> tuple[Function, np.dtype, tuple[np.dtype | None, ...]]:
    """Of an instruction's name: the function, the kind of the result, and those of operands (None: as the result's)."""
    word, *modes, last = name
    kind = KINDS[last]
    if word in ROUNDED and kind.kind == "f" and modes != ["rn"]:
        raise PtxError(f"{'.'.join(name)} does not say how it rounds")
    if word == "mul" and modes == ["wide"]:
        return _wide, np.dtype(f"{kind.kind}{2 * kind.itemsize}"), (kind, kind)
    if word in ("shl", "shr"):
        return PLAIN[word], kind, (kind, np.dtype("u4"))
    if word == "bfi":
        return PLAIN[word], kind, (kind, kind, np.dtype("u4"), np.dtype("u4"))
    if word == "setp":
        (test,) = modes
        if kind.kind == "f" and test == "ne":
            test = "ne_float"
        return COMPARISONS[test], KINDS["pred"], (kind, kind)
    if word == "selp":
        return lambda a, b, which: np.where(which, a, b), kind, (kind, kind, KINDS["pred"])
    if word == "cvt":
        return convert(tuple(modes[:-1]), KINDS[modes[-1]], kind), KINDS[modes[-1]], (kind,)
    if word == "dp4a":
        return _dot_of_bytes, np.dtype("i4"), (np.dtype("u4"), np.dtype("i4"), np.dtype("i4"))
    if word == "fma":
        return _fma(kind), kind, (None,) * 3
    if word in SIGNS and kind.kind == "f":
        return SIGNS[word], kind, (None,)
    if word in ("neg", "abs"):
        return {"neg": np.negative, "abs": np.abs}[word], kind, (None,)
    if word == "mul" and kind.kind != "f" and modes != ["lo"]:
        raise PtxError(f"{'.'.join(name)} is not known")
    return PLAIN[word], kind, (None,) * 3


def _dot_of_bytes(a: Array, b: Array, c: Array) -> Array:
    a, b = np.broadcast_arrays(a, b)
    return np.asarray(TWINS["dp4a"](np.ascontiguousarray(a), np.ascontiguousarray(b), c))


def _fma(kind: np.dtype) -> Function:
    if kind != np.float32:
        raise PtxError("fma of float64 is not known")
    return TWINS["fma"]
