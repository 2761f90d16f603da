"""Sample: an image read at computed places."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.numerics import nearest
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.op import Array, Op, Operand, Spec, Steps

__all__ = ["KERNELS", "MODES", "PADDINGS", "Sample"]

MODES = ("nearest", "linear", "cubic")
# Kernels know them by their number.
PADDINGS = ("zeros", "border", "reflection")
_WORDS = ("x", "grid", "y", "work", "work_bytes", "images", "points", "rows", "columns", "channels", "padding", "align")
_RECORD = record_dtype(*((name, "i8") for name in _WORDS))
_KERNELS = {mode: Kernel(f"sample_f32_{mode}__generic", _RECORD, "qrt.ops.resize.cpu_sample:sample", (mode,)) for mode in MODES}
KERNELS: tuple[Kernel, ...] = tuple(_KERNELS.values())

_SERIAL = 1 << 12
_FAR = np.float32(1 << 24)


def _cubic(t: Array) -> list[Array]:
    """The weights of four pixels, of which the second is t before the place: Keys' cubic convolution with a = −0.75."""
    f = np.float32

    def inner(t: Array) -> Array:
        return np.asarray((f(1.25) * t - f(2.25)) * t * t + f(1))

    def outer(t: Array) -> Array:
        return np.asarray(((f(-0.75) * t + f(3.75)) * t - f(6)) * t + f(3))

    return [outer(t + f(1)), inner(t), inner(f(1) - t), outer(f(2) - t)]


@record
class Sample(Op):
    """x (n, rows, columns, channels), grid (n, …, 2) float32 → x at each (column, row) of grid, from −1 to 1: (n, …, channels).

    `align`: −1 and 1 are the centres of the first and last pixels, else their edges. A place between pixels is the nearest one (to the even
    one, halfway), or interpolated; beyond them lie zeros, the border's pixels, or the reflected image. NaN lies far to the left and above.
    """

    mode: str
    padding: str
    align: bool

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, grid = inputs
        if x.dtype != np.float32 or grid.dtype != np.float32:
            raise UnsupportedOp(f"no kernel samples {x.dtype} at {grid.dtype}")
        if len(x.shape) != 4 or len(grid.shape) < 2 or grid.shape[-1] != 2 or grid.shape[0] != x.shape[0]:
            raise ModelError(f"a grid of shape {grid.shape} does not fit images of shape {x.shape}")
        y = Spec((*grid.shape[:-1], x.shape[3]), x.dtype)
        if y.size and 0 in x.shape:
            raise ModelError(f"images of shape {x.shape} have no pixels to sample")
        return (y,)

    def _places(self, grid: Array, n: int) -> tuple[list[Array], list[Array]]:
        """The pixels along an axis of n, −1 for none, and their weights."""
        f = np.float32
        with np.errstate(all="ignore"):
            at = (grid + f(1)) / f(2) * f(n - 1) if self.align else ((grid + f(1)) * f(n) - f(1)) / f(2)
        at = np.where(np.abs(at) < _FAR, at, np.where(at > 0, _FAR, -_FAR))
        if self.mode == "nearest":
            return [self._pixels(nearest(at), n)], [np.ones_like(at)]
        begin = np.floor(at)
        t, first = at - begin, begin.astype(np.int64)
        weights = [f(1) - t, t] if self.mode == "linear" else _cubic(t)
        first = first if self.mode == "linear" else first - 1
        return [self._pixels(first + k, n) for k in range(len(weights))], weights

    def _pixels(self, i: Array, n: int) -> Array:
        if self.padding == "zeros":
            return np.where((i >= 0) & (i < n), i, -1)
        if self.padding == "border":
            return np.clip(i, 0, n - 1)
        around = max(2 * (n - 1), 1) if self.align else 2 * n
        i = i % around
        return np.asarray(np.minimum(i, around - i if self.align else around - 1 - i))

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, grid = inputs
        y = np.zeros((*grid.shape[:-1], x.shape[3]), np.float32)
        if not y.size:
            return (y,)
        columns, across = self._places(grid[..., 0], x.shape[2])
        rows, down = self._places(grid[..., 1], x.shape[1])
        image = np.arange(x.shape[0]).reshape(-1, *[1] * (grid.ndim - 2))
        first = True
        for row, v in zip(rows, down, strict=True):
            for column, w in zip(columns, across, strict=True):
                found = np.where(((row >= 0) & (column >= 0))[..., None], x[image, row, column], np.float32(0))
                part = (v * w)[..., None] * found
                y, first = part if first else y + part, False
        return (y,)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, grid, y = inputs[0], inputs[1], outputs[0]
        if y.spec.size:
            images, rows, columns, channels = x.spec.shape
            work = -(-(128 + 4 * channels) // 64) * 64
            steps.step(
                _KERNELS[self.mode],
                None if y.spec.size > _SERIAL else 1,
                x=x.ref,
                grid=grid.ref,
                y=y.ref,
                work=steps.scratch(steps.threads * work),
                work_bytes=work,
                images=images,
                points=prod(grid.spec.shape[1:-1]),
                rows=rows,
                columns=columns,
                channels=channels,
                padding=PADDINGS.index(self.padding),
                align=int(self.align),
            )
