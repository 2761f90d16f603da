"""Functions of one or two numbers, for kernels of every kind of processor: branch-free, so that loops over them vectorise, and made of
single roundings only (multiply, add, divide, and `fma`, which rounds once everywhere), so that all give the same bits.

They are made for the language of the kernels that call them: `device` is its decorator of functions, `bits` and `number` take a float32 to
the int32 of the same bits and back, `int32` wraps, fma(x, y, z) is x · y + z. Errors stand in the docstrings in units in the last place, as
tests/kernels/test_math.py holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["binary", "bounds", "elementary", "unary"]

F = np.float32
# 1.5 · 2**23 rounds to integers (see rounding.py), whose exponent's bias less 1 this adds to them: they end as bits of a power of two.
_ROUNDER = F(12582912.0 + 126)
_LOG2E = F(1.4426950408889634)
# ln 2 in two parts; the first has 9 bits, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = F(0.693359375), F(-2.12194440e-4)
_ZERO, _HALF, _ONE = F(0.0), F(0.5), F(1.0)
_INF, _NAN = F(np.inf), F(np.nan)
_TINY = F(1.17549435e-38)  # the smallest normal number
_SQRT_HALF = F(0.70710678)
_TWO, _SIXTH = F(2), F(1 / 6)
_GELU_A, _GELU_B = F((2 / np.pi) ** 0.5), F((2 / np.pi) ** 0.5 * 0.044715)

# The logarithm's is the minimax polynomial of the Cephes library (S. Moshier); the others were fitted for this file by
# reweighted least squares in float64. Highest power first. That of exp is of 2 · e**x.
_EXP = (F(2.7687214e-3), F(1.6748391e-2), F(8.333601e-2), F(3.333286e-1), F(9.999999e-1), F(2), F(2))
_LOG = (
    F(7.0376836292e-2),
    F(-1.1514610310e-1),
    F(1.1676998740e-1),
    F(-1.2420140846e-1),
    F(1.4249322787e-1),
    F(-1.6668057665e-1),
    F(2.0000714765e-1),
    F(-2.4999993993e-1),
    F(3.3333331174e-1),
)
# tanh(x)/x over x² up to 9², erf(x)/x over x² up to 3.92²: numerator and denominator.
_TANH_P = (F(1.335491337e-8), F(2.060930358e-5), F(3.495603396e-3), F(1.338103914e-1), F(9.999999795e-1))
_TANH_Q = (F(7.776672879e-7), F(3.285658483e-4), F(2.587704226e-2), F(4.671435476e-1), F(1.0))
_ERF_P = (
    F(1.992320341e-8),
    F(-1.957702217e-6),
    F(1.418351800e-4),
    F(3.701129064e-3),
    F(5.057194460e-2),
    F(1.999143744e-1),
    F(1.128379109),
)
_ERF_Q = (F(9.559096407e-4), F(1.435228969e-2), F(1.149941727e-1), F(5.105011607e-1), F(1.0))


def bounds(device: Callable[[Any], Any]) -> Any:
    """The function between(x, low, high) of any numbers."""

    @device
    def between(x, low, high):  # type: ignore[no-untyped-def]
        """x within its bounds; a NaN passes."""
        x = low if x < low else x
        return high if x > high else x

    return between


def elementary(device: Callable[[Any], Any], bits: Any, number: Any, int32: Any, fma: Any) -> dict[str, Any]:
    """By name: exp, log, log1p, sigmoid, tanh, erf."""

    between = bounds(device)

    @device
    def exp(x):  # type: ignore[no-untyped-def]
        """e**x; 1.1 ulp. Results below 2**-125.5 are 0."""
        near = between(x, F(-87.3), F(88.8))  # n is −126 there, whose scale is 0; e**88.8 is infinity already
        shifted = fma(near, _LOG2E, _ROUNDER)
        n = shifted - _ROUNDER
        r = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, near))
        p = fma(fma(fma(fma(_EXP[0], r, _EXP[1]), r, _EXP[2]), r, _EXP[3]), r, _EXP[4])
        return fma(fma(p, r, _EXP[5]), r, _EXP[6]) * number(int32(bits(shifted) << 23))  # 2**(n − 1)

    @device
    def log(x):  # type: ignore[no-untyped-def]
        """Natural logarithm; 2 ulp. 0 gives −∞, negative numbers NaN."""
        subnormal = x < _TINY
        scaled = x * F(8388608.0) if subnormal else x
        raw = bits(scaled)
        k = int32(int32(raw >> 23) - 126)
        m = number(int32((raw & 0x007FFFFF) | 0x3F000000))  # in [1/2, 1)
        small = m < _SQRT_HALF
        e = F(int32(k - 1)) if small else F(k)
        e = e - F(23.0) if subnormal else e
        m = (m + m - _ONE) if small else (m - _ONE)
        z = m * m
        p = fma(fma(fma(fma(_LOG[0], m, _LOG[1]), m, _LOG[2]), m, _LOG[3]), m, _LOG[4])
        p = fma(fma(fma(fma(p, m, _LOG[5]), m, _LOG[6]), m, _LOG[7]), m, _LOG[8])
        y = fma(p * m, z, fma(e, _LN2_LOW, -_HALF * z))
        y = fma(e, _LN2_HIGH, m + y)
        y = y if x < _INF else x  # infinity and NaN
        y = -_INF if x == _ZERO else y
        return _NAN if x < _ZERO else y

    @device
    def log1p(x):  # type: ignore[no-untyped-def]
        """log(1 + x) for x ≥ 0; 3 ulp."""
        w = _ONE + x
        return log(w) + (x - (w - _ONE)) / w if x < _INF else x

    @device
    def sigmoid(x):  # type: ignore[no-untyped-def]
        """1 / (1 + e**−x); 3 ulp. Results below 2**-125 are 0."""
        return _ONE / (_ONE + exp(-x))

    @device
    def tanh(x):  # type: ignore[no-untyped-def]
        """Hyperbolic tangent; 6 ulp."""
        x = between(x, F(-9.0), F(9.0))
        z = x * x
        p = fma(fma(fma(fma(_TANH_P[0], z, _TANH_P[1]), z, _TANH_P[2]), z, _TANH_P[3]), z, _TANH_P[4])
        q = fma(fma(fma(fma(_TANH_Q[0], z, _TANH_Q[1]), z, _TANH_Q[2]), z, _TANH_Q[3]), z, _TANH_Q[4])
        return between(x * p / q, -_ONE, _ONE)

    @device
    def erf(x):  # type: ignore[no-untyped-def]
        """Error function; 7.5 ulp."""
        x = between(x, F(-3.92), F(3.92))  # erf(3.92) rounds to 1
        z = x * x
        p = fma(fma(fma(fma(_ERF_P[0], z, _ERF_P[1]), z, _ERF_P[2]), z, _ERF_P[3]), z, _ERF_P[4])
        p = fma(fma(p, z, _ERF_P[5]), z, _ERF_P[6])
        q = fma(fma(fma(fma(_ERF_Q[0], z, _ERF_Q[1]), z, _ERF_Q[2]), z, _ERF_Q[3]), z, _ERF_Q[4])
        return between(x * p / q, -_ONE, _ONE)

    return {"exp": exp, "log": log, "log1p": log1p, "sigmoid": sigmoid, "tanh": tanh, "erf": erf}


def unary(device: Callable[[Any], Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """f(x, p, q) by name, as `ops.elementwise.UNARY` has them, of float32; of other numbers too where nothing is taken from `words`.

    `words`: those of `elementary`, and fma, sqrt, floor, ceil and nearest (the nearest integer, as a float).
    """
    exp, log, log1p, erf, sigmoid, tanh = (words[name] for name in ("exp", "log", "log1p", "erf", "sigmoid", "tanh"))
    fma, sqrt, floor, ceil, nearest = (words[name] for name in ("fma", "sqrt", "floor", "ceil", "nearest"))
    between = bounds(device)

    @device
    def like(x, number):  # type: ignore[no-untyped-def]
        """`number` in the type of x, so that nothing is promoted."""
        return type(x)(number)

    @device
    def at_least(x, low):  # type: ignore[no-untyped-def]
        return low if x < low else x  # a NaN stays

    @device
    def sign(x, p, q):  # type: ignore[no-untyped-def]
        one, zero = like(x, 1), like(x, 0)
        positive = one if x > zero else x  # 0 and NaN stay
        return like(x, -1) if x < zero else positive

    @device
    def mish(x, p, q):  # type: ignore[no-untyped-def]
        # tanh(log(1 + e)) = e(e + 2) / (e(e + 2) + 2); 1 in float32 from 20 on
        e = exp(x if x < F(20) else F(20))
        n = e * (e + _TWO)
        return x * (n / (n + _TWO))

    @device
    def softplus(x, p, q):  # type: ignore[no-untyped-def]
        return at_least(x, _ZERO) + log1p(exp(-abs(x)))

    @device
    def gelu(x, p, q):  # type: ignore[no-untyped-def]
        half = _HALF * x
        return fma(half, erf(x * _SQRT_HALF), half)

    @device
    def gelu_tanh(x, p, q):  # type: ignore[no-untyped-def]
        half = _HALF * x
        return fma(half, tanh(x * fma(_GELU_B, x * x, _GELU_A)), half)

    return {
        "abs": device(lambda x, p, q: abs(x)),
        "ceil": device(lambda x, p, q: ceil(x)),
        "celu": device(lambda x, p, q: x if x > _ZERO else p * (exp(x / p) - _ONE)),
        "clip": device(lambda x, p, q: between(x, p, q)),
        "cube": device(lambda x, p, q: x * x * x),
        "elu": device(lambda x, p, q: x if x > _ZERO else p * (exp(x) - _ONE)),
        "erf": device(lambda x, p, q: erf(x)),
        "exp": device(lambda x, p, q: exp(x)),
        "floor": device(lambda x, p, q: floor(x)),
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "hard_sigmoid": device(lambda x, p, q: between(p * x + q, _ZERO, _ONE)),
        "hard_swish": device(lambda x, p, q: x * between(x * _SIXTH + _HALF, _ZERO, _ONE)),
        "leaky_relu": device(lambda x, p, q: p * x if x < _ZERO else x),
        "log": device(lambda x, p, q: log(x)),
        "mish": mish,
        "neg": device(lambda x, p, q: -x),
        "reciprocal": device(lambda x, p, q: like(x, 1) / x),
        "relu": device(lambda x, p, q: at_least(x, like(x, 0))),
        "round": device(lambda x, p, q: nearest(x)),
        "selu": device(lambda x, p, q: q * x if x > _ZERO else q * (p * exp(x) - p)),
        "sigmoid": device(lambda x, p, q: sigmoid(x)),
        "sign": sign,
        "softplus": softplus,
        "softsign": device(lambda x, p, q: x / (_ONE + abs(x))),
        "sqrt": device(lambda x, p, q: sqrt(x)),
        "square": device(lambda x, p, q: x * x),
        "swish": device(lambda x, p, q: x * sigmoid(p * x)),
        "tanh": device(lambda x, p, q: tanh(x)),
        "thresholded_relu": device(lambda x, p, q: x if x > p else _ZERO),
    }


def binary(device: Callable[[Any], Any]) -> dict[str, Any]:
    """f(a, b) by name, as `ops.elementwise.BINARY` has them, of numbers that are no integers where they divide."""
    return {
        "add": device(lambda a, b: a + b),
        "div": device(lambda a, b: a / b),
        "equal": device(lambda a, b: a == b),
        "greater": device(lambda a, b: a > b),
        "greater_or_equal": device(lambda a, b: a >= b),
        "less": device(lambda a, b: a < b),
        "less_or_equal": device(lambda a, b: a <= b),
        "max": device(lambda a, b: a if a > b or a != a else b),
        "min": device(lambda a, b: a if a < b or a != a else b),
        "mul": device(lambda a, b: a * b),
        "prelu": device(lambda x, slope: slope * x if x < type(x)(0) else x),
        "sub": device(lambda a, b: a - b),
    }
