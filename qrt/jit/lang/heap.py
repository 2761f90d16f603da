"""Heaps of (key, place), and keys that are in the order of float32 numbers."""

from __future__ import annotations

import numpy as np

from qrt.jit.lang import device

__all__ = ["float_key", "heapify", "sift"]


@device
def float_key(bits):  # type: ignore[no-untyped-def]
    """An int32 in the order of the float32 number of these bits: −0 is 0, and a NaN above all."""
    bits = np.int32(bits)
    magnitude = bits & np.int32(0x7FFFFFFF)
    if magnitude > np.int32(0x7F800000):
        return np.int32(0x7FFFFFFF)
    return np.int32(-magnitude) if bits < np.int32(0) else bits


@device
def _below(key, place, other_key, other_place):  # type: ignore[no-untyped-def]
    """Whether one element is nearer to the root than another: its key is smaller, or equal and its place is larger."""
    return key < other_key or (key == other_key and place > other_place)


@device
def sift(keys, places, i, k):  # type: ignore[no-untyped-def]
    """Lets element i of a heap of k sink to where it belongs."""
    key, place = keys[i], places[i]
    child = 2 * i + 1
    while child < k:
        if child + 1 < k and _below(keys[child + 1], places[child + 1], keys[child], places[child]):
            child += 1
        if not _below(keys[child], places[child], key, place):
            break
        keys[i], places[i] = keys[child], places[child]
        i = child
        child = 2 * i + 1
    keys[i], places[i] = key, place


@device
def heapify(keys, places, k):  # type: ignore[no-untyped-def]
    """Makes a heap of k elements in any order."""
    for i in range(k // 2):
        sift(keys, places, k // 2 - 1 - i, k)
