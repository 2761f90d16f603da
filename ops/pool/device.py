"""The table of device kernels of pooling."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.conv import Window
from qrt.ops.gemm.device import rows_of_chunks
from qrt.ops.op import Array, DeviceSteps, Operand, Ref

__all__ = ["AVERAGE", "KERNELS", "LARGEST", "emit_pool"]

_RECORD = record_dtype(
    ("x", "i8"),  # images; pixels of codes start at multiples of 4
    ("y", "i8"),
    ("offsets", "i8"),  # int32 [pixels][taps]: bytes from the image's start, −1 for padding
    ("counts", "i8"),  # int32 [pixels]: taps that a mean divides by
    ("x_batch", "i8"),  # bytes from one image to the next
    ("threads", "i4"),  # that have something to do
    ("pixels", "i4"),  # of one image of y
    ("blocks", "i4"),  # threads for one pixel
    ("channels", "i4"),
    ("taps", "i4"),
    ("flip", "i4"),  # the bits in which codes differ from unsigned ones in the same order
    ("x_zero_point", "i4"),
    *((name, "f4") for name in ("x_scale", "y_scale", "low", "high")),
    ("y_zero_point", "i4"),
)


def _kernel(kind: str, average: bool) -> DeviceKernel:
    name = f"pool_{kind}_{'average' if average else 'max'}__cuda"
    return DeviceKernel(name, _RECORD, f"qrt.ops.pool.cuda:{'floats' if kind == 'f32' else 'codes'}", (int(average),))


# By whether they pool codes.
LARGEST, AVERAGE = ({codes: _kernel("u8" if codes else "f32", average) for codes in (False, True)} for average in (False, True))
KERNELS: tuple[DeviceKernel, ...] = (*LARGEST.values(), *AVERAGE.values())


@lru_cache(maxsize=256)
def _offsets(window: Window, space: tuple[int, ...], pixel: int) -> Array:
    """One array for equal windows, so that plans of one model share it."""
    return window.offsets(space, pixel)


@lru_cache(maxsize=256)
def _table(values: tuple[int, ...]) -> Array:
    return np.array(values, np.int32)


def _constant(steps: DeviceSteps, array: Array) -> Ref:
    return steps.packed(array, "table", lambda: array)


def emit_pool(steps: DeviceSteps, window: Window, x: Operand, y: Operand, counts: Array | None, codes: dict[str, float | int]) -> None:
    """Appends pooling of x [N, *space, C]: the largest of each window or, where there are `counts` (int [pixels]), the mean. `codes`: what
    the record holds of scales and zero points, for means of codes.

    Raises UnsupportedOp for results that are too many to count in 32 bits.
    """
    if y.spec.size == 0:
        return
    if y.spec.size >= 2**31:
        raise UnsupportedOp(f"a result of {y.spec.size} elements: pooling counts in 32 bits")
    of_codes, (_, *space, channels) = x.spec.dtype.itemsize == 1, x.spec.shape
    source, row = (x.ref, channels * x.spec.dtype.itemsize)
    if of_codes and channels % 4:
        source, row = rows_of_chunks(steps, x, channels)
    blocks = -(-channels // 4) if of_codes else channels
    pixels = prod(y.spec.shape[1:-1])
    threads = y.spec.shape[0] * pixels * blocks
    offsets = _constant(steps, _offsets(window, tuple(space), row))
    fields: dict[str, int | float | Ref] = dict.fromkeys(_RECORD.names or (), 0)
    fields |= {"x": source, "y": y.ref, "offsets": offsets, "x_batch": prod(space) * row, "threads": threads, "pixels": pixels}
    fields |= {"blocks": blocks, "channels": channels, "taps": window.taps}
    fields |= codes
    fields["flip"] = -0x7F7F7F80 if x.spec.dtype.name == "int8" else 0  # 0x80808080
    if counts is not None:
        fields["counts"] = _constant(steps, _table(tuple(counts.reshape(-1).tolist())))
    kernel = (LARGEST if counts is None else AVERAGE)[of_codes]
    steps.launch(kernel, (-(-threads // kernel.block), 1), **fields)
