"""Where a window's taps lie when a convolution's input is read in lines, without a table: see `amx.Lines`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from qrt.jit import Kernel, record_dtype
from qrt.ops.conv.window import Window
from qrt.ops.gemm.amx import Lines
from qrt.ops.op import Operand, Ref, Spec, Steps
from qrt.ops.strides import row_stride

__all__ = ["PAD", "gap_of", "lines_of", "padded", "pixel_stride"]

# y: an image's rows, each after `gap` bytes of padding, `top` such rows before the image and `bottom` after it, and one gap more.
# A row has `pieces` pieces of `piece` bytes, which lie `x_piece` apart in x; its images lie `x_image` apart.
PAD = Kernel(
    "pad_u8_rows__generic",
    record_dtype(
        *((name, "i8") for name in ("x", "x_image", "x_piece", "y", "batch", "height", "pieces", "piece", "top", "bottom", "gap", "code"))
    ),
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


def pixel_stride(image: Spec, strides: Sequence[int]) -> int | None:
    """Elements from one pixel of an image [N, *space, C] to the next, where they lie at one distance; else None."""
    return row_stride(image.shape[1:], strides[1:])


def padded(steps: Steps, look: Window, x: Operand, code: Ref) -> tuple[Ref, int]:
    """The images of codes with their padding, each byte of it the one at `code`, and the bytes of one: x itself where there is none."""
    rank, (batch, *space, channels) = len(look.kernel), x.spec.shape
    pixel = pixel_stride(x.spec, x.strides) or 0
    gap = gap_of(look, space) * channels
    if not any(look.pads):
        return x.ref, x.strides[0]
    top, bottom, height = (look.pads[0], look.pads[2], space[0]) if rank == 2 else (0, 0, 1)
    row = space[-1] * channels
    image = gap + (top + height + bottom) * (row + gap)
    pieces, piece, apart = (1, row, row) if pixel == channels else (space[-1], channels, pixel)
    y = steps.scratch(batch * image)
    fields: dict[str, int | Ref] = {"x": x.ref, "x_image": x.strides[0], "x_piece": apart, "pieces": pieces, "piece": piece}
    fields |= {"y": y, "batch": batch, "height": height, "top": top, "bottom": bottom, "gap": gap, "code": code}
    steps.step(PAD, 1 if batch * image < SERIAL_BYTES else None, **fields)
    return y, image
