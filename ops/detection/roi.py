"""RoiAlign: images in boxes, brought to one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import InvalidInput, ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.op import Array, Op, Operand, Spec, Steps, refusal

__all__ = ["KERNELS", "RoiAlign"]

_WORDS = ("x", "rois", "index", "y", "images", "x_rows", "x_columns", "channels", "boxes", "rows", "columns", "sampling", "half_pixel")
_RECORD = record_dtype(*((name, "i8") for name in (*_WORDS, "refused")), ("scale", "f4"))
_KERNELS = {
    largest: Kernel(f"roi_align_f32_{'max' if largest else 'mean'}__generic", _RECORD, "qrt.ops.detection.cpu:roi_align", (largest,))
    for largest in (False, True)
}
KERNELS: tuple[Kernel, ...] = tuple(_KERNELS.values())

# More samples along an axis of a part than this are no sound model's.
_MAX_SAMPLING = 1 << 12
_SERIAL = 1 << 11
_FAR = np.float32(1 << 20)


def _rule(images: int) -> str:
    return f"the batch indices of RoiAlign must be within 0 … {images - 1}"


@record
class RoiAlign(Op):
    """x (images, rows, columns, channels), rois (n, 4) of corners (x, y, x, y), int64 index (n,) of their images → (n, `rows`, `columns`,
    channels): each box in parts, and of each part the mean of its bilinear samples, or (`largest`) the largest weighted pixel of them.

    `sampling`: how many samples a part has along each axis; 0: about one for each pixel. `scale`: from the units of boxes to pixels.
    `half_pixel`: boxes count from the edges of pixels, not from their centres; without it, boxes are one pixel wide and high at least.
    Samples outside of the image are 0. What lies beyond 2**20 pixels counts as that far, NaN as 0.
    """

    largest: bool
    rows: int
    columns: int
    sampling: int
    scale: float
    half_pixel: bool

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, rois, index = inputs
        if x.dtype != np.float32 or rois.dtype != np.float32 or index.dtype != np.int64:
            raise UnsupportedOp(f"no kernel aligns {x.dtype} to boxes of {rois.dtype} by indices of {index.dtype}")
        if len(x.shape) != 4 or len(rois.shape) != 2 or rois.shape[1] != 4 or index.shape != rois.shape[:1]:
            raise ModelError(f"boxes of shape {rois.shape} with indices of shape {index.shape} do not fit images of shape {x.shape}")
        if self.rows < 1 or self.columns < 1 or not 0 <= self.sampling <= _MAX_SAMPLING or not np.isfinite(self.scale):
            raise ModelError(f"boxes of {self.rows} × {self.columns} parts with {self.sampling} samples, scaled by {self.scale}")
        if rois.shape[0] and 0 in x.shape[:3]:
            raise ModelError(f"boxes in images of shape {x.shape}")
        return (Spec((rois.shape[0], self.rows, self.columns, x.shape[3]), x.dtype),)

    def _places(self, begin: np.float32, end: np.float32, parts: int, n: int) -> list[list[tuple[int, int, np.float32] | None]]:
        """For each part of a box along an axis of n, its samples: two pixels, and the weight of the second. None for one outside."""
        f = np.float32
        whole = end - begin if self.half_pixel else max(end - begin, f(1))
        size = whole / f(parts)
        count = self.sampling or int(np.ceil(size))
        found: list[list[tuple[int, int, np.float32] | None]] = []
        for part in range(parts):
            base = begin + f(part) * size
            places = [base + (f(i) + f(0.5)) * size / f(count) for i in range(count)]
            found.append([_neighbours(at, n) for at in places])
        return found

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, rois, index = inputs
        wrong = index[(index < 0) | (index >= x.shape[0])]
        if wrong.size:
            raise InvalidInput(refusal(_rule(x.shape[0]), int(wrong[-1])))
        y = np.zeros((len(rois), self.rows, self.columns, x.shape[3]), np.float32)
        offset = np.float32(0.5 if self.half_pixel else 0)
        with np.errstate(all="ignore"):
            edges = np.clip(np.nan_to_num(rois * np.float32(self.scale) - offset, posinf=np.inf, neginf=-np.inf), -_FAR, _FAR)
        for box, (left, top, right, bottom) in enumerate(edges.astype(np.float32)):
            down = self._places(top, bottom, self.rows, x.shape[1])
            across = self._places(left, right, self.columns, x.shape[2])
            for row, column in np.ndindex(self.rows, self.columns):
                y[box, row, column] = self._part(x[index[box]], down[row], across[column])
        return (y,)

    def _part(
        self, x: Array, down: Sequence[tuple[int, int, np.float32] | None], across: Sequence[tuple[int, int, np.float32] | None]
    ) -> Array:
        one, samples = np.float32(1), []
        for v in down:
            for u in across:
                if u is None or v is None:
                    samples.append(np.zeros((4, x.shape[2]), np.float32))
                    continue
                weights = ((one - v[2]) * (one - u[2]), (one - v[2]) * u[2], v[2] * (one - u[2]), v[2] * u[2])
                pixels = (x[v[0], u[0]], x[v[0], u[1]], x[v[1], u[0]], x[v[1], u[1]])
                samples.append(np.stack([w * p for w, p in zip(weights, pixels, strict=True)]))
        if not samples:
            return np.zeros(x.shape[2], np.float32)
        if self.largest:
            return np.asarray(np.max(samples, axis=(0, 1)))
        total = np.zeros(x.shape[2], np.float32)
        for a, b, c, d in samples:
            total = total + (a + b + c + d)
        return total / np.float32(len(samples))

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, rois, index, y = *inputs, outputs[0]
        if not y.spec.size:
            return
        images, x_rows, x_columns, channels = x.spec.shape
        steps.step(
            _KERNELS[self.largest],
            None if y.spec.size > _SERIAL else 1,
            x=x.ref,
            rois=rois.ref,
            index=index.ref,
            y=y.ref,
            refused=0,
            images=images,
            x_rows=x_rows,
            x_columns=x_columns,
            channels=channels,
            boxes=rois.spec.shape[0],
            rows=self.rows,
            columns=self.columns,
            sampling=self.sampling,
            half_pixel=int(self.half_pixel),
            scale=self.scale,
        )
        steps.rule(_rule(images))


def _neighbours(at: np.float32, n: int) -> tuple[int, int, np.float32] | None:
    """The two pixels beside a place on an axis of n, and the weight of the second; None outside."""
    if not -1 <= at <= n:
        return None
    at = max(at, np.float32(0))
    low = int(at)
    return (n - 1, n - 1, np.float32(0)) if low >= n - 1 else (low, low + 1, at - np.float32(low))
