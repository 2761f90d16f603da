"""Casts to and from 16 bits: every number of float16 and bfloat16, and floats around every step between two of them."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.check import check

from qrt.core.dtypes import dtype_of
from qrt.core.errors import UnsupportedOp
from qrt.core.target import TARGETS, Target
from qrt.jit.compile import assembly
from qrt.ops.elementwise import SIXTEEN, Cast, Unary, unary
from qrt.ops.op import Spec

CODES = np.arange(1 << 16, dtype=np.uint16)


def floats(name: str) -> np.ndarray:
    """For each of the numbers of 16 bits itself, what lies halfway to the next one, and the floats beside both."""
    with np.errstate(invalid="ignore"):
        here = CODES.view(dtype_of(name)).astype(np.float32)
    here = here[np.isfinite(here)]
    bits = here.view(np.int32)
    halves = np.where(np.abs(here) < 2.0**-14, here + np.float32(2.0**-25), (bits + (1 << 12)).view(np.float32))
    centres = np.concatenate([here, halves if name == "float16" else (bits + (1 << 15)).view(np.float32)])
    wide = np.array(
        [np.inf, -np.inf, np.nan, 65519.996, 65520, 65535, 65536, -65520, 3.4028235e38, 1e-45, 2.0**-25, 2.0**-24, 1e38], np.float32
    )
    return np.concatenate([centres, np.nextafter(centres, np.float32(np.inf)), np.nextafter(centres, np.float32(-np.inf)), wide])


def bits_of(x: np.ndarray) -> np.ndarray:
    """The bits of all that are numbers; NaN is one value, whatever its payload."""
    with np.errstate(invalid="ignore"):
        nan = np.isnan(x.astype(np.float32))
    return np.where(nan, -1, x.view(f"u{x.dtype.itemsize}").astype(np.int64))


@pytest.mark.parametrize("name", SIXTEEN)
def test_every_number_of_16_bits_is_a_float(name: str) -> None:
    (wide,) = check(Cast("float32"), [CODES.view(dtype_of(name))])
    (back,) = check(Cast(name), [wide])
    np.testing.assert_array_equal(bits_of(back), bits_of(CODES.view(dtype_of(name))))


@pytest.mark.parametrize("name", SIXTEEN)
def test_floats_round_to_nearest_even(name: str) -> None:
    x = floats(name)
    (found,) = check(Cast(name), [x])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(bits_of(found), bits_of(x.astype(dtype_of(name))))
    (rounded,) = check(Unary(f"round_{name}"), [x])
    np.testing.assert_array_equal(bits_of(rounded), bits_of(found.astype(np.float32)))


def test_ties_and_ends() -> None:
    x = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 65504, 65519.99, 65520, -65520, 2.0**-25, 3 * 2.0**-26, -(2.0**-26), np.nan], np.float32)
    (found,) = check(Cast("float16"), [x])
    wanted = [1, 1 + 2.0**-9, 65504, 65504, np.inf, -np.inf, 0, 2.0**-24, -0.0, np.nan]
    np.testing.assert_array_equal(found, np.array(wanted, np.float16))
    assert np.signbit(found[8])
    (found,) = check(Cast("bfloat16"), [np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.4e38, -np.inf, np.nan], np.float32)])
    np.testing.assert_array_equal(found.astype(np.float32), np.array([1, 1 + 2.0**-6, np.inf, -np.inf, np.nan], np.float32))


@pytest.mark.parametrize(
    "target", [t for t in TARGETS if t.isa in ("avx512vnni", "avx2", "generic") and t.arch == "x86_64"], ids=lambda t: t.isa
)
def test_casts_are_vectors(target: Target) -> None:
    """And nothing of a library is called, as where compilers know such numbers and a processor does not."""
    for kernel in unary.KERNELS:
        if kernel.name in ("cast_float16_float32__generic", "cast_float32_float16__generic"):
            text = assembly(kernel, target)
            assert {16: "zmm", 8: "ymm", 4: "xmm"}[target.lanes] in text
            assert "hfsf2" not in text
            assert "sfhf2" not in text


def test_other_casts_are_refused() -> None:
    for source, result in (("float16", "int32"), ("float64", "float16"), ("bfloat16", "float16")):
        with pytest.raises(UnsupportedOp, match=f"no kernel casts {source} to {result}"):
            Cast(result).infer([Spec((2,), dtype_of(source))])
