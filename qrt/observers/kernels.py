"""Records, kernels and calls of the observers' native code."""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from qrt.core.target import Target
from qrt.jit import Kernel, host_target, record_dtype

__all__ = ["KERNELS", "count_exact", "count_inside", "count_uniform", "rebin", "search"]

F32 = np.float32
WAYS = 4  # tables counted into in turn: in one table, a run of equal values would wait for its own last store
BLOCK = 128  # elements whose bins are found before they are counted
PIECE = 2**30  # elements that int32 can count
PAD = 72  # between tables: at distances of 4 KiB, processors take a store to one for a store to another
UPSAMPLE = 16  # every old bin is cut into so many before it is sorted into the new bins
STEP = 1e-5  # share of the data by which one step of the search may cut a tail

COUNT_UNIFORM_RECORD = record_dtype(
    ("x", "i8"),
    ("n", "i8"),
    ("counts", "i8"),
    ("bins", "i8"),
    ("stride", "i8"),
    ("bin_of", "i8"),
    ("done", "i8"),
    ("strict", "i8"),
    ("low", "f4"),
    ("high", "f4"),
)
COUNT_EXACT_RECORD = record_dtype(("x", "i8"), ("n", "i8"), ("counts", "i8"), ("bins", "i8"), ("bin_of", "i8"), ("scale", "f8"))
REBIN_RECORD = record_dtype(
    ("counts", "i8"),
    ("edges", "i8"),
    ("sums", "i8"),
    ("bins", "i8"),
    ("low", "f4"),
    ("high", "f4"),
    ("new_low", "f4"),
    ("new_high", "f4"),
)
SEARCH_RECORD = record_dtype(
    ("density", "i8"),
    ("cumulated", "i8"),
    ("norm", "i8"),
    ("range_", "i8"),
    ("bins", "i8"),
    ("levels", "i8"),
    ("width", "f8"),
    ("total", "f8"),
    ("step", "f8"),
)
COUNT_UNIFORM = Kernel("count_f32_uniform__generic", COUNT_UNIFORM_RECORD, "qrt.observers.cpu:count_uniform", (WAYS, BLOCK))
COUNT_EXACT = Kernel("count_f32_exact__generic", COUNT_EXACT_RECORD, "qrt.observers.cpu:count_exact", (WAYS, BLOCK))
REBIN = Kernel("rebin_f32_upscaled__generic", REBIN_RECORD, "qrt.observers.cpu:rebin", (UPSAMPLE,))
SEARCH = Kernel("search_f32_histogram__generic", SEARCH_RECORD, "qrt.observers.cpu:search")
KERNELS: tuple[Kernel, ...] = (COUNT_UNIFORM, COUNT_EXACT, REBIN, SEARCH)

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@functools.cache
def _entry(name: str, target: Target) -> ctypes._FuncPointer:
    from qrt.jit.load import address

    return _ENTRY(address(next(k for k in KERNELS if k.name == name), target))


def _call(kernel: Kernel, record: np.ndarray) -> None:
    _entry(kernel.name, host_target())(record.ctypes.data, 0, 1)


def _count_uniform(x: np.ndarray, bins: int, low: np.float32, high: np.float32, *, strict: bool) -> tuple[np.ndarray, int]:
    total, bin_of, done = np.zeros(bins, np.int64), np.empty(BLOCK, np.int32), np.empty(1, np.int64)
    for start in range(0, x.size, PIECE):
        piece, counts = x[start : start + PIECE], np.zeros((WAYS, bins + PAD), np.int32)
        addresses = (counts.ctypes.data, bins, bins + PAD, bin_of.ctypes.data, done.ctypes.data)
        _call(COUNT_UNIFORM, np.array([(piece.ctypes.data, piece.size, *addresses, strict, low, high)], COUNT_UNIFORM_RECORD))
        total += counts[:, :bins].sum(axis=0)
        if done[0] < piece.size:
            return total, start + int(done[0])
    return total, x.size


def count_uniform(x: np.ndarray, bins: int, low: np.float32, high: np.float32) -> np.ndarray:
    """Counts of `x` in `bins` equal bins over low..high, low < high, as int64 (bins,).

    `x`: float32 (n,), contiguous, every value inside low..high. An element's bin is
    int(f32(f32(f32(x − low) · bins) / f32(high − low))), and the last bin holds `high` itself.
    """
    return _count_uniform(x, bins, low, high, strict=False)[0]


def count_inside(x: np.ndarray, bins: int, low: np.float32, high: np.float32) -> tuple[np.ndarray, int]:
    """`count_uniform` of any values, NaN included, and how many of the first ones it counted: those before the block of the first that is
    not inside low..high, all if there is none."""
    return _count_uniform(x, bins, low, high, strict=True)


def count_exact(x: np.ndarray, bins: int, scale: float) -> np.ndarray:
    """Counts of `x` in bins floor(x · scale) + bins / 2, as int64 (bins,).

    `x`: float32 (n,), contiguous; `scale`: a power of two for which every bin is one of 0..bins − 1.
    """
    counts, bin_of = np.zeros((WAYS, bins), np.int64), np.empty(BLOCK, np.int32)
    _call(COUNT_EXACT, np.array([(x.ctypes.data, x.size, counts.ctypes.data, bins, bin_of.ctypes.data, scale)], COUNT_EXACT_RECORD))
    return np.asarray(counts.sum(axis=0))


def rebin(counts: np.ndarray, low: np.float32, high: np.float32, new_low: np.float32, new_high: np.float32) -> np.ndarray:
    """`counts` over low..high, float32 (bins,), sorted into as many bins over the wider new_low..new_high.

    Each bin is cut into 16 equal parts, which go where their middles lie, and into the outermost bins where that is outside. Parts and bins
    begin where torch.linspace says.
    """
    bins = counts.size
    counts, edges, sums = np.ascontiguousarray(counts, F32), np.empty(bins + 1, F32), np.zeros(bins, F32)
    addresses = (counts.ctypes.data, edges.ctypes.data, sums.ctypes.data)
    _call(REBIN, np.array([(*addresses, bins, low, high, new_low, new_high)], REBIN_RECORD))
    return sums


def search(histogram: np.ndarray, low: np.float32, high: np.float32, levels: int) -> tuple[int, int]:
    """First and last bin of the range whose quantization to `levels` codes has the least squared error.

    Tails are cut step by step, always the one whose next quantile spans more bins, until the error grows. Data are taken
    as uniform inside each bin, and what lies outside the range goes to the nearest code. The error is a float32 per bin,
    summed in float64. (Caffe2's `NormMinimization::NonlinearQuantizationParamsSearch`.)
    """
    bins = histogram.size
    width = (float(high) - float(low)) / bins
    total = float(F32(histogram.sum(dtype=np.float64)))
    cumulated = np.cumsum(histogram, dtype=np.float64).astype(F32)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        density = np.asarray(histogram / F32(width))
    norm, kept = np.empty(bins, F32), np.empty(2, np.int64)
    addresses = tuple(array.ctypes.data for array in (density, cumulated, norm, kept))
    _call(SEARCH, np.array([(*addresses, bins, levels, width, total, STEP)], SEARCH_RECORD))
    return int(kept[0]), int(kept[1])
