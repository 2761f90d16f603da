"""How sums become codes in device kernels: what the epilogues of all families share. Imported only to compile, as `cuda.py`."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import clamp, device, fma, int32, int64, load_u8, multiply, nearest, to_float

__all__ = ["adder", "code_of", "looked_up"]


@device
def code_of(acc, scale, low, high, zero_point):  # type: ignore[no-untyped-def]
    """core.numerics.requantize: bounds are of the code less its zero point."""
    return int32(nearest(clamp(multiply(to_float(acc), scale), low, high)) + zero_point)


@device
def looked_up(table, codes):  # type: ignore[no-untyped-def]
    """The entries of a table of 256 for the four codes of a word."""
    found = int32(0)
    for shift in (0, 8, 16, 24):
        found = int32(found | (load_u8(table + int64(int32((codes >> int32(shift)) & int32(255)))) << int32(shift)))
    return found


def adder(residual_first: bool) -> Any:
    """What adds the residual: of one code, and of four in a word."""

    @device
    def sum_of(c, r, base, c_ratio, r_ratio, offset, lo, hi):  # type: ignore[no-untyped-def]
        """The code of the sum of the product's code c and the residual's code r."""
        code, other = to_float(int32(c - base)), to_float(int32(r - base))
        if residual_first:
            total = fma(other, r_ratio, fma(code, c_ratio, offset))
        else:
            total = fma(code, c_ratio, fma(other, r_ratio, offset))
        return int32(nearest(clamp(total, lo, hi)) + base)

    @device
    def sums_of(c, r, base, c_ratio, r_ratio, offset, lo, hi):  # type: ignore[no-untyped-def]
        """The same for the four codes of a word."""
        word = int32(0)
        for shift in (0, 8, 16, 24):
            left, right = int32((c >> int32(shift)) & int32(255)), int32((r >> int32(shift)) & int32(255))
            word = int32(word | (sum_of(left, right, base, c_ratio, r_ratio, offset, lo, hi) << int32(shift)))
        return word

    return sum_of, sums_of
