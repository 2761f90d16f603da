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


# -- images in boxes --------------------------------------------------------------------------------------------------------
_FAR = np.float32(1 << 20)


@device
def _edge(v, scale, offset):  # type: ignore[no-untyped-def]
    """Where a box ends in pixels; nothing is further away than _FAR, and NaN is 0."""
    at = v * scale - offset
    if at != at:
        return _ZERO
    return max(min(at, _FAR), -_FAR)


@device
def _axis(begin, end, parts, sampling, half_pixel):  # type: ignore[no-untyped-def]
    """How long a part of a box is, and how many samples it has."""
    whole = end - begin
    if half_pixel == 0 and whole < np.float32(1):
        whole = np.float32(1)
    size = whole / np.float32(parts)
    return size, sampling if sampling > 0 else np.int64(np.ceil(size))


@device
def _at(base, size, count, i):  # type: ignore[no-untyped-def]
    """Where sample i of a part lies."""
    return base + (np.float32(i) + _HALF) * size / np.float32(count)


@device
def _inside(base, size, count, n):  # type: ignore[no-untyped-def]
    """The samples of a part among which all are that lie within an axis of n: first and last, which is not one of them."""
    step = size / np.float32(count)
    if not step > _ZERO:
        return 0, count
    most = np.float32(count)
    first = np.int64(max(_ZERO, min(most, (np.float32(-1) - base) / step - np.float32(3))))
    last = np.int64(max(_ZERO, min(most, (np.float32(n) - base) / step + np.float32(3))))
    return first, last


@device
def _neighbours(at, n):  # type: ignore[no-untyped-def]
    """The two pixels beside a place within an axis of n, and the weight of the second."""
    at = max(at, _ZERO)
    low = np.int64(at)
    if low >= n - 1:
        return n - 1, n - 1, _ZERO
    return low, low + 1, at - np.float32(low)


def roi_align(largest):  # type: ignore[no-untyped-def]
    """For each part of each box the mean of its samples, or the largest weighted pixel of them."""

    @device
    def add(y, to, x, taps, weights, channels):  # type: ignore[no-untyped-def]
        a, b, c, d = taps
        u, v, w, z = weights
        for k in range(channels):
            if largest:
                one, other = max(u * x[a + k], v * x[b + k]), max(w * x[c + k], z * x[d + k])
                y[to + k] = max(y[to + k], max(one, other))
            else:
                y[to + k] += u * x[a + k] + v * x[b + k] + w * x[c + k] + z * x[d + k]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y, rois, index, channels = f32(r.x), f32(r.y), f32(r.rois), i64(r.index), r.channels
        one, offset = np.float32(1), _HALF if r.half_pixel != 0 else _ZERO
        refused = np.int64(0)
        lo, hi = share(r.boxes * r.rows * r.columns, tid, nthreads)
        for unit in range(lo, hi):
            box, row, column = unit // (r.rows * r.columns), unit // r.columns % r.rows, unit % r.columns
            image = index[box]
            if image < 0 or image >= r.images:
                refused = image
                image = 0
            left, top = _edge(rois[4 * box], r.scale, offset), _edge(rois[4 * box + 1], r.scale, offset)
            right, bottom = _edge(rois[4 * box + 2], r.scale, offset), _edge(rois[4 * box + 3], r.scale, offset)
            height, down = _axis(top, bottom, r.rows, r.sampling, r.half_pixel)
            width, across = _axis(left, right, r.columns, r.sampling, r.half_pixel)
            over, beside = top + np.float32(row) * height, left + np.float32(column) * width
            to, seen = unit * channels, 0
            for k in range(channels):
                y[to + k] = np.float32(-np.inf) if largest else _ZERO
            if down > 0 and across > 0:
                first_row, last_row = _inside(over, height, down, r.x_rows)
                first_column, last_column = _inside(beside, width, across, r.x_columns)
                for i in range(first_row, last_row):
                    v = _at(over, height, down, i)
                    if not (v >= np.float32(-1) and v <= np.float32(r.x_rows)):
                        continue
                    above, below, far = _neighbours(v, r.x_rows)
                    above, below = (image * r.x_rows + above) * r.x_columns, (image * r.x_rows + below) * r.x_columns
                    for j in range(first_column, last_column):
                        u = _at(beside, width, across, j)
                        if not (u >= np.float32(-1) and u <= np.float32(r.x_columns)):
                            continue
                        a, b, part = _neighbours(u, r.x_columns)
                        taps = ((above + a) * channels, (above + b) * channels, (below + a) * channels, (below + b) * channels)
                        weights = ((one - far) * (one - part), (one - far) * part, far * (one - part), far * part)
                        add(y, to, x, taps, weights, channels)
                        seen += 1
            count = max(down * across, 1)
            for k in range(channels):
                if not largest:
                    y[to + k] = y[to + k] / np.float32(count)
                elif seen < count or seen == 0:  # samples outside of the image are 0
                    y[to + k] = max(y[to + k], _ZERO)
        if refused != 0:
            r.refused = refused

    return kernel
