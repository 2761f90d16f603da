"""Suppress: of boxes that overlap, the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.op import Array, Op, Operand, Spec, Steps

__all__ = ["KERNELS", "Suppress"]

_WORDS = ("boxes", "scores", "thresholds", "chosen", "counts", "work", "work_bytes", "images", "classes", "n", "most", "centers", "bounded")
_RECORD = record_dtype(*((name, "i8") for name in _WORDS))
_KERNEL = Kernel("suppress_f32__generic", _RECORD, "qrt.ops.detection.cpu:suppress")
KERNELS: tuple[Kernel, ...] = (_KERNEL,)

_SERIAL = 1 << 12


def _corners(boxes: Array, centers: bool) -> Array:
    """Boxes as (4, n): where they begin and end, along both axes."""
    a, b, c, d = boxes.T
    if centers:
        half = np.float32(0.5)
        return np.stack([a - c * half, a + c * half, b - d * half, b + d * half])
    swapped_x, swapped_y = b >= d, a >= c
    return np.stack([np.where(swapped_x, d, b), np.where(swapped_x, b, d), np.where(swapped_y, c, a), np.where(swapped_y, a, c)])


def _later(a: Array, b: Array) -> Array:
    return np.where(a < b, b, a)


def _earlier(a: Array, b: Array) -> Array:
    return np.where(b < a, b, a)


def _overlap(kept: Array, box: Array) -> Array:
    """The part that `box` has in common with each of the boxes `kept`, of both together; 0 for what has no area in common."""
    left, right = _later(kept[0], box[0]), _earlier(kept[1], box[1])
    top, bottom = _later(kept[2], box[2]), _earlier(kept[3], box[3])
    common = (right - left) * (bottom - top)
    areas = (kept[1] - kept[0]) * (kept[3] - kept[2])
    area = (box[1] - box[0]) * (box[3] - box[2])
    both = areas + area - common
    apart = (right <= left) | (bottom <= top) | (common <= 0) | (areas <= 0) | (area <= 0) | (both <= 0)
    return np.where(apart, np.float32(0), common / both)


@record
class Suppress(Op):
    """boxes (images, n, 4), scores (images, classes, n), thresholds (overlap, score) → for each class the `most` best boxes that no better
    one overlaps above the threshold, best first (images, classes, most) int64, then −1; and how many these are (images, classes) int64.

    A box is (y, x, y, x) of two opposite corners; `centers`: (x, y, width, height) with its centre. `bounded`: only scores above the
    threshold count. Of equal scores the first comes first, a NaN last; boxes with NaN overlap nothing.
    """

    most: int
    centers: bool
    bounded: bool

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        boxes, scores, thresholds = inputs
        if any(spec.dtype != np.float32 for spec in inputs):
            raise UnsupportedOp(f"no kernel suppresses boxes of {boxes.dtype} by scores of {scores.dtype}")
        fits = len(boxes.shape) == len(scores.shape) == 3 and boxes.shape[2] == 4 and thresholds.shape == (2,)
        if not fits or boxes.shape[0] != scores.shape[0] or boxes.shape[1] != scores.shape[2] or not 0 <= self.most <= boxes.shape[1]:
            raise ModelError(f"boxes {boxes.shape} and scores {scores.shape} do not fit one another, or have no {self.most} boxes")
        int64 = np.dtype(np.int64)
        return (Spec((*scores.shape[:2], self.most), int64), Spec(scores.shape[:2], int64))

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        boxes, scores, (threshold, least) = inputs
        chosen, counts = np.full((*scores.shape[:2], self.most), -1, np.int64), np.zeros(scores.shape[:2], np.int64)
        for image, which in np.ndindex(*scores.shape[:2]):
            row, corners, found = scores[image, which], _corners(boxes[image], self.centers), list[int]()
            order = np.argsort(-row, kind="stable")
            for place in order[row[order] > least] if self.bounded else order:
                if len(found) == self.most:
                    break
                if not (_overlap(corners[:, found], corners[:, place]) > threshold).any():
                    found.append(int(place))
            chosen[image, which, : len(found)], counts[image, which] = found, len(found)
        return chosen, counts

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        boxes, scores, thresholds = inputs
        images, classes, n = scores.spec.shape
        work = -(-(16 * n + 20 * self.most) // 64) * 64
        if images * classes:
            steps.step(
                _KERNEL,
                None if scores.spec.size > _SERIAL else 1,
                boxes=boxes.ref,
                scores=scores.ref,
                thresholds=thresholds.ref,
                chosen=outputs[0].ref,
                counts=outputs[1].ref,
                work=steps.scratch(steps.threads * work),
                work_bytes=work,
                images=images,
                classes=classes,
                n=n,
                most=self.most,
                centers=int(self.centers),
                bounded=int(self.bounded),
            )
