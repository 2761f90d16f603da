"""Depthwise convolution of codes by the dot product: four rows of a column are interleaved byte by byte, so that one `vpdpbusd`
takes four taps of sixteen channels. A column is interleaved once and serves every output pixel of the tile that reads it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lang import fields, share
from qrt.jit.lang.simd import I8, I64, Simd
from qrt.jit.lang.tables import load_permuted, permuted

_BYTES = ir.VectorType(I8, 64)


class _Tile:
    """`pixels` neighbouring outputs of one row, 64 channels: a pixel's accumulators are four vectors in QUAD_ORDER."""

    def __init__(self, s: Simd, pixels: int, kernel: tuple[int, int], stride: int, epilogue: str, values: dict[str, Any]) -> None:
        self.s, self.b, self.v, self.epilogue = s, s.b, values, epilogue
        self.pixels, self.kernel, self.stride = pixels, kernel, stride

    def build(self) -> None:
        b, v = self.b, self.v
        whole = b.icmp_signed(">=", v["channels"], I64(64))
        with b.if_else(whole) as (then, otherwise):
            with then:
                self._compute(None)
            with otherwise:
                self._compute(self.s.mask_bytes(v["channels"]))

    def _compute(self, mask: Any) -> None:
        s, v = self.s, self.v
        (kh, kw), width = self.kernel, s.i32
        acc = [[s.load(s.at(v["bias"], 64 * j), width) for j in range(4)] for _ in range(self.pixels)]
        groups = -(-kh // 4)
        for column in range((self.pixels - 1) * self.stride + kw):
            readers = [(p, column - p * self.stride) for p in range(self.pixels) if 0 <= column - p * self.stride < kw]
            if not readers:
                continue
            for group in range(groups):
                rows = [self._pixel(4 * group + r, column, mask) for r in range(min(4, kh - 4 * group))]
                quads = s.interleave(rows + [ir.Constant(_BYTES, None)] * (4 - len(rows)))
                for pixel, tap in readers:
                    at = ((group * kw + tap) * 4) * 64
                    for j in range(4):
                        acc[pixel][j] = s.dot(acc[pixel][j], quads[j], s.load(s.at(v["w"], at + 64 * j), width))
        self._store(acc, mask)

    def _pixel(self, row: int, column: int, mask: Any) -> Any:
        """64 channels of the input pixel under a tap; outside the image the row of zero points."""
        b, s, v = self.b, self.s, self.v
        x = b.add(v["x_first"], I64(column))
        y = b.add(v["y_first"], I64(row))
        inside = b.and_(b.icmp_unsigned("<", x, v["width"]), b.icmp_unsigned("<", y, v["height"]))
        at = b.add(v["x"], b.mul(b.add(b.mul(y, v["width"]), x), v["pixel"]))
        address = b.select(inside, at, v["zeros"])
        return s.load(address, _BYTES) if mask is None else s.load_masked(address, _BYTES, mask)

    def _store(self, acc: list[list[Any]], mask: Any) -> None:
        b, s, v = self.b, self.s, self.v
        scale = [s.load(s.at(v["scale"], 64 * j), s.f32) for j in range(4)]
        table = load_permuted(b, v["table"]) if self.epilogue == "u8t" else []
        for pixel, vectors in enumerate(acc):
            steps = [s.round(b.fmul(s.to_float(a), f)) for a, f in zip(vectors, scale, strict=True)]
            packed = s.pack_codes(steps, v["y_zero_point"], v["low"], v["high"])
            packed = permuted(b, table, packed) if table else packed
            address = b.add(v["out"], b.mul(I64(pixel), v["out_pixel"]))
            if mask is None:
                s.store(address, packed)
            else:
                s.store_masked(address, packed, mask)


_COUNTS = ("x", "zeros", "w", "bias", "scale", "table", "out", "out_pixel", "pixel", "width", "height", "x_first", "y_first", "channels")
_CODES = ("low", "high", "y_zero_point")
_NAMES = (*_COUNTS, *_CODES)
_TYPES = (types.int64,) * len(_COUNTS) + (types.int32,) * len(_CODES)


def interleaved(isa, pixels, kernel_rows, kernel_columns, stride, epilogue):  # type: ignore[no-untyped-def]
    """All tiles of a batch: threads share the (image, output row) pairs, channels innermost so that a pixel is read once."""

    @intrinsic
    def tile(typing_context, values):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            members = [builder.extract_value(args[0], i) for i in range(len(_NAMES))]
            named = dict(zip(_NAMES, members, strict=True))
            _Tile(Simd(isa, builder), pixels, (kernel_rows, kernel_columns), stride, epilogue, named).build()
            return context.get_dummy_value()

        return types.void(types.Tuple(_TYPES)), codegen

    taps = -(-kernel_rows // 4) * kernel_columns * 4 * 64

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        lo, hi = share(r.batch * r.out_height, tid, nthreads)
        for item in range(lo, hi):
            row = item % r.out_height
            x = r.x + item // r.out_height * r.image
            y_first = row * r.stride_rows - r.pad_top
            for start in range(0, r.out_width, pixels):
                # The last tile of a row begins early and stores some pixels again: the same bytes.
                column = min(start, r.out_width - pixels)
                x_first = column * stride - r.pad_left
                out = r.y + (item * r.out_width + column) * r.out_pixel
                for c in range(0, r.channels, 64):
                    tile(
                        (
                            x + c,
                            r.zeros,
                            r.w + c // 64 * taps,
                            r.bias + 4 * c,
                            r.scale + 4 * c,
                            r.table,
                            out + c,
                            r.out_pixel,
                            r.pixel,
                            r.width,
                            r.height,
                            x_first,
                            y_first,
                            r.channels - c,
                            r.low,
                            r.high,
                            r.y_zero_point,
                        )
                    )

    return kernel
