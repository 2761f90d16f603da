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
_ZERO, _HALF, _ONE, _TWO = F(0.0), F(0.5), F(1.0), F(2.0)
_INF, _NAN = F(np.inf), F(np.nan)
_TINY = F(1.17549435e-38)  # the smallest normal number
_SQRT_HALF = F(0.70710678)

# Minimax polynomials of the Cephes library (S. Moshier), highest power first.
_EXP = (F(1.9875691500e-4), F(1.3981999507e-3), F(8.3334519073e-3), F(4.1665795894e-2), F(1.6666665459e-1), F(5.0000001201e-1))
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
_TANH = (F(-5.70498872745e-3), F(2.06390887954e-2), F(-5.37397155531e-2), F(1.33314422036e-1), F(-3.33332819422e-1))

# Least-squares fits made for this file: erf(x)/x − 1 over x² in [0, 1], and log(1 − erf(x)) over x − 2.5 in [−1.5, 1.5].
_ERF = (
    F(7.882497087e-5),
    F(-8.018854986e-4),
    F(5.189311942e-3),
    F(-2.685432880e-2),
    F(1.128359746e-1),
    F(-3.761262690e-1),
    F(1.283791659e-1),
)
_LOG_ERFC = (
    F(1.572807447e-4),
    F(-2.948618654e-4),
    F(2.203576591e-3),
    F(-1.092357092e-2),
    F(-9.439453011e-1),
    F(-5.352688110),
    F(-7.806814078),
)


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
def _power_of_two(k):  # type: ignore[no-untyped-def]
    """2**k for −126 ≤ k ≤ 127."""
    return number(np.int32(np.int32(k + 127) << 23))


@device
def exp(x):  # type: ignore[no-untyped-def]
    """e**x; 2 ulp."""
    low, high = F(-104.0), F(89.0)  # beyond these the result is 0 or infinity; a NaN passes
    x = low if x < low else x
    x = high if x > high else x
    shifted = x * _LOG2E + _ROUNDER
    n = shifted - _ROUNDER
    k = np.int32(bits(shifted) - _ROUNDER_BITS)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((((_EXP[0] * r + _EXP[1]) * r + _EXP[2]) * r + _EXP[3]) * r + _EXP[4]) * r + _EXP[5]
    y = (p * (r * r) + r) + _ONE
    half = np.int32(k >> 1)  # 2**k in two factors: subnormal results and infinity come out by themselves
    return y * _power_of_two(half) * _power_of_two(np.int32(k - half))


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
    """1 / (1 + e**−x); 3 ulp."""
    return _ONE / (_ONE + exp(-x))


@device
def tanh(x):  # type: ignore[no-untyped-def]
    """Hyperbolic tangent; 3 ulp."""
    z = x * x
    p = (((_TANH[0] * z + _TANH[1]) * z + _TANH[2]) * z + _TANH[3]) * z + _TANH[4]
    near = p * z * x + x
    size = abs(x)
    far = _ONE - _TWO / (exp(size + size) + _ONE)
    far = -far if x < _ZERO else far
    return near if size < F(0.625) else far


@device
def erf(x):  # type: ignore[no-untyped-def]
    """Error function; 3 ulp."""
    z = x * x
    p = (((((_ERF[0] * z + _ERF[1]) * z + _ERF[2]) * z + _ERF[3]) * z + _ERF[4]) * z + _ERF[5]) * z + _ERF[6]
    near = p * x + x
    size = abs(x)
    u = (F(4.0) if size > F(4.0) else size) - F(2.5)  # erf(4) rounds to 1
    q = (
        ((((_LOG_ERFC[0] * u + _LOG_ERFC[1]) * u + _LOG_ERFC[2]) * u + _LOG_ERFC[3]) * u + _LOG_ERFC[4]) * u + _LOG_ERFC[5]
    ) * u + _LOG_ERFC[6]
    far = _ONE - exp(q)
    far = -far if x < _ZERO else far
    return far if size > _ONE else near
