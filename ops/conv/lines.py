"""Where a window's taps lie when a convolution's input is read in lines, without a table: see `amx.Lines`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

from qrt.jit import Kernel, record_dtype
from qrt.ops.conv.window import Window
from qrt.ops.gemm.amx import Lines
from qrt.ops.op import Ref, Steps

__all__ = ["PAD", "gap_of", "lines_of", "padded"]

# y: an image's rows, each after `gap` bytes of padding, `top` such rows before the image and `bottom` after it, and one gap more.
PAD = Kernel(
    "pad_u8_rows__generic",
    record_dtype(*((name, "i8") for name in ("x", "y", "batch", "height", "row", "top", "bottom", "gap", "code"))),
    "qrt.ops.conv.cpu:pad",
)
# A tile's rows; fewer positions than that do not fill one.
LEAST = 16
# Bytes below which one thread copies alone.
SERIAL_BYTES = 1 << 15


def gap_of(look: Window, space: Sequence[int]) -> int:
    """Columns of padding between two rows, the end of one and the beginning of the next: enough for a row of results as well."""
    return max(look.pads[len(space) - 1], look.pads[-1], look.out_space(space)[-1] - space[-1])


def lines_of(look: Window, space: Sequence[int], pixel: int) -> Lines | None:
    """The lines of an image of extents `space`, `pixel` bytes a pixel, padded as `padded` does; None where they are too short.

    Where the window moves by single pixels, all rows are one line: what lies across the end of a row is computed and dropped.
    """
    rank = len(look.kernel)
    if rank > 2 or look.transposed:
        return None
    out, gap = look.out_space(space), gap_of(look, space)
    pitch = space[-1] + gap
    row, height = pitch * pixel, out[0] if rank == 2 else 1
    first = (gap - look.pads[rank - 1]) * pixel
    down, across = (look.dilations[0], look.dilations[-1]) if rank == 2 else (0, look.dilations[0])
    kernel = look.kernel if rank == 2 else (1, *look.kernel)
    taps = tuple(first + y * down * row + x * across * pixel for y, x in product(*map(range, kernel)))
    if set(look.strides) == {1}:
        length = (height - 1) * pitch + out[-1]
        return Lines(1, 0, length, pixel, pitch, out[-1], taps) if length >= LEAST else None
    step = look.strides[0] * row if rank == 2 else 0
    return Lines(height, step, out[-1], look.strides[-1] * pixel, out[-1], out[-1], taps) if out[-1] >= LEAST else None


def padded(steps: Steps, look: Window, x: Ref, batch: int, space: Sequence[int], pixel: int, code: Ref) -> tuple[Ref, int]:
    """The images with their padding, each byte of it the one at `code`, and the bytes of one: x itself where there is none."""
    rank, gap = len(look.kernel), gap_of(look, space)
    if not any(look.pads):
        return x, prod(space) * pixel
    top, bottom, height = (look.pads[0], look.pads[2], space[0]) if rank == 2 else (0, 0, 1)
    row, gap_bytes = space[-1] * pixel, gap * pixel
    image = gap_bytes + (top + height + bottom) * (row + gap_bytes)
    y = steps.scratch(batch * image)
    threads = 1 if batch * image < SERIAL_BYTES else None
    steps.step(PAD, threads, x=x, y=y, batch=batch, height=height, row=row, top=top, bottom=bottom, gap=gap_bytes, code=code)
    return y, image
