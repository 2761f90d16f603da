"""Memory that starts at a cache line; where there is much of it, in huge pages: weights that stream past a core, and what a run reads
all over, otherwise wait for page tables."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from qrt.ops.op import Array
from qrt.runtime.arena import ALIGNMENT, SLACK

__all__ = ["Shelf", "room"]

# A huge page of x86-64 and AArch64 (Linux, Documentation/admin-guide/mm/transhuge.rst).
PAGE = 2 << 20
# Bytes from which on an array is worth its share of huge pages; smaller ones lie where the C library puts them.
LEAST = 1 << 18
# Addresses, not memory: pages that nobody wrote to take none.
CHUNK = 32 << 20


def room(nbytes: int) -> Array:
    """uint8 [nbytes] of zeros from a cache line on; from half a huge page on in such pages, if the system gives them.

    Raises MemoryError where the system has not as much.
    """
    if nbytes >= PAGE // 2 and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            area = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"the system refuses {nbytes:,} bytes ({error.strerror})") from error
        with contextlib.suppress(OSError):  # a Linux without them
            area.madvise(mmap.MADV_HUGEPAGE)
        raw, unit = np.frombuffer(area, np.uint8), PAGE
    else:
        raw, unit = np.zeros(nbytes + ALIGNMENT, np.uint8), ALIGNMENT
    start = -raw.ctypes.data % unit
    return raw[start : start + nbytes]


class Shelf:
    """Where large arrays lie side by side, so that they share huge pages. They live as long as the last of them."""

    def __init__(self) -> None:
        self._left = np.empty(0, np.uint8)

    def put(self, array: Array) -> Array:
        """A copy that starts at a cache line and may be read 64 bytes past its end."""
        size = -(-(array.nbytes + SLACK) // ALIGNMENT) * ALIGNMENT
        if array.nbytes < LEAST:
            place = room(size)
        else:
            if size > len(self._left):
                self._left = room(max(size, CHUNK))
            place, self._left = self._left[:size], self._left[size:]
        copy: Array = place[: array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy
