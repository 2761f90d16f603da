"""Hopper's parts as both emulators have them, that of the source and that of PTX: barriers that count bytes, boxes, described matrices.

After the "Parallel Thread Execution ISA": mbarrier, "Tensors", and of wgmma "Matrix Descriptor Format" and "Strides".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from device.emulator import SHARED_BASE, Memory

BOX_BYTES = 128
K = 32  # bytes of k that a product takes


@dataclass
class Barrier:
    """`pending` arrivals and `nbytes` end a phase; `phase` counts those that ended."""

    arrivals: int
    pending: int
    nbytes: int = 0
    phase: int = 0
    ready: bool = False

    def count(self, arrivals: int, nbytes: int) -> bool:
        """Whether the phase ends."""
        self.pending, self.nbytes = self.pending - arrivals, self.nbytes + nbytes
        if self.pending < 0 or self.nbytes < 0:
            raise RuntimeError(f"a barrier of {self.arrivals} arrivals gets more than a phase waits for")
        ended = self.pending == self.nbytes == 0
        if ended:
            self.phase, self.pending = self.phase + 1, self.arrivals
        return ended


def check_barrier(at: int, shared: int) -> None:
    """Whether a barrier may lie at an address, in a block of so many bytes of shared memory."""
    if at % 8 or not 0 <= at - SHARED_BASE <= shared - 8:
        raise IndexError(f"a barrier at {at}")


def swizzled(at: Any, chunks: int = 8) -> Any:
    """Where the copy engine puts the byte that belongs at `at`: chunks of 16 bytes, permuted by the number of their 128 bytes."""
    return at ^ ((at >> 7) & (chunks - 1)) << 4


def box_places(memory: Memory, tensor_map: int, to: int, shared: int) -> np.ndarray:
    """Offsets in shared memory of the bytes of a box: [rows, 128]."""
    address, _, _, row_bytes, box_rows = memory.at(tensor_map, 128, 64).view(np.int64)[:5].tolist()
    if to % 1024 or address % 16 or row_bytes % 16 or not 0 < box_rows <= 256:
        raise IndexError(f"a box of {box_rows} rows of what lies at {address:#x}, {row_bytes} bytes a row, to {to}")
    at = to - SHARED_BASE
    if at < 0 or at + box_rows * BOX_BYTES > shared:
        raise IndexError(f"a box of {box_rows} rows at {at} of {shared} of shared memory")
    places: np.ndarray = swizzled(to + np.arange(box_rows * BOX_BYTES)).reshape(box_rows, BOX_BYTES) - SHARED_BASE
    return places


def box(memory: Memory, tensor_map: int, column: int, row: int) -> np.ndarray:
    """uint8 [rows, 128] of the matrix that a map names, from this column and row on; zeros outside of it."""
    address, rows, columns, row_bytes, box_rows = memory.at(tensor_map, 128, 64).view(np.int64)[:5].tolist()
    found = np.zeros((box_rows, BOX_BYTES), np.uint8)
    inside = min(BOX_BYTES, columns - column)
    for i in range(max(0, -row), min(box_rows, rows - row) if inside > 0 else 0):
        found[i, :inside] = memory.at(address + (row + i) * row_bytes + column, inside, 1)
    return found


def matrix_places(descriptor: int, rows: int, shared: int) -> np.ndarray:
    """Offsets in shared memory of the bytes of a matrix that a descriptor names, K-major: [rows, 32]."""
    start, leading, stride = ((descriptor >> bit & 0x3FFF) << 4 for bit in (0, 16, 32))
    width = {0: 16, 1: 128, 2: 64, 3: 32}[descriptor >> 62 & 3]
    if descriptor >> 49 & 7:
        raise RuntimeError("a matrix that does not start where the pattern of its swizzle does")
    row, column = np.arange(rows)[:, None], np.arange(K)[None]
    at = start + row // 8 * stride + row % 8 * width
    if width == 16:
        at = at + column // 16 * leading + column % 16
    else:
        at = swizzled(at + column, width // 16)
    at = at - SHARED_BASE
    if at.min() < 0 or at.max() >= shared:
        raise IndexError(f"a matrix at {at.min()} to {at.max()} of {shared} of shared memory")
    return at
