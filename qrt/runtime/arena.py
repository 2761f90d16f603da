"""Where buffers lie in the slab: lifetimes in, offsets out."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ALIGNMENT", "SLACK", "Buffer", "place"]

ALIGNMENT = 64
# Kernels may read (never use) up to one vector past a buffer's end.
SLACK = 64


@dataclass
class Buffer:
    """`nbytes` that are needed from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int


def place(buffers: Sequence[Buffer], pause: int = 0) -> tuple[list[int], int]:
    """Offsets that keep buffers apart whose lifetimes overlap, and the slab's size.

    Largest first, each into the lowest gap that fits: the greedy-by-size rule of Pisarchyk & Lee, "Efficient Memory
    Management for Deep Neural Net Inference" (2020), which comes within a few per cent of the lower bound on real nets.

    `pause`: for how many steps memory then goes to no buffer of another size. Threads share a buffer's rows in order, so memory that
    passes between equals stays with the same cores; other sizes move it from cache to cache.
    """
    offsets = [0] * len(buffers)
    placed: list[tuple[int, int, int, int]] = []  # (start, stop, first, last), by start
    end = 0
    for i in sorted(range(len(buffers)), key=lambda i: -buffers[i].nbytes):
        this = buffers[i]
        size = -(-(this.nbytes + SLACK) // ALIGNMENT) * ALIGNMENT
        at = 0
        for start, stop, first, last in placed:
            rest = pause if stop - start != size else 0
            if first <= this.last + rest and this.first <= last + rest:
                if start - at >= size:
                    break
                at = max(at, stop)
        offsets[i] = at
        insort(placed, (at, at + size, this.first, this.last))
        end = max(end, at + size)
    return offsets, end
