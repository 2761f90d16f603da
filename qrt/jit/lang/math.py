"""float32 functions for kernels: branch-free, so that loops over them vectorise, and made of single roundings only (plain
multiply, add and divide), so that every instruction set gives the same bits.

Errors stand in the docstrings in units in the last place, as tests/kernels/test_math.py holds them.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lang import device

__all__ = ["bits", "erf", "exp", "fma", "log", "log1p", "nearest", "number", "sigmoid", "sqrt", "tanh"]

F = np.float32
_ROUNDER, _ROUNDER_BITS = F(12582912.0), np.int32(0x4B400000)  # 1.5 · 2**23: see rounding.py
_LOG2E = F(1.4426950408889634)
# ln 2 in two parts; the first has 9 bits, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = F(0.693359375), F(-2.12194440e-4)
_ZERO, _HALF, _ONE = F(0.0), F(0.5), F(1.0)
_INF, _NAN = F(np.inf), F(np.nan)
_TINY = F(1.17549435e-38)  # the smallest normal number
_SQRT_HALF = F(0.70710678)

# The logarithm's is the minimax polynomial of the Cephes library (S. Moshier); the others were fitted for this file by
# reweighted least squares in float64. Highest power first.
_EXP = (F(1.395062966e-3), F(8.368970049e-3), F(4.166620373e-2), F(1.666651817e-1), F(5.000000096e-1))
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


@intrinsic
def bits(typing_context, x):  # type: ignore[no-untyped-def]
    """The int32 that has the bits of a float32."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def number(typing_context, x):  # type: ignore[no-untyped-def]
    """The float32 that has the bits of an int32."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def fma(typing_context, x, y, z):  # type: ignore[no-untyped-def]
    """x · y + z, rounded once: an instruction on avx2 and above, a slow call on `generic`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fma(*args)

    return x(x, x, x), codegen


@intrinsic
def nearest(typing_context, x):  # type: ignore[no-untyped-def]
    """The nearest integer, ties to even, as a float."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [args[0].type]), args)

    return x(x), codegen


@intrinsic
def sqrt(typing_context, x):  # type: ignore[no-untyped-def]
    """Square root of a float, correctly rounded; an instruction everywhere."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [args[0].type]), args)

    return x(x), codegen


@device
def _between(x, low, high):  # type: ignore[no-untyped-def]
    """x within its bounds; a NaN passes."""
    x = low if x < low else x
    return high if x > high else x


@device
def exp(x):  # type: ignore[no-untyped-def]
    """e**x; 1.5 ulp. Results below 2**-125 are 0."""
    near = _between(x, F(-87.0), F(88.8))  # e**88.8 is infinity already
    shifted = near * _LOG2E + _ROUNDER
    n = shifted - _ROUNDER
    r = (near - n * _LN2_HIGH) - n * _LN2_LOW
    p = (((_EXP[0] * r + _EXP[1]) * r + _EXP[2]) * r + _EXP[3]) * r + _EXP[4]
    y = (p * (r * r) + r) + _ONE
    # The low bits of `shifted` are n, shifted out above; 2**(n − 1) is normal for n in −125 … 128.
    scale = number(np.int32(np.int32(bits(shifted) << 23) + np.int32(126 << 23)))
    return _ZERO if x < F(-86.98) else (y + y) * scale


@device
def log(x):  # type: ignore[no-untyped-def]
    """Natural logarithm; 2 ulp. 0 gives −∞, negative numbers NaN."""
    subnormal = x < _TINY
    scaled = x * F(8388608.0) if subnormal else x
    raw = bits(scaled)
    k = np.int32(np.int32(raw >> 23) - 126)
    m = number(np.int32((raw & 0x007FFFFF) | 0x3F000000))  # in [1/2, 1)
    small = m < _SQRT_HALF
    e = F(np.int32(k - 1)) if small else F(k)
    e = e - F(23.0) if subnormal else e
    m = (m + m - _ONE) if small else (m - _ONE)
    z = m * m
    p = (((((((_LOG[0] * m + _LOG[1]) * m + _LOG[2]) * m + _LOG[3]) * m + _LOG[4]) * m + _LOG[5]) * m + _LOG[6]) * m + _LOG[7]) * m
    y = ((p + _LOG[8]) * m) * z
    y = (y + e * _LN2_LOW) - _HALF * z
    y = (m + y) + e * _LN2_HIGH
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
    x = _between(x, F(-9.0), F(9.0))
    z = x * x
    p = (((_TANH_P[0] * z + _TANH_P[1]) * z + _TANH_P[2]) * z + _TANH_P[3]) * z + _TANH_P[4]
    q = (((_TANH_Q[0] * z + _TANH_Q[1]) * z + _TANH_Q[2]) * z + _TANH_Q[3]) * z + _TANH_Q[4]
    return _between(x * p / q, -_ONE, _ONE)


@device
def erf(x):  # type: ignore[no-untyped-def]
    """Error function; 7 ulp."""
    x = _between(x, F(-3.92), F(3.92))  # erf(3.92) rounds to 1
    z = x * x
    p = (((_ERF_P[0] * z + _ERF_P[1]) * z + _ERF_P[2]) * z + _ERF_P[3]) * z + _ERF_P[4]
    p = (p * z + _ERF_P[5]) * z + _ERF_P[6]
    q = (((_ERF_Q[0] * z + _ERF_Q[1]) * z + _ERF_Q[2]) * z + _ERF_Q[3]) * z + _ERF_Q[4]
    return _between(x * p / q, -_ONE, _ONE)
