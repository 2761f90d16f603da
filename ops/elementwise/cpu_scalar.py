"""What the element-wise kernels do to one element: the rows of UNARY and BINARY, as device functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic

from qrt.jit.lang import device, formulas
from qrt.jit.lang import math as m

__all__ = ["BINARY", "INTEGER_BINARY", "SINGLE_BINARY", "UNARY"]


@device
def _like(x, number):  # type: ignore[no-untyped-def]
    """`number` in the type of x, so that nothing is promoted."""
    return type(x)(number)


UNARY = {
    **formulas.unary(device, {**vars(m), "floor": np.floor, "ceil": np.ceil}),
    "acos": device(lambda x, p, q: np.arccos(x)),
    "acosh": device(lambda x, p, q: np.arccosh(x)),
    "asin": device(lambda x, p, q: np.arcsin(x)),
    "asinh": device(lambda x, p, q: np.arcsinh(x)),
    "atan": device(lambda x, p, q: np.arctan(x)),
    "atanh": device(lambda x, p, q: np.arctanh(x)),
    "bitwise_not": device(lambda x, p, q: ~x),
    "cos": device(lambda x, p, q: m.cos(x)),
    "cosh": device(lambda x, p, q: np.cosh(x)),
    "is_inf": device(lambda x, p, q: ((x == _like(x, np.inf)) & (q != 0)) | ((x == _like(x, -np.inf)) & (p != 0))),
    "is_nan": device(lambda x, p, q: x != x),
    "not": device(lambda x, p, q: x == 0),
    "round_bfloat16": device(lambda x, p, q: m.round_bfloat16(x)),
    "round_float16": device(lambda x, p, q: m.round_float16(x)),
    "sin": device(lambda x, p, q: m.sin(x)),
    "sinh": device(lambda x, p, q: np.sinh(x)),
    "tan": device(lambda x, p, q: np.tan(x)),
}


def _integer_division(signed_name: str, unsigned_name: str) -> Any:
    """The C division of two integers of one type; the divisor must be neither 0 nor −1."""

    @intrinsic
    def divide(typing_context, a, b):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return getattr(builder, signed_name if a.signed else unsigned_name)(*args)

        return a(a, a), codegen

    return divide


_quotient = _integer_division("sdiv", "udiv")
_remainder = _integer_division("srem", "urem")


@device
def _is_minus_one(b):  # type: ignore[no-untyped-def]
    return _like(b, -1) < _like(b, 0) and b == _like(b, -1)


@device
def _integer_div(a, b):  # type: ignore[no-untyped-def]
    special = b == 0 or _is_minus_one(b)
    whole = _quotient(a, _like(b, 1) if special else b)
    if b == 0:
        return _like(a, 0)
    return _like(a, -a) if special else whole


@device
def _integer_fmod(a, b):  # type: ignore[no-untyped-def]
    return _remainder(a, _like(b, 1) if b == 0 or _is_minus_one(b) else b)


@device
def _integer_mod(a, b):  # type: ignore[no-untyped-def]
    rest = _integer_fmod(a, b)
    return _like(a, rest + b) if rest != 0 and (rest < 0) != (b < 0) else rest


BINARY = {
    **formulas.binary(device),
    "and": device(lambda a, b: a & b),
    "bitwise_and": device(lambda a, b: a & b),
    "bitwise_or": device(lambda a, b: a | b),
    "bitwise_xor": device(lambda a, b: a ^ b),
    "fmod": device(lambda a, b: np.fmod(a, b)),
    "mod": _integer_mod,
    "or": device(lambda a, b: a | b),
    "pow": device(lambda a, b: a**b),
    "xor": device(lambda a, b: a ^ b),
}
SINGLE_BINARY = {**BINARY, "pow": m.power}
# Integers divide by functions of their own: hardware traps on division by 0.
INTEGER_BINARY = {**BINARY, "div": _integer_div, "fmod": _integer_fmod}
