"""The float32 functions of kernels, against float64 NumPy, in units in the last place."""

from collections.abc import Callable
from fractions import Fraction
from math import erf

import numba
import numpy as np
import pytest
from kernels.check import TARGETS_HERE
from kernels.native import call

from qrt.core.numerics import round_clamp as definition
from qrt.core.target import Target
from qrt.jit import Kernel, record_dtype
from qrt.jit.lang import math as m
from qrt.jit.lang.rounding import round_clamp

RNG = np.random.default_rng(0)
SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38, 1, -1], np.float32)
REAL = np.concatenate([RNG.uniform(-110, 95, 20000), RNG.normal(size=20000), RNG.normal(size=5000) * 1e-3]).astype(np.float32)
POSITIVE = np.concatenate([np.exp(RNG.uniform(-103, 88, 20000)), RNG.uniform(0.5, 2, 20000)]).astype(np.float32)
TINY = np.finfo(np.float32).tiny


def mapped(function: Callable[..., object], *arrays: np.ndarray) -> np.ndarray:
    @numba.njit
    def each(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        for i in range(x.size):
            y[i] = function(x[i])
        return y

    result: np.ndarray = each(*arrays)
    return result


@pytest.mark.parametrize(
    ("function", "reference", "points", "bound"),
    [
        (m.exp, np.exp, REAL[REAL > -86], 1.1),
        (m.log, np.log, POSITIVE, 1.0),
        (m.log1p, np.log1p, POSITIVE, 1.5),
        (m.sigmoid, lambda x: 1 / (1 + np.exp(-x)), REAL[REAL > -86], 3.0),
        (m.tanh, np.tanh, REAL, 6.0),
        (m.erf, np.vectorize(erf, otypes=[np.float64]), REAL, 7.5),
        (m.sqrt, np.sqrt, POSITIVE, 0.5),
        (m.sin, np.sin, np.concatenate([REAL, -POSITIVE]), 0.501),
        (m.cos, np.cos, np.concatenate([REAL, POSITIVE]), 0.501),
    ],
    ids=["exp", "log", "log1p", "sigmoid", "tanh", "erf", "sqrt", "sin", "cos"],
)
def test_function_is_within_its_ulps(
    function: Callable[..., object], reference: Callable[[np.ndarray], np.ndarray], points: np.ndarray, bound: float
) -> None:
    special = SPECIAL[~(SPECIAL < 0)] if function is m.log1p else SPECIAL
    x = np.concatenate([points, special])
    y = mapped(function, x)
    with np.errstate(all="ignore"):
        exact = reference(x.astype(np.float64))
        nearest = exact.astype(np.float32)
        finite = np.isfinite(nearest)
        ulp = np.spacing(np.maximum(np.abs(nearest), TINY)).astype(np.float64)
        error = np.abs(y.astype(np.float64) - exact) / ulp
    assert error[finite].max() <= bound
    np.testing.assert_array_equal(y[~finite], nearest[~finite])


def test_sines_of_zeros() -> None:
    np.testing.assert_array_equal(np.signbit(mapped(m.sin, np.array([0, -0.0], np.float32))), [False, True])


def powers(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    @numba.njit
    def each(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = np.empty_like(a)
        for i in range(a.size):
            y[i] = m.power(a[i], b[i])
        return y

    result: np.ndarray = each(a, b)
    return result


def test_powers_are_within_their_ulps() -> None:
    a = np.concatenate([np.exp(RNG.uniform(-80, 80, 20000)), RNG.uniform(0.5, 2, 20000)]).astype(np.float32)
    b = np.concatenate([RNG.uniform(-85, 85, 20000) / np.log(a[:20000]), RNG.uniform(-120, 120, 20000)]).astype(np.float32)
    exact = np.power(a.astype(np.float64), b)
    ulp = np.spacing(np.maximum(exact.astype(np.float32), TINY)).astype(np.float64)
    assert (np.abs(powers(a, b).astype(np.float64) - exact) / ulp).max() <= 0.501


def test_powers_of_what_is_special() -> None:
    """As C has them: signs, infinities, zeros, integers that are odd, and what is no number."""
    more = np.array([2, 3, -2, -3, 0.5, -0.5, 2.5, np.pi, 2.0**23 + 1, 2.0**24 - 1, 2.0**24, 2.0**24 + 2, 1e10, 0.999, -0.999], np.float32)
    every = np.concatenate([SPECIAL, more])
    a, b = (grid.reshape(-1) for grid in np.meshgrid(every, every))
    with np.errstate(all="ignore"):
        wanted = np.power(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)
    found = powers(a, b)
    np.testing.assert_array_equal(found, wanted)
    known = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found[known]), np.signbit(wanted[known]))


def test_no_function_leaves_its_range() -> None:
    x = np.concatenate([np.linspace(-12, 12, 200001), SPECIAL]).astype(np.float32)
    for function, low in ((m.tanh, -1), (m.erf, -1), (m.sigmoid, 0)):
        y = mapped(function, x[~np.isnan(x)])
        assert y.min() >= low
        assert y.max() <= 1
    far = mapped(m.exp, np.array([-86.99, -87, -90, -104, -3e38, 88.8, 88.9, 3e38], np.float32))
    np.testing.assert_array_equal(far, np.array([0, 0, 0, 0, 0, np.inf, np.inf, np.inf], np.float32))


def nearest(exact: Fraction) -> np.float32:
    """The float32 next to a number within its range, the even one of two."""
    near = np.float32(float(exact))
    around = (near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf)))
    return min(around, key=lambda y: (abs(Fraction(float(y)) - exact), int(y.view(np.int32)) & 1))


