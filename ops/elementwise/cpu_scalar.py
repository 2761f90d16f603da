"""What the element-wise kernels do to one element: the rows of UNARY and BINARY, as device functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic

from qrt.jit.lang import device
from qrt.jit.lang import math as m

__all__ = ["BINARY", "INTEGER_BINARY", "UNARY"]

F = np.float32
_SQRT_HALF, _GELU_A, _GELU_B = F(0.5**0.5), F((2 / np.pi) ** 0.5), F(0.044715)
_ZERO, _HALF, _ONE, _TWO, _SIXTH = F(0), F(0.5), F(1), F(2), F(1 / 6)


@device
def _like(x, number):  # type: ignore[no-untyped-def]
    """`number` in the type of x, so that nothing is promoted."""
    return type(x)(number)


@device
def _at_least(x, low):  # type: ignore[no-untyped-def]
    return low if x < low else x  # a NaN stays


@device
def _at_most(x, high):  # type: ignore[no-untyped-def]
    return high if x > high else x


@device
def _bounded(x, low, high):  # type: ignore[no-untyped-def]
    return _at_most(_at_least(x, low), high)


@device
def _sign(x, p, q):  # type: ignore[no-untyped-def]
    one, zero = _like(x, 1), _like(x, 0)
    positive = one if x > zero else x  # 0 and NaN stay
    return _like(x, -1) if x < zero else positive


@device
def _mish(x, p, q):  # type: ignore[no-untyped-def]
    # tanh(log(1 + e)) = e(e + 2) / (e(e + 2) + 2); 1 in float32 from 20 on
    e = m.exp(x if x < F(20) else F(20))
    n = e * (e + _TWO)
    return x * (n / (n + _TWO))


@device
def _softplus(x, p, q):  # type: ignore[no-untyped-def]
    return _at_least(x, _ZERO) + m.log1p(m.exp(-abs(x)))


@device
def _gelu_tanh(x, p, q):  # type: ignore[no-untyped-def]
    return _HALF * x * (_ONE + m.tanh(_GELU_A * (x + _GELU_B * x * x * x)))


UNARY = {
    "abs": device(lambda x, p, q: abs(x)),
    "acos": device(lambda x, p, q: np.arccos(x)),
    "acosh": device(lambda x, p, q: np.arccosh(x)),
    "asin": device(lambda x, p, q: np.arcsin(x)),
    "asinh": device(lambda x, p, q: np.arcsinh(x)),
    "atan": device(lambda x, p, q: np.arctan(x)),
    "atanh": device(lambda x, p, q: np.arctanh(x)),
    "bitwise_not": device(lambda x, p, q: ~x),
    "ceil": device(lambda x, p, q: np.ceil(x)),
    "celu": device(lambda x, p, q: x if x > _ZERO else p * (m.exp(x / p) - _ONE)),
    "clip": device(lambda x, p, q: _bounded(x, p, q)),
    "cos": device(lambda x, p, q: np.cos(x)),
    "cosh": device(lambda x, p, q: np.cosh(x)),
    "cube": device(lambda x, p, q: x * x * x),
    "elu": device(lambda x, p, q: x if x > _ZERO else p * (m.exp(x) - _ONE)),
    "erf": device(lambda x, p, q: m.erf(x)),
    "exp": device(lambda x, p, q: m.exp(x)),
    "floor": device(lambda x, p, q: np.floor(x)),
    "gelu": device(lambda x, p, q: _HALF * x * (_ONE + m.erf(x * _SQRT_HALF))),
    "gelu_tanh": _gelu_tanh,
    "hard_sigmoid": device(lambda x, p, q: _bounded(p * x + q, _ZERO, _ONE)),
    "hard_swish": device(lambda x, p, q: x * _bounded(x * _SIXTH + _HALF, _ZERO, _ONE)),
    "is_inf": device(lambda x, p, q: ((x == _like(x, np.inf)) & (q != 0)) | ((x == _like(x, -np.inf)) & (p != 0))),
    "is_nan": device(lambda x, p, q: x != x),
    "leaky_relu": device(lambda x, p, q: p * x if x < _ZERO else x),
    "log": device(lambda x, p, q: m.log(x)),
    "mish": _mish,
    "neg": device(lambda x, p, q: -x),
    "not": device(lambda x, p, q: x == 0),
    "reciprocal": device(lambda x, p, q: _like(x, 1) / x),
    "relu": device(lambda x, p, q: _at_least(x, _like(x, 0))),
    "round": device(lambda x, p, q: m.nearest(x)),
    "selu": device(lambda x, p, q: q * x if x > _ZERO else q * (p * m.exp(x) - p)),
    "sigmoid": device(lambda x, p, q: m.sigmoid(x)),
    "sign": _sign,
    "sin": device(lambda x, p, q: np.sin(x)),
    "sinh": device(lambda x, p, q: np.sinh(x)),
    "softplus": _softplus,
    "softsign": device(lambda x, p, q: x / (_ONE + abs(x))),
    "sqrt": device(lambda x, p, q: m.sqrt(x)),
    "square": device(lambda x, p, q: x * x),
    "swish": device(lambda x, p, q: x * m.sigmoid(p * x)),
    "tan": device(lambda x, p, q: np.tan(x)),
    "tanh": device(lambda x, p, q: m.tanh(x)),
    "thresholded_relu": device(lambda x, p, q: x if x > p else _ZERO),
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
    "add": device(lambda a, b: a + b),
    "and": device(lambda a, b: a & b),
    "bitwise_and": device(lambda a, b: a & b),
    "bitwise_or": device(lambda a, b: a | b),
    "bitwise_xor": device(lambda a, b: a ^ b),
    "div": device(lambda a, b: a / b),
    "equal": device(lambda a, b: a == b),
    "fmod": device(lambda a, b: np.fmod(a, b)),
    "greater": device(lambda a, b: a > b),
    "greater_or_equal": device(lambda a, b: a >= b),
    "less": device(lambda a, b: a < b),
    "less_or_equal": device(lambda a, b: a <= b),
    "max": device(lambda a, b: a if a > b or a != a else b),
    "min": device(lambda a, b: a if a < b or a != a else b),
    "mod": _integer_mod,
    "mul": device(lambda a, b: a * b),
    "or": device(lambda a, b: a | b),
    "pow": device(lambda a, b: a**b),
    "prelu": device(lambda x, slope: slope * x if x < _like(x, 0) else x),
    "sub": device(lambda a, b: a - b),
    "xor": device(lambda a, b: a ^ b),
}
# Integers divide by functions of their own: hardware traps on division by 0.
INTEGER_BINARY = {**BINARY, "div": _integer_div, "fmod": _integer_fmod}
