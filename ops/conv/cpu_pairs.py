"""Depthwise convolution of codes in pairs of 16 bits (AVX2): two taps of 32 channels are interleaved and widened, so that one instruction
multiplies both.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from qrt.jit.lang import fields, i32, i64, share, written
from qrt.jit.lang.simd import I8, I64, Simd
from qrt.ops.gemm.cpu_micro import Micro

CHANNELS = 32
# Bytes that each block of channels has of a constant, and of the weights of two taps.
BLOCK = 4 * CHANNELS
_CHANNELS = ir.VectorType(I8, CHANNELS)


class _Tile(Micro):
    """`pixels` outputs, 32 channels: a pixel's accumulators are four vectors in FOUR_ORDER."""

    def __init__(self, s: Simd, pixels: int, values: dict[str, Any]) -> None:
        super().__init__(s, pixels, 4, "indirect", "u8", values)

    def build(self) -> None:
        b, s, v = self.b, self.s, self.v
        acc = [[self._variable(self._start(j)) for j in range(4)] for _ in range(self.rows)]
        with cgutils.for_range(b, v["pairs"]) as pair:
            w = b.add(v["w"], b.mul(pair.index, I64(BLOCK)))
            places = b.add(v["places"], b.mul(pair.index, I64(16)))
            for i, variables in enumerate(acc):
                own = b.add(places, b.mul(v["pairs"], I64(16 * i)))
                pixels = [b.add(s.load(s.at(own, 8 * n), I64), v["channel"]) for n in range(2)]
                words = s.pairs_of(*(s.load(pixel, _CHANNELS) for pixel in pixels))
                for j, variable in enumerate(variables):
                    b.store(s.dot_pairs(b.load(variable), words[j], s.load(s.at(w, 32 * j), s.i32)), variable)
        scaled = [self._u8(j) for j in range(4)]
        for i, variables in enumerate(acc):
            codes = self.codes_of_four([scaled[j](b.load(variable), None, None) for j, variable in enumerate(variables)])
            s.store(b.add(v["y"], b.mul(self.row_index(i), v["y_row"])), codes)


_COUNTS = ("places", "channel", "w", "bias", "scale", "y", "y_row", "rows", "pairs")
_FLOATS = ("lo", "hi")
_NAMES = (*_COUNTS, *_FLOATS, "y_zero_point")
_TYPES = (types.int64,) * len(_COUNTS) + (types.float32,) * len(_FLOATS) + (types.int32,)


def pairs(isa, pixels):  # type: ignore[no-untyped-def]
    """All tiles of one image batch: threads share the (image, pixel block) rows, channels innermost. Where the taps of a block's pixels
    lie is found once for all channels."""

    def build(builder: Any, values: dict[str, Any]) -> None:
        _Tile(Simd(isa, builder), pixels, values).build()

    tile = written(_NAMES, _TYPES, build)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        blocks = (r.m + pixels - 1) // pixels
        channel_blocks = (r.channels + CHANNELS - 1) // CHANNELS
        lo, hi = share(r.batch * blocks, tid, nthreads)
        for block in range(lo, hi):
            image, m = block // blocks, block % blocks * pixels
            x = r.x + image * r.x_batch
            for i in range(pixels):
                offsets = i32(r.offsets + 4 * min(m + i, r.m - 1) * r.taps)
                places = i64(r.places + tid * r.places_bytes + 16 * i * r.pairs)
                places[2 * r.pairs - 1] = r.zeros  # an odd tap's partner, whose weights are 0
                for tap in range(r.taps):
                    offset = int(offsets[tap])
                    places[tap] = x + offset if offset >= 0 else r.zeros
            for n in range(channel_blocks):
                # The last block begins early and stores some channels again: the same bytes.
                channel = min(n * CHANNELS, r.channels - CHANNELS)
                y = r.y + image * r.y_batch + m * r.y_row + channel
                tile(
                    (
                        r.places + tid * r.places_bytes,
                        channel,
                        r.w + n * r.pairs * BLOCK,
                        r.bias + n * BLOCK,
                        r.scale + n * BLOCK,
                        y,
                        r.y_row,
                        min(pixels, r.m - m),
                        r.pairs,
                        r.lo,
                        r.hi,
                        r.y_zero_point,
                    )
                )

    return kernel
