"""Memory of outputs, which is written again once nobody sees it: new pages cost more than many an operator.

What a caller gets is a view of an array that is kept here. Whatever else sees the memory refers to that array as well: NumPy makes it the
base of every view. So its count of references tells whether anybody does; nobody waits for anybody, and nothing happens when arrays die.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from sys import getrefcount

import numpy as np

from qrt.ops.op import Array, Spec

__all__ = ["Outputs", "start_of"]

# Arrays kept for one output. Who lets go of a result when he has the next needs two; who hands results to other threads, more.
MOST = 4
# Bytes kept in the whole process: as much as the C library's malloc holds back (glibc: M_TRIM_THRESHOLD, at most twice 32 MB).
MOST_BYTES = 64 << 20


def start_of(array: Array) -> int:
    """Where the array's bytes start. `array.ctypes.data` says the same in four times the time."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # NumPy tells of its buffers from 3.12 on
    except (TypeError, ValueError, BufferError):  # read-only, empty, or of a dtype without a buffer format
        return array.ctypes.data


class Outputs:
    """Makes the outputs of runs that follow one another; for one run at a time.

    `places`: for each output, the words of `words` that get its address, and what is added to it there.
    """

    def __init__(self, specs: Sequence[Spec], places: Sequence[Sequence[tuple[int, int]]], words: memoryview) -> None:
        self._words = words
        self._each = [(spec.shape, spec.dtype, to, list[tuple[Array, int]]()) for spec, to in zip(specs, places, strict=True)]
        _all[id(self)] = self

    def make(self) -> list[Array]:
        """Arrays for the next run's outputs, in memory that nobody sees and that holds anything; the words get their addresses."""
        words, made = self._words, []
        for shape, dtype, places, kept in self._each:
            for pair in kept:
                array, start = pair  # `pair` is held, so that its reference counts even if another thread lets go of it now
                if getrefcount(array) == _UNSEEN:
                    break
            else:
                array = np.empty(shape, dtype)
                start = start_of(array)
                if array.nbytes <= MOST_BYTES:
                    if len(kept) == MOST:
                        kept.clear()  # they are the caller's
                    _count(array.nbytes)
                    kept.append((array, start))
            for position, offset in places:
                words[position] = start + offset
            made.append(array.view())
        return made

    def forget(self) -> None:
        """Lets go of all arrays: they live as long as callers see them. Any thread may call this at any time."""
        for _, _, _, kept in self._each:
            kept.clear()


_all = weakref.WeakValueDictionary[int, Outputs]()
_counted = 0


def _count(nbytes: int) -> None:
    """Counts what will be kept. Once there would be too much of it, everybody starts again with nothing."""
    global _counted
    _counted += nbytes
    if _counted > MOST_BYTES:
        _counted = nbytes
        for found in _all.valuerefs():
            if (outputs := found()) is not None:
                outputs.forget()


def _references() -> int:
    """References to an array that nobody sees, as `Outputs.make` counts them: from its pair, a variable and getrefcount's argument."""
    for pair in [(np.empty(0), 0)]:
        array, _ = pair
    return getrefcount(array)


_UNSEEN = _references()