@pytest.mark.parametrize("target", TARGETS_HERE, ids=lambda t: t.isa)
def test_fma_rounds_once(target: Target) -> None:
    x, y, z = (RNG.normal(size=3000).astype(np.float32) for _ in range(3))
    z[::3] = -(x[::3] * y[::3])  # the product's rounding error is left
    # Ties between two float32, and numbers so near to one that float64 takes them for one.
    x[1::3], y[1::3] = 4097, 4099 + 2 * RNG.integers(0, 100, 1000)
    z[1::3] = RNG.choice(np.array([0, 1, 3, 2.0**-40, -(2.0**-40), 1e-45, -1e-45, 2.0**-20], np.float32), 1000)
    x[2::9], y[2::9], z[2::9] = 2.0**-80, np.float32(1.5) * 2.0**-70, 1e-40  # subnormal numbers
    odd = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 0, -0.0], np.float32)
    special = [grid.reshape(-1) for grid in np.meshgrid(odd, odd, odd)]
    x, y, z = (np.concatenate(pair) for pair in zip((x, y, z), special, strict=True))
    found = np.empty_like(x)
    record = record_dtype(("x", "i8"), ("y", "i8"), ("z", "i8"), ("out", "i8"), ("n", "i8"))
    call(Kernel("fused_f32__generic", record, "kernels.cpu_math:fused"), target, x=x, y=y, z=z, out=found, n=x.size)
    wanted = [nearest(Fraction(a) * Fraction(b) + Fraction(c)) for a, b, c in zip(*(v[:3000].tolist() for v in (x, y, z)), strict=True)]
    np.testing.assert_array_equal(found[:3000], wanted)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found[3000:], (x[3000:].astype(np.float64) * y[3000:] + z[3000:]).astype(np.float32))


@pytest.mark.parametrize(
    ("qmin", "qmax", "zero_point"), [(0, 255, 128), (-128, 127, -5), (0, 65535, 65535), (-32768, 32767, -32768), (3, 90, 7)]
)
def test_round_clamp_is_the_definition(qmin: int, qmax: int, zero_point: int) -> None:
    halves = np.arange(-300, 300, 0.5, dtype=np.float32)
    x = np.concatenate([halves, RNG.normal(size=5000).astype(np.float32) * 40000, SPECIAL])
    low, high, zero = np.float32(qmin - zero_point), np.float32(qmax - zero_point), np.int32(zero_point)

    @numba.njit
    def each(x: np.ndarray) -> np.ndarray:
        y = np.empty(x.size, np.int32)
        for i in range(x.size):
            y[i] = round_clamp(x[i], low, high, zero)
        return y

    np.testing.assert_array_equal(each(x), definition(x, np.int32(zero_point), qmin, qmax))
