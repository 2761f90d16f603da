"""core.numerics.round_clamp for kernels: the same codes, in four vector instructions on every instruction set."""

from __future__ import annotations

import numpy as np

from qrt.jit.lang import device
from qrt.jit.lang.math import bits, fma

__all__ = ["quotient", "round_clamp", "rounded"]

# 1.5 · 2**23. A float32 of that size counts in steps of 1: adding it rounds to the nearest integer, ties to even, and
# leaves that integer in the low bits.
_ROUNDER = np.float32(12582912.0)
_ROUNDER_BITS = np.int32(0x4B400000)


@device
def round_clamp(x, low, high, zero_point):  # type: ignore[no-untyped-def]
    """clamp(rint(x) + zero_point, qmin, qmax) as int32, NaN giving qmin.

    `x`: float32; `low`, `high`: float32 of qmin − zero_point and qmax − zero_point, at most 2**22 in size (codes of up to
    16 bits); `zero_point`: int32. The bounds are integers, so clamping before rounding gives the same code.
    """
    x = x if x > low else low
    x = x if x < high else high
    return rounded(x, zero_point)


@device
def rounded(x, zero_point):  # type: ignore[no-untyped-def]
    """rint(x) + zero_point as int32, for float32 of at most 2**22."""
    return np.int32(bits(x + _ROUNDER) - _ROUNDER_BITS + zero_point)


@device
def quotient(x, y, inverse):  # type: ignore[no-untyped-def]
    """x / y of float32, rounded as a division is, in less than half its time; `inverse` is 1 / y. For numbers whose quotient and products
    stay far from the ends of float32's range.

    Each step adds what is left, x − q · y, which is exact, times the inverse: the first leaves q at one of the two float32 around the
    quotient, the second at the nearer one (P. Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor",
    1990).
    """
    q = x * inverse
    q = fma(fma(-q, y, x), inverse, q)
    return fma(fma(-q, y, x), inverse, q)
