"""float16 and bfloat16: to float32, which holds each of their numbers, and back, rounded to nearest even.

Branch-free integer arithmetic and float operations that are exact or round once, so that every kind of processor gives the same bits, those
without instructions for such numbers too; none reads or makes a subnormal float32, which some libraries let a process flush to zero. As in
`formulas.py`, the functions are made for the language of the kernels that call them. A number of 16 bits is an int32 of its bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["half"]

_LEAST = np.float32(2.0**-14)  # the smallest normal number of float16
_HALF = np.float32(0.5)  # whose last place is the last of float16's subnormal numbers


def half(device: Callable[[Any], Any], bits: Any, number: Any, int32: Any) -> dict[str, Any]:
    """By name: from_float16, to_float16, from_bfloat16, to_bfloat16; and round_float16, round_bfloat16, which do both."""

    @device
    def from_float16(h):  # type: ignore[no-untyped-def]
        # The bits below the sign as a float32 has them; its exponent is larger by 112, and that of infinity and NaN by 224.
        magnitude = int32((h & 0x7FFF) << 13)
        normal = int32(magnitude + (0x70000000 if magnitude >= 0x0F800000 else 0x38000000))
        small = bits(number(int32(magnitude + 0x38800000)) - _LEAST)
        return number(int32((small if magnitude < 0x00800000 else normal) | ((h & 0x8000) << 16)))

    @device
    def to_float16(x):  # type: ignore[no-untyped-def]
        raw = bits(x)
        magnitude = int32(raw & 0x7FFFFFFF)
        # Rounding may carry into the exponent, that of infinity included.
        normal = int32((magnitude - 0x38000000 + 0x0FFF + ((magnitude >> 13) & 1)) >> 13)
        small = int32(bits(number(magnitude) + _HALF) - 0x3F000000)
        finite = small if magnitude < 0x38800000 else normal
        special = 0x7E00 if magnitude > 0x7F800000 else 0x7C00
        return int32((special if magnitude >= 0x47800000 else finite) | ((raw >> 16) & 0x8000))

    @device
    def round_float16(x):  # type: ignore[no-untyped-def]
        # from_float16(to_float16(x)), where nothing is shifted.
        raw = bits(x)
        magnitude = int32(raw & 0x7FFFFFFF)
        normal = int32((magnitude + 0x0FFF + ((magnitude >> 13) & 1)) & -0x2000)
        rounded = bits((number(magnitude) + _HALF) - _HALF) if magnitude < 0x38800000 else normal
        special = int32(0x7FC00000 if magnitude > 0x7F800000 else 0x7F800000)
        return number(int32((special if magnitude >= 0x477FF000 else rounded) | (raw & -0x80000000)))

    @device
    def from_bfloat16(h):  # type: ignore[no-untyped-def]
        return number(int32(h << 16))

    @device
    def to_bfloat16(x):  # type: ignore[no-untyped-def]
        raw = bits(x)
        rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
        return int32((rounded if (raw & 0x7FFFFFFF) <= 0x7F800000 else (raw >> 16) | 0x40) & 0xFFFF)

    return {
        "from_float16": from_float16,
        "to_float16": to_float16,
        "from_bfloat16": from_bfloat16,
        "to_bfloat16": to_bfloat16,
        "round_float16": round_float16,
        "round_bfloat16": device(lambda x: from_bfloat16(to_bfloat16(x))),
    }
