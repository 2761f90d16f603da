"""Depthwise convolution: every channel has a window of its own, so lanes run over channels and nothing is packed in K."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import ModelError
from qrt.core.record import record
from qrt.core.target import LADDERS, Target
from qrt.jit import Kernel, record_dtype
from qrt.jit.lanes import FOUR_ORDER, LANES, QUAD_ORDER
from qrt.ops.conv.conv import FILL
from qrt.ops.conv.lines import gap_of, padded, pixel_stride
from qrt.ops.conv.window import Window
from qrt.ops.gemm.dense import check_extra, check_operand
from qrt.ops.gemm.epilogue import Codes, Epilogue
from qrt.ops.gemm.product import Fields, Weights, emit_table_apart, overread_safe, wrap32
from qrt.ops.gemm.table import EPILOGUES, Tile, vector_isa
from qrt.ops.gemm.table import RECORD as GEMM_RECORD
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Ref, Spec, Steps
from qrt.ops.strides import agreed, is_contiguous, row_stride

__all__ = ["KERNELS", "Depthwise"]

# The product's record: `n` counts channels, `m` output pixels of an image, `taps` window positions, `k4` the bytes from one
# tap's weights to the next; the rest as there.
RECORD = record_dtype(*((name, GEMM_RECORD[name].str[1:]) for name in GEMM_RECORD.names or ()))
# Accumulators stay in registers; pixels of a tile share its weights, vectors of a tile share the offsets of its pixels.
TILES: dict[str, tuple[Tile, ...]] = {
    "avx512vnni": (Tile(4, 4), Tile(6, 2), Tile(8, 1)),
    "avxvnni": (Tile(3, 3), Tile(6, 1)),
    "avx2": (Tile(3, 3), Tile(6, 1)),
    "neon_dot": (Tile(4, 4), Tile(8, 1)),
    "generic": (Tile(2, 2), Tile(4, 1)),
}


def _kernel(isa: str, tile: Tile, epilogue: str) -> Kernel:
    types = "f32" if EPILOGUES[epilogue].startswith("float") else "u8s16"
    name = f"depthwise_{types}_{epilogue}_{tile.rows}x{tile.vectors * LANES[isa]}__{isa}"
    return Kernel(name, RECORD, "qrt.ops.conv.cpu:depthwise", (isa, tile.rows, tile.vectors, epilogue))


KERNELS: tuple[Kernel, ...] = tuple(
    _kernel(isa, tile, epilogue)
    for ladder in LADDERS.values()
    for isa in ladder
    if isa in TILES
    for tile in TILES[isa]
    for epilogue in EPILOGUES
    if epilogue != "u8t"
    if isa != "generic" or ladder is LADDERS["x86_64"]
)


def kernel_for(target: Target, channels: int, epilogue: str) -> Kernel:
    """The table's row that wastes least lanes on `channels`, and of those the widest."""

    def waste(tile: Tile) -> tuple[int, int]:
        lanes = tile.vectors * LANES[vector_isa(target)]
        return -(-channels // lanes) * lanes, -tile.vectors

    return _kernel(vector_isa(target), min(TILES[vector_isa(target)], key=waste), epilogue)


# Codes by the dot product: `cpu_interleaved.py`. Windows that real networks have; everything else takes the kernels above.
INTERLEAVED_RECORD = record_dtype(
    *((name, "i8") for name in ("x", "zeros", "w", "bias", "scale", "y", "table", "batch", "height", "width", "channels")),
    # Bytes from one image, one column and one column of the result to the next.
    *((name, "i8") for name in ("out_height", "out_width", "stride_rows", "pad_top", "pad_left", "image", "pixel", "out_pixel")),
    ("low", "i4"),
    ("high", "i4"),
    ("y_zero_point", "i4"),
)
INTERLEAVED_PIXELS = 4
INTERLEAVED: tuple[Kernel, ...] = tuple(
    Kernel(
        f"depthwise_u8s8_{epilogue}_{k}x{k}s{stride}_{INTERLEAVED_PIXELS}x64__{isa}",
        INTERLEAVED_RECORD,
        "qrt.ops.conv.cpu_interleaved:interleaved",
        ("avx512vnni", INTERLEAVED_PIXELS, k, k, stride, epilogue),
    )
    for epilogue, isa in (("u8", "avx512vnni"), ("u8t", "avx512vbmi"))
    for k in (3, 5, 7)
    for stride in (1, 2, 4)
)
# Codes in pairs of taps, 32 channels or more: `cpu_pairs.py`.
PAIRS_RECORD = record_dtype(
    *((name, "i8") for name in ("x", "offsets", "zeros", "w", "bias", "scale", "y", "batch", "m", "channels", "taps", "pairs")),
    # Bytes from one image to the next, and from pixel to pixel of the result; room for the addresses of a block's taps, of each thread.
    *((name, "i8") for name in ("x_batch", "y_batch", "y_row", "places", "places_bytes")),
    ("lo", "f4"),
    ("hi", "f4"),
    ("y_zero_point", "i4"),
)
PAIRS_PIXELS, PAIRS_CHANNELS = 2, 32
_PAIRS_NAME = f"depthwise_u8s16_u8_pairs_{PAIRS_PIXELS}x{PAIRS_CHANNELS}__avx2"
PAIRS = Kernel(_PAIRS_NAME, PAIRS_RECORD, "qrt.ops.conv.cpu_pairs:pairs", ("avx2", PAIRS_PIXELS))
# A tile's channels; images of half or a quarter as many are computed two or four pixels at a time.
LANES_OF_CODES = 64


@record(eq=False)
class Depthwise(Op):
    """y[n, o…, c] = epilogue(Σ over taps of (x − x_zero_point)[…, c] · w[tap, c] + bias[c]), channels last.

    Inputs: x [N, *space, C], then what the epilogue reads. `weights.w`: [C, taps, 1, 1], as a convolution of C groups.
    """

    window: Window
    weights: Weights
    epilogue: Epilogue
    x_zero_point: int = 0

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        channels, taps, k, n = self.weights.w.shape
        x = inputs[0]
        check_operand(self.epilogue, x)
        if (k, n) != (1, 1) or len(x.shape) != len(self.window.kernel) + 2 or x.shape[-1] != channels or taps != self.window.taps:
            raise ModelError(f"an image of shape {list(x.shape)} does not fit {channels} depthwise windows of {self.window.kernel}")
        y = Spec((x.shape[0], *self.window.out_space(x.shape[1:-1]), channels), self.epilogue.dtype)
        check_extra(self.epilogue, inputs[1:], y)
        return (y,)

    def macs(self, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> int:
        return outputs[0].size * self.window.taps

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = inputs[0]
        w = self.weights.centred()[:, :, 0, 0].T  # [taps, C]
        known = self.epilogue.name not in ("f32", "f32add", "f32d")
        pad = inputs[2].reshape(()) if self.epilogue.name == "f32d" else (self.x_zero_point if self.epilogue.integer else 0.0)
        columns = self.window.columns(x, float(pad))
        if self.epilogue.integer:
            columns = columns.astype(np.int64) - (self.x_zero_point if known else 0)
        acc = (columns * w).sum(-2, dtype=columns.dtype)
        return (self.epilogue.reference(acc, self.weights.bias, inputs[1:], self.weights.sums()),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size == 0:
            return
        # As one wide pixel only where they lie side by side.
        for together in (self._together(y.spec) if is_contiguous(x.spec.shape, x.strides) else 1, 1):
            if (fast := self._interleaved(steps.target, y.spec, together)) is not None:
                self._emit_interleaved(steps, fast, x, y, together)
                return
        if self.epilogue.table is not None:
            emit_table_apart(self, steps, inputs, outputs)
            return
        if vector_isa(steps.target) == "avx2" and self.epilogue.name == "u8" and x.spec.shape[-1] >= PAIRS_CHANNELS:
            self._emit_pairs(steps, x, y)
            return
        batch, *space, channels = x.spec.shape
        pixels = prod(y.spec.shape[1:-1])
        taps, integer = self.window.taps, self.epilogue.integer
        size, y_size = (1 if integer else 4), y.spec.dtype.itemsize
        # Room for the widest tile past the last channel: constants are read whole, only x and y are masked.
        columns = -(-channels // 64) * 64
        w, row = self.weights, columns * size
        zeros_of_w = w.zero_point.tobytes() if w.zero_point is not None else b""

        def lay(source: Array, how: str, array: Array) -> Ref:
            def make() -> Array:
                padded = np.zeros(columns, array.dtype)
                padded[:channels] = np.resize(array, channels)
                return padded

            return steps.packed(source, ("channels", how, columns), make)

        def pack() -> Array:
            padded = np.zeros((taps, columns), np.int32 if integer else np.float32)
            padded[:, :channels] = w.centred()[:, :, 0, 0].T
            return padded

        x_pixel, y_pixel = agreed(pixel_stride(x.spec, x.strides)), agreed(pixel_stride(y.spec, y.strides))
        how = ("offsets", tuple(space), x_pixel * size, self.window)
        fields: Fields = dict.fromkeys(RECORD.names or (), 0)
        fields |= {"batch": batch, "m": pixels, "n": channels, "taps": taps, "groups": 1, "k4": columns * 4}
        fields |= {"w": steps.packed(w.w, ("depthwise", columns, zeros_of_w), pack)}
        fields |= {"offsets": steps.packed(w.w, how, lambda: self.window.offsets(space, x_pixel * size))}
        if self.epilogue.name == "f32d":
            zeros = steps.scratch(row)
            steps.step(FILL, 1, y=zeros, n=row, code=inputs[2].ref)
            fields |= {"zeros": zeros, "column_sums": lay(w.w, f"sums{zeros_of_w!r}", wrap32(w.sums()))}
        else:
            code = self.x_zero_point if integer else 0
            fields |= {"zeros": steps.packed(w.w, ("padding", code, row), lambda: np.full(row, code, np.uint8))}
        bias = w.bias if w.bias is not None else np.zeros(1, np.float32)
        source = w.w if w.bias is None else w.bias
        if integer and self.epilogue.name != "f32d":
            bias = wrap32(bias.astype(np.int64) - self.x_zero_point * w.sums())
        fields |= {"bias": lay(source, f"start{self.x_zero_point}{zeros_of_w!r}{id(w.w)}", bias)}
        fields |= {"x": x.ref, "x_batch": x.strides[0] * size, "x_row": x_pixel * size}
        fields |= {"y": y.ref, "y_batch": y.strides[0] * y_size, "y_row": y_pixel * y_size}
        fields |= self.epilogue.fields(inputs[1:], lay)
        work = batch * pixels * channels * taps
        steps.step(kernel_for(steps.target, channels, self.epilogue.name), 1 if work < 1 << 14 else None, **fields)

    def _emit_pairs(self, steps: Steps, x: Operand, y: Operand) -> None:
        batch, *space, channels = x.spec.shape
        taps, pixels, w, code = self.window.taps, prod(y.spec.shape[1:-1]), self.weights, self.x_zero_point
        starts = [min(at, channels - PAIRS_CHANNELS) for at in range(0, channels, PAIRS_CHANNELS)]
        order = np.add.outer(starts, FOUR_ORDER)
        pairs, zeros_of_w = -(-taps // 2), w.zero_point.tobytes() if w.zero_point is not None else b""

        def lay(source: Array, how: str, array: Array) -> Ref:
            return steps.packed(source, ("pairs", how, channels), lambda: np.resize(array, channels)[order])

        def pack() -> Array:
            words = np.zeros((2 * pairs, channels), np.int16)
            words[:taps] = w.centred()[:, :, 0, 0].T
            return np.ascontiguousarray(words.reshape(pairs, 2, channels)[:, :, order].transpose(2, 0, 3, 1))

        bias = wrap32((0 if w.bias is None else w.bias.astype(np.int64)) - code * w.sums())
        source = w.w if w.bias is None else w.bias
        x_pixel, y_pixel = agreed(pixel_stride(x.spec, x.strides)), agreed(pixel_stride(y.spec, y.strides))
        how = ("offsets", tuple(space), x_pixel, self.window)
        places = -(-16 * pairs * PAIRS_PIXELS // 128) * 128  # threads write to it: pairs of cache lines of their own
        fields: Fields = {name: value for name, value in self.epilogue.fields((), lay).items() if name in (PAIRS_RECORD.names or ())}
        fields |= {"batch": batch, "m": pixels, "channels": channels, "taps": taps, "pairs": pairs}
        fields |= {"x": x.ref, "x_batch": x.strides[0], "y": y.ref, "y_batch": y.strides[0], "y_row": y_pixel}
        fields |= {"w": steps.packed(w.w, ("pairs", "weights", zeros_of_w), pack)}
        fields |= {"bias": lay(source, f"start{code}{zeros_of_w!r}{id(w.w)}", bias)}
        fields |= {"offsets": steps.packed(w.w, how, lambda: self.window.offsets(space, x_pixel))}
        fields |= {"zeros": steps.packed(w.w, ("padding", code, channels), lambda: np.full(channels, code, np.uint8))}
        fields |= {"places": steps.scratch(steps.threads * places), "places_bytes": places}
        steps.step(PAIRS, 1 if batch * pixels * channels * taps < 1 << 14 else None, **fields)

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        return index == 0 and pixel_stride(x, strides) is not None

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        # Pixels that are computed together are stored together.
        return not self.epilogue.residual and self._together(y) == 1 and row_stride(y.shape, strides) is not None

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.conv.device import emit_convolution

        if outputs[0].spec.size:
            emit_convolution(steps, self.window, self.weights, self.epilogue, self.x_zero_point, inputs, outputs[0])

    def _together(self, y: Spec) -> int:
        """How many neighbouring pixels fill a tile's channels. Theirs lie side by side; as one wide pixel they are read by a window whose
        steps are that many pixels, over an image that holds its padding."""
        channels, width = y.shape[-1], y.shape[-2]
        together = LANES_OF_CODES // channels if channels in (16, 32) else 1
        return together if len(y.shape) == 4 and self.window.strides[1] == 1 and width % together == 0 else 1

    def _interleaved(self, target: Target, y: Spec, together: int) -> Kernel | None:
        """The dot-product kernel for this window, `together` pixels at a time, if there is one."""
        w = self.window
        # Steps below 2**31 in size need no clamp before they become integers: saturating packs do the rest.
        small = isinstance(self.epilogue, Codes) and float(self.epilogue.multiplier.max(initial=0)) < 1
        plain = small and self.weights.zero_point is None and not w.transposed and set(w.dilations) <= {1}
        if not plain or len(w.kernel) != 2 or y.shape[2] < INTERLEAVED_PIXELS * together:
            return None
        wanted = (vector_isa(target), INTERLEAVED_PIXELS, *w.kernel, w.strides[1] * together, self.epilogue.name)
        return next((k for k in INTERLEAVED if k.params == wanted and k.isa in target.ladder), None)

    def _emit_interleaved(self, steps: Steps, kernel: Kernel, x: Operand, y: Operand, together: int) -> None:
        batch, height, width, pixel = x.spec.shape
        x_pixel, y_pixel = agreed(pixel_stride(x.spec, x.strides)), agreed(pixel_stride(y.spec, y.strides))
        channels = pixel * together
        blocks, (kh, kw) = -(-channels // 64), self.window.kernel
        codes = self.epilogue
        assert isinstance(codes, Codes)

        def lay(source: Array, how: str, array: Array) -> Ref:
            def make() -> Array:
                padded = np.zeros(blocks * 64, array.dtype)
                padded[:channels] = np.resize(array, channels)
                return padded.reshape(blocks, 64)[:, list(QUAD_ORDER)]

            return steps.packed(source, ("interleaved", how, together), make)

        def pack() -> Array:
            taps = np.zeros((blocks * 64, -(-kh // 4) * 4, kw), np.int8)
            taps[:channels, :kh] = np.tile(self.weights.w[:, :, 0, 0].reshape(pixel, kh, kw), (together, 1, 1))
            quads = taps.reshape(blocks, 64, -1, 4, kw)[:, list(QUAD_ORDER)]  # [block, channel, row group, row, column]
            return np.ascontiguousarray(quads.transpose(0, 2, 4, 1, 3))

        w = self.weights
        bias = wrap32((0 if w.bias is None else w.bias.astype(np.int64)) - self.x_zero_point * w.sums())
        fields: Fields = {"scale": lay(codes.multiplier, "scale", codes.multiplier), "y_zero_point": codes.zero_point}
        fields |= {
            "low": codes.qmin,
            "high": codes.qmax,
            "bias": lay(w.w if w.bias is None else w.bias, f"start{self.x_zero_point}{id(w.w)}", bias),
        }
        fields |= {"w": steps.packed(w.w, ("interleaved", "weights", together), pack)}
        zeros = steps.packed(w.w, ("padding", self.x_zero_point, 64), lambda: np.full(64, self.x_zero_point, np.uint8))
        (top, left), image, source = self.window.pads[:2], x.strides[0], x.ref
        if together > 1:
            source, image = padded(steps, self.window, x, zeros)
            if any(self.window.pads):
                gap = gap_of(self.window, (height, width))
                top, left, height, width = 0, left - gap, height + self.window.pads[0] + self.window.pads[2], width + gap
            else:
                source = overread_safe(steps, x, pixel, LANES_OF_CODES)
        fields["table"] = 0 if codes.table is None else steps.packed(codes.table, "table", codes.table.copy)
        fields |= {"zeros": zeros, "x": source, "y": y.ref, "batch": batch, "height": height, "width": width, "channels": channels}
        fields |= {"out_height": y.spec.shape[1], "out_width": y.spec.shape[2] // together, "stride_rows": self.window.strides[0]}
        fields |= {"pad_top": top, "pad_left": left, "image": image, "pixel": x_pixel, "out_pixel": y_pixel * together}
        steps.step(kernel, 1 if y.spec.size * kh * kw < 1 << 15 else None, **fields)
