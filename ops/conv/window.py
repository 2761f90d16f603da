"""Window: how a convolution or pooling looks at its input, in any number of space axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.ops.op import Array

__all__ = ["Window"]

# A table of offsets takes 4 bytes for each: no more than 1 GiB.
MAX_OFFSETS = 1 << 28


@record
class Window:
    """Extents per space axis. `pads`: all begins, then all ends. A `transposed` window scatters where a plain one
    gathers; its `output_padding` adds rows at the end."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rank = len(self.kernel)
        if not (len(self.strides) == len(self.dilations) == rank and len(self.pads) == 2 * rank):
            raise ModelError(f"strides {self.strides}, dilations {self.dilations} and pads {self.pads} do not fit a kernel of rank {rank}")
        if min((*self.kernel, *self.strides, *self.dilations), default=1) < 1:
            raise ModelError(f"kernel {self.kernel}, strides {self.strides} and dilations {self.dilations} must be positive")
        if min(self.pads, default=0) < 0:
            raise UnsupportedOp(f"negative padding {self.pads}")
        if self.output_padding and (len(self.output_padding) != rank or min(self.output_padding) < 0):
            raise ModelError(f"output padding {self.output_padding} does not fit a kernel of rank {rank}")

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return prod(self.kernel)

    @property
    def is_point(self) -> bool:
        """Whether each output pixel reads just the input pixel at its own place."""
        return self.taps == 1 and not any(self.pads) and set(self.strides) <= {1} and not any(self.output_padding)

    def out_space(self, space: Sequence[int]) -> tuple[int, ...]:
        """Output extents for input extents `space`. Raises ModelError if the window is larger than the padded input."""
        rank = len(self.kernel)
        if len(space) != rank:
            raise ModelError(f"an image of {len(space)} space axes under a kernel of {rank}")
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        padding = [self.pads[i] + self.pads[i + rank] for i in range(rank)]
        if self.transposed:
            extra = self.output_padding or (0,) * rank
            out = tuple((n - 1) * s + r + e - p for n, s, r, e, p in zip(space, self.strides, reach, extra, padding, strict=True))
        else:
            out = tuple((n + p - r) // s + 1 for n, p, r, s in zip(space, padding, reach, self.strides, strict=True))
        if min(out, default=1) < 1:
            raise ModelError(f"a window of {reach} does not fit an image of {list(space)} padded by {padding}")
        return out

    def _reads(self, axis: int, n: int, out: int, tap: int) -> Array:
        """The input index that each output index of `axis` reads for kernel position `tap`; −1 for none."""
        begin, stride, dilation = self.pads[axis], self.strides[axis], self.dilations[axis]
        at = np.arange(out)
        if self.transposed:
            scaled = at + begin - tap * dilation
            index = np.where(scaled % stride == 0, scaled // stride, -1)
        else:
            index = at * stride + tap * dilation - begin
        return np.where((index >= 0) & (index < n), index, -1)

    def offsets(self, space: Sequence[int], pixel: int) -> Array:
        """For each output pixel and tap, the byte offset of the input pixel read, −1 for padding: int32 [out pixels, taps].

        `pixel`: bytes of one input pixel. Raises UnsupportedOp where offsets do not fit 32 bits, or are too many.
        """
        self.check_offsets(space, pixel)
        out = self.out_space(space)
        rank = len(space)
        table = np.empty((*out, self.taps), np.int32)
        for t, taps in enumerate(product(*map(range, self.kernel))):
            offset = np.zeros(out, np.int64)
            inside = np.ones(out, bool)
            for axis in range(rank):
                index = self._reads(axis, space[axis], out[axis], taps[axis])
                index = index.reshape([-1 if a == axis else 1 for a in range(rank)])
                inside &= index >= 0
                offset += index * (prod(space[axis + 1 :]) * pixel)
            table[..., t] = np.where(inside, offset, -1)
        return table.reshape(-1, self.taps)

    def check_offsets(self, space: Sequence[int], pixel: int) -> None:
        """Raises UnsupportedOp where `offsets` does, before there is a table."""
        if prod(space) * pixel >= 2**31:
            raise UnsupportedOp(f"an image of {prod(space) * pixel} bytes")
        places = prod(self.out_space(space))
        if places * self.taps > MAX_OFFSETS:
            raise UnsupportedOp(f"a window of {self.taps} pixels at {places} places")

    def columns(self, x: Array, pad: float) -> Array:
        """What each output pixel reads: [N, *out, taps, C] for x [N, *space, C]; padding reads `pad`. For references."""
        n, *space, channels = x.shape
        out = self.out_space(space)
        flat = x.reshape(n, prod(space), channels)
        table = self.offsets(space, 1)
        gathered = np.where((table >= 0)[None, :, :, None], flat[:, np.maximum(table, 0)], np.asarray(pad, x.dtype))
        return np.ascontiguousarray(gathered).reshape(n, *out, self.taps, channels)
