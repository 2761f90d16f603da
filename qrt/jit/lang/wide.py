"""Functions of float32 that are computed in float64, so that little more than a rounding is lost; made as those of `formulas.py` are.

`bits` and `number` take a float64 to the int64 of the same bits and back, `int64` wraps.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial, log, pi
from typing import Any

import numpy as np

from qrt.jit.lang.formulas import bounds

__all__ = ["wide"]

F, D = np.float32, np.float64
_INF, _NAN = D(np.inf), F(np.nan)
# 1.5 · 2**52: what is added to it is rounded to an integer, whose low bits are the sum's.
_ROUNDER = D(6755399441055744.0)

# 2/π by 24 bits each, whose products with a float32 are exact. The largest of those needs 128 of its bits before the point.
_DIGITS = (0xA2F983, 0x6E4E44, 0x1529FC, 0x2757D1, 0xF534DD, 0xC0DB62, 0x95993C, 0x439041)
_TWO_OVER_PI = tuple(D(digit * 2.0 ** (-24 * (i + 1))) for i, digit in enumerate(_DIGITS))
_HALF_PI = D(pi / 2)
_FAR = D(2.0**50)  # products of 48 bits that are larger are multiples of four

# Taylor series, highest power first: sin(x)/x and cos(x) over x² for |x| ≤ π/4, (atanh(x)/x)/ln √2 over x² for |x| ≤ 0.172, e**x.
_SIN = tuple(D((-1) ** k / factorial(2 * k + 1)) for k in range(5, -1, -1))
_COS = tuple(D((-1) ** k / factorial(2 * k)) for k in range(6, -1, -1))
_LOG = tuple(D(2 / log(2) / (2 * k + 1)) for k in range(7, -1, -1))
_EXP = tuple(D(1 / factorial(k)) for k in range(9, -1, -1))
_LN2, _SQRT_2 = D(log(2)), D(2**0.5)
_BIAS, _MANTISSA = 1023, (1 << 52) - 1


# No loops, which a compiler would have to unroll: functions that end in the next one.
def _polynomial(device: Callable[[Any], Any], coefficients: tuple[np.float64, ...]) -> Any:
    """The polynomial in x, highest power first."""
    *higher, last = coefficients
    if not higher:
        return device(lambda x: last)
    before = _polynomial(device, tuple(higher))
    return device(lambda x: before(x) * x + last)


def _reducer(device: Callable[[Any], Any], digits: tuple[np.float64, ...]) -> Any:
    """What adds x · 2/π, without whole quadrants, to `part`, and those to `turns`."""
    if not digits:
        return device(lambda x, part, turns: (part, turns))
    first, then = digits[0], _reducer(device, digits[1:])

    @device
    def step(x, part, turns):  # type: ignore[no-untyped-def]
        product = x * first
        fours = product * D(0.25) + _ROUNDER
        # Four quadrants are none, and what has no bits behind the point is fours alone; of infinity it is no number.
        part = part + (product - D(4) * (fours - _ROUNDER) if abs(product) < _FAR else product - product)
        whole = (part + _ROUNDER) - _ROUNDER
        return then(x, part - whole, turns + whole)

    return step


def wide(device: Callable[[Any], Any], bits: Any, number: Any, int64: Any) -> dict[str, Any]:
    """By name: sin, cos and pow; within 0.501 ulp of all there is."""

    between = bounds(device)
    reduce = _reducer(device, _TWO_OVER_PI)
    sine, cosine, logarithm, exponential = (_polynomial(device, series) for series in (_SIN, _COS, _LOG, _EXP))

    @device
    def quadrant(x, ahead):  # type: ignore[no-untyped-def]
        """The sine of x + `ahead` · π/2."""
        part, turns = reduce(D(x), D(0), D(ahead))
        angle = part * _HALF_PI
        square, which = angle * angle, bits(turns + _ROUNDER)
        y = cosine(square) if which & 1 else angle * sine(square)
        return F(-y if which & 2 else y)

    @device
    def sin(x):  # type: ignore[no-untyped-def]
        y = quadrant(x, 0)
        return x if x == F(0) else y  # −0 stays

    @device
    def cos(x):  # type: ignore[no-untyped-def]
        return quadrant(x, 1)

    @device
    def log2(x):  # type: ignore[no-untyped-def]
        """Of a float64 that is no subnormal number, and not negative."""
        raw = bits(x)
        exponent, fraction = int64(raw >> 52), number(int64((raw & _MANTISSA) | (_BIAS << 52)))
        above = fraction > _SQRT_2
        fraction = fraction * D(0.5) if above else fraction
        t = (fraction - D(1)) / (fraction + D(1))
        y = D(int64(exponent - (_BIAS - 1 if above else _BIAS))) + t * logarithm(t * t)
        y = y if x < _INF else x  # infinity and NaN
        return -_INF if x == D(0) else y

    @device
    def power(a, b):  # type: ignore[no-untyped-def]
        """a**b for a ≥ 0."""
        exponent = between(b * log2(a), D(-200), D(200))  # 0 and infinity in float32
        shifted = exponent + _ROUNDER
        part = (exponent - (shifted - _ROUNDER)) * _LN2
        return exponential(part) * number(int64(int64(bits(shifted) << 52) + int64(_BIAS << 52)))

    @device
    def pow(a, b):  # type: ignore[no-untyped-def]
        """C's pow. Of negative numbers only integer powers are numbers."""
        a64, b64 = D(a), D(b)
        size = power(abs(a64), b64)
        shifted = between(b64, D(-(2.0**25)), D(2.0**25)) + _ROUNDER  # a float32 that is larger is an even integer
        near = shifted - _ROUNDER == b64
        odd, whole = near and bits(shifted) & 1 != 0, near or abs(b64) > D(2.0**24)
        y = F(-size if bits(a64) < 0 and odd else size)
        y = _NAN if a64 < D(0) and a64 > -_INF and not whole else y
        return F(1) if b64 == D(0) or a64 == D(1) or (a64 == D(-1) and abs(b64) == _INF) else y

    return {"sin": sin, "cos": cos, "pow": pow}
