"""Where a window's taps lie when a convolution's input is read in lines, without a table: see `amx.Lines`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product

from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.conv.window import Window
from qrt.ops.gemm.amx import K_STEP, Lines
from qrt.ops.op import Operand, Ref, Spec, Steps
from qrt.ops.strides import agreed, row_stride

__all__ = ["PAD", "SORT", "Phases", "gap_of", "lines_of", "padded", "phases_of", "pixel_stride"]

# y: an image's rows, each after `gap` bytes of padding, `top` such rows before the image and `bottom` after it, and one gap more.
# A row has `pieces` pieces of `piece` bytes, which lie `x_piece` apart in x; its images lie `x_image` apart.
PAD = Kernel(
    "pad_u8_rows__generic",
    record_dtype(
        *((name, "i8") for name in ("x", "x_image", "x_piece", "y", "batch", "height", "pieces", "piece", "top", "bottom", "gap", "code"))
    ),
    "qrt.ops.conv.cpu:pad",
)
# y: an image's pixels by phase: those (i · down + phase, j · across + phase) of the padded image, `rows` by `pitch` pixels of `piece`
# bytes, one phase of columns after the other, and so for phases of rows. x as for PAD, its pixels `x_piece` apart.
SORT = Kernel(
    "sort_u8_phases__generic",
    record_dtype(
        *((name, "i8") for name in ("x", "x_image", "x_piece", "y", "batch", "height", "width", "piece", "top", "left", "code")),
        *((name, "i8") for name in ("down", "across", "row_phases", "column_phases", "rows", "pitch")),
    ),
    "qrt.ops.conv.cpu:sort",
)
# A tile's rows; fewer positions than that do not fill one.
LEAST = 16
# Bytes below which one thread copies alone.
SERIAL_BYTES = 1 << 15


def gap_of(look: Window, space: Sequence[int]) -> int:
    """Columns of padding between two rows, the end of one and the beginning of the next: enough for a row of results as well."""
    return max(look.pads[len(space) - 1], look.pads[-1], look.out_space(space)[-1] - space[-1])


@record
class Phases:
    """An image under a window of strides (down, across), its pixels sorted by phase: what a tap reads lies side by side, as if the window
    moved by single pixels. `rows` by `pitch` pixels a phase; of each axis only phases that a tap reads."""

    down: int
    across: int
    row_phases: int
    column_phases: int
    rows: int
    pitch: int

    def tap(self, y: int, x: int) -> int:
        """Where the pixel lies that is y rows and x columns from a window's first."""
        phase = y % self.down * self.column_phases + x % self.across
        return (phase * self.rows + y // self.down) * self.pitch + x // self.across

    @property
    def pixels(self) -> int:
        """Pixels of all phases."""
        return self.row_phases * self.column_phases * self.rows * self.pitch


def phases_of(look: Window, space: Sequence[int], channels: int) -> Phases | None:
    """How `padded` sorts an image; None where it does not: where rows of results fill tiles, or where channels would not fill steps of k,
    as taps no longer follow each other."""
    rank = len(look.kernel)
    if rank > 2 or look.transposed or set(look.strides) == {1} or 4 * -(-channels // K_STEP) * K_STEP > 5 * channels:
        return None
    down, across = (look.strides[0] if rank == 2 else 1), look.strides[-1]
    height, width = (1, *look.out_space(space))[-2:]
    reach = [0] * (2 - rank) + [(k - 1) * d for k, d in zip(look.kernel, look.dilations, strict=True)]
    if width >= LEAST:
        return None
    return Phases(down, across, min(down, reach[0] + 1), min(across, reach[1] + 1), height + reach[0] // down, width + reach[1] // across)


def lines_of(look: Window, space: Sequence[int], channels: int, pixel: int) -> Lines | None:
    """The lines of an image of extents `space`, padded as `padded` does; None where they are too short. `pixel`: bytes from pixel to pixel
    where it is read in place.

    Where the window moves by single pixels, all rows are one line: what lies across the end of a row is computed and dropped.
    """
    rank = len(look.kernel)
    if rank > 2 or look.transposed:
        return None
    out, gap = look.out_space(space), gap_of(look, space)
    down, across = (look.dilations[0], look.dilations[-1]) if rank == 2 else (0, look.dilations[0])
    kernel = look.kernel if rank == 2 else (1, *look.kernel)
    if phases := phases_of(look, space, channels):
        taps = tuple(phases.tap(y * down, x * across) * channels for y, x in product(*map(range, kernel)))
        length = ((out[0] if rank == 2 else 1) - 1) * phases.pitch + out[-1]
        return Lines(1, 0, length, channels, phases.pitch, out[-1], taps) if length >= LEAST else None
    pixel = channels if any(look.pads) else pixel
    pitch = space[-1] + gap
    row, height = pitch * pixel, out[0] if rank == 2 else 1
    first = (gap - look.pads[rank - 1]) * pixel
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
    """The images of codes with their padding, each byte of it the one at `code`, sorted by phase where `phases_of` says so, and the bytes
    of one: x itself where there is nothing to do."""
    rank, (batch, *space, channels) = len(look.kernel), x.spec.shape
    pixel = agreed(pixel_stride(x.spec, x.strides))
    gap = gap_of(look, space) * channels
    top, bottom, height = (look.pads[0], look.pads[2], space[0]) if rank == 2 else (0, 0, 1)
    if phases := phases_of(look, space, channels):
        image = phases.pixels * channels
        y = steps.scratch(batch * image)
        sizes: dict[str, int] = {
            "batch": batch,
            "height": height,
            "width": space[-1],
            "piece": channels,
            "top": top,
            "left": look.pads[rank - 1],
        }
        places: dict[str, int | Ref] = {"x": x.ref, "x_image": x.strides[0], "x_piece": pixel, "y": y, "code": code}
        steps.step(SORT, 1 if batch * image < SERIAL_BYTES else None, **places, **sizes, **asdict(phases))
        return y, image
    if not any(look.pads):
        return x.ref, x.strides[0]
    row = space[-1] * channels
    image = gap + (top + height + bottom) * (row + gap)
    pieces, piece, apart = (1, row, row) if pixel == channels else (space[-1], channels, pixel)
    y = steps.scratch(batch * image)
    fields: dict[str, int | Ref] = {"x": x.ref, "x_image": x.strides[0], "x_piece": apart, "pieces": pieces, "piece": piece}
    fields |= {"y": y, "batch": batch, "height": height, "top": top, "bottom": bottom, "gap": gap, "code": code}
    steps.step(PAD, 1 if batch * image < SERIAL_BYTES else None, **fields)
    return y, image
