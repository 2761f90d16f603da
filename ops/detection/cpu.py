"""Kernels of object detectors."""

from __future__ import annotations

import numpy as np

from qrt.jit.lang import device, f32, fields, i32, i64, share
from qrt.jit.lang.heap import float_key, heapify, sift

_LANES = 8
_ZERO = np.float32(0)
_HALF = np.float32(0.5)


@device
def _later(a, b):  # type: ignore[no-untyped-def]
    return b if a < b else a


@device
def _earlier(a, b):  # type: ignore[no-untyped-def]
    return b if b < a else a


@device
def _corners(boxes, at, centers):  # type: ignore[no-untyped-def]
    """Where box `at` begins and ends, along both axes."""
    a, b, c, d = boxes[at], boxes[at + 1], boxes[at + 2], boxes[at + 3]
    if centers != 0:
        c, d = c * _HALF, d * _HALF
        return a - c, a + c, b - d, b + d
    if a >= c:
        a, c = c, a
    if b >= d:
        b, d = d, b
    return b, d, a, c


@device
def _overlaps(kept, room, i, box, threshold):  # type: ignore[no-untyped-def]
    """Whether the overlap of box i of those kept with another, as a part of both together, is above the threshold. Comparisons with NaN
    are false, and so nothing is suppressed by them."""
    x_begin, x_end, y_begin, y_end, area = box
    left, right = _later(kept[i], x_begin), _earlier(kept[room + i], x_end)
    top, bottom = _later(kept[2 * room + i], y_begin), _earlier(kept[3 * room + i], y_end)
    common = (right - left) * (bottom - top)
    other = kept[4 * room + i]
    both = other + area - common
    apart = (right <= left) | (bottom <= top) | (common <= _ZERO) | (other <= _ZERO) | (area <= _ZERO) | (both <= _ZERO)
    return (not apart) & (common / both > threshold)


@device
def _is_suppressed(kept, room, count, box, threshold):  # type: ignore[no-untyped-def]
    i, found = 0, False
    while i + _LANES <= count and not found:
        for j in range(i, i + _LANES):
            found |= _overlaps(kept, room, j, box, threshold)
        i += _LANES
    while i < count and not found:
        found |= _overlaps(kept, room, i, box, threshold)
        i += 1
    return found


def suppress():  # type: ignore[no-untyped-def]
    """For each class of each image the boxes that no better one overlaps, best first."""

    @device
    def candidates(scores, bits, keys, places, n, bounded, least):  # type: ignore[no-untyped-def]
        count = 0
        for i in range(n):
            if bounded == 0 or scores[i] > least:
                # The root is to be the best, and of equals the first; a NaN comes last.
                key = np.int32(-(1 << 31)) if scores[i] != scores[i] else float_key(bits[i])
                keys[count], places[count] = np.int64(~key), -i
                count += 1
        heapify(keys, places, count)
        return count

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        boxes, thresholds, chosen, counts = f32(r.boxes), f32(r.thresholds), i64(r.chosen), i64(r.counts)
        n, most, work = r.n, r.most, r.work + tid * r.work_bytes
        keys, places, kept = i64(work), i64(work + 8 * n), f32(work + 16 * n)
        lo, hi = share(r.images * r.classes, tid, nthreads)
        for unit in range(lo, hi):
            scores, bits = f32(r.scores + unit * n * 4), i32(r.scores + unit * n * 4)
            image = unit // r.classes * n * 4
            left = candidates(scores, bits, keys, places, n, r.bounded, thresholds[1])
            count = 0
            while left > 0 and count < most:
                place = -places[0]
                left -= 1
                keys[0], places[0] = keys[left], places[left]
                sift(keys, places, 0, left)
                x_begin, x_end, y_begin, y_end = _corners(boxes, image + place * 4, r.centers)
                box = (x_begin, x_end, y_begin, y_end, (x_end - x_begin) * (y_end - y_begin))
                if _is_suppressed(kept, most, count, box, thresholds[0]):
                    continue
                kept[count], kept[most + count], kept[2 * most + count] = x_begin, x_end, y_begin
                kept[3 * most + count], kept[4 * most + count] = y_end, box[4]
                chosen[unit * most + count] = place
                count += 1
            counts[unit] = count
            for i in range(count, most):
                chosen[unit * most + i] = -1

    return kernel
