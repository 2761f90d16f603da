"""What the instructions of `cuda.py` compute, in NumPy, after NVIDIA's "Parallel Thread Execution ISA".

Those of a warp take and give arrays [32, …], a row for each thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["TWINS", "WARP_TWINS"]

F32 = np.float32
Array = np.ndarray[Any, Any]

_LANE = np.arange(32)
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4


def _a_places() -> tuple[Array, Array]:
    """Row and column in A (16 × 32) of the 16 bytes that each thread holds: section "Matrix Fragments for mma.m16n8k32"."""
    i = np.arange(16)
    row = _GROUP[:, None] + 8 * ((i // 4) % 2)
    return row, 4 * _IN_GROUP[:, None] + i % 4 + 16 * (i // 8)


def _b_places() -> tuple[Array, Array]:
    """The same for the 8 bytes of B (32 × 8)."""
    i = np.arange(8)
    return 4 * _IN_GROUP[:, None] + i % 4 + 16 * (i // 4), np.repeat(_GROUP[:, None], 8, 1)


def _c_places() -> tuple[Array, Array]:
    """The same for the 4 numbers of C (16 × 8)."""
    i = np.arange(4)
    return _GROUP[:, None] + 8 * (i // 2), 2 * _IN_GROUP[:, None] + i % 2


_A, _B, _C = _a_places(), _b_places(), _c_places()


def _mma(a: Array, b: Array, c: Array) -> Array:
    """int32 […, 32, 4], […, 32, 2] and […, 32, 4] → […, 32, 4]. Its products of bytes are exact in float32, which NumPy multiplies fast."""
    many = a.shape[:-2]
    left, right, total = np.zeros((*many, 16, 32), F32), np.zeros((*many, 32, 8), F32), np.zeros((*many, 16, 8), np.int32)
    left[(..., *_A)], right[(..., *_B)], total[(..., *_C)] = a.view(np.uint8), b.view(np.int8), c
    result: Array = ((left @ right).astype(np.int32) + total)[(..., *_C)]
    return result


def _load_matrix(rows: Array) -> Array:
    """uint8 […, 32, 16], the row that each thread names → int32 […, 32, 4]: of matrix i, thread t gets word t % 4 of row t // 4."""
    words: Array = np.moveaxis(rows.reshape(*rows.shape[:-2], 4, 8, 16).view(np.int32)[..., _GROUP, _IN_GROUP], -2, -1)
    return words


def _dp4a(a: Any, b: Any, c: Any) -> Any:
    u, s = np.atleast_1d(a).view(np.uint8).astype(np.int32), np.atleast_1d(b).view(np.int8).astype(np.int32)
    return (u * s).reshape(-1, 4).sum(1, dtype=np.int32) + c


def _permute(a: Any, b: Any, which: Any) -> Any:
    """Byte k of the result is that of the eight of a and b which hexadecimal digit k of `which` names; digits are below 8."""
    pair = np.array([a, b], np.int32).view(np.uint8)
    return pair[[int(which) >> 4 * k & 7 for k in range(4)]].view(np.int32)[0]


def _nearest(x: Any) -> Any:
    """NaN gives 0, what is too large the bound of its sign."""
    wide = np.nan_to_num(np.rint(np.asarray(x, np.float64)), nan=0.0)
    return np.clip(wide, -(2.0**31), 2.0**31 - 1).astype(np.int32)


def _fma(x: Any, y: Any, z: Any) -> Any:
    """float64 holds the product. Their sum is rounded to odd there, so that float32 sees whether something is left below a tie."""
    product, addend = np.float64(x) * np.float64(y), np.float64(z)
    total = np.asarray(product + addend)
    of_addend = total - product
    rest = (product - (total - of_addend)) + (addend - of_addend)
    even = (total.view(np.int64) & 1) == 0
    return np.where((np.abs(rest) > 0) & even, np.nextafter(total, np.copysign(np.inf, rest)), total).astype(F32)


# Of one thread, on numbers or arrays of them.
TWINS: dict[str, Callable[..., Any]] = {
    "dp4a": _dp4a,
    "permute": _permute,
    "quotient": lambda a, b: a // b,
    "remainder": lambda a, b: a % b,
    "to_float": lambda x: np.asarray(x, np.int32).astype(F32),
    "nearest": _nearest,
    "multiply": lambda x, y: F32(x) * F32(y),
    "divide": lambda x, y: F32(x) / F32(y),
    "add": lambda x, y: F32(x) + F32(y),
    "fma": _fma,
    "square_root": lambda x: np.sqrt(F32(x)),
    "round_down": lambda x: np.floor(F32(x)),
    "round_up": lambda x: np.ceil(F32(x)),
    "round_even": lambda x: np.rint(F32(x)),
    "clamp": lambda x, low, high: np.fmin(np.fmax(F32(x), F32(low)), F32(high)),  # a NaN gives low
    "as_float": lambda x: np.asarray(x, np.int32).view(F32),
    "as_bits": lambda x: np.asarray(x, F32).view(np.int32),
    "as_float64": lambda x: np.asarray(x, np.int64).view(np.float64),
    "as_bits64": lambda x: np.asarray(x, np.float64).view(np.int64),
}

WARP_TWINS: dict[str, Callable[..., Array]] = {"load_matrix": _load_matrix, "mma": _mma}
