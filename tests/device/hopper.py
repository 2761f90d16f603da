"""The words of `qrt.jit.lang.cuda_hopper` for the emulator: barriers, the copy engine, products of a warpgroup.

Boxes arrive, and products are done, when they are asked for ("eager"), or as late as anybody can wait for them ("lazy"). Where a box is on
its way, shared memory holds POISON. Descriptors are decoded as the "Parallel Thread Execution ISA" says, field by field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from device.emulator import POISON, SHARED_BASE, WARP, WORDS
from greenlet import getcurrent

BOX_BYTES = 128
K = 32


# -- barriers in shared memory --------------------------------------------------------------------------------------------------
@dataclass
class Barrier:
    """`pending` arrivals and `nbytes` end a phase; `phase` counts those that ended."""

    arrivals: int
    pending: int
    nbytes: int = 0
    phase: int = 0
    ready: bool = False
    waiting: list[Any] = field(default_factory=list)

    def count(self, arrivals: int, nbytes: int) -> None:
        self.pending, self.nbytes = self.pending - arrivals, self.nbytes + nbytes
        if self.pending < 0 or self.nbytes < 0:
            raise RuntimeError(f"a barrier of {self.arrivals} arrivals gets more than a phase waits for")
        if self.pending == self.nbytes == 0:
            self.phase, self.pending = self.phase + 1, self.arrivals
            for thread in self.waiting:
                thread.blocked = False
            self.waiting.clear()


def barriers() -> dict[int, Barrier]:
    """Those of this thread's block, by address."""
    found: dict[int, Barrier] = getcurrent().block.__dict__.setdefault("barriers", {})
    return found


def barrier_at(at: int) -> Barrier:
    barrier = barriers().get(at)
    if barrier is None or not barrier.ready:
        raise RuntimeError(f"no barrier is ready at {at}")
    return barrier


def barrier_init(at: int, arrivals: int) -> None:
    room = getcurrent().block.shared.size - (at - SHARED_BASE)
    if at % 8 or at < SHARED_BASE or room < 8 or at in barriers():
        raise IndexError(f"a barrier at {at}")
    barriers()[at] = Barrier(arrivals, arrivals)


def barriers_ready() -> None:
    """Also what this thread has stored in shared memory is there for products from now on."""
    for barrier in barriers().values():
        barrier.ready = True
    thread, stored = getcurrent(), stored_by()
    stored[stored == thread.number] = NOBODY


# -- what products do not see yet: stored by threads that have not fenced it ("async proxy") -------------------------------------
NOBODY = -1


def stored_by() -> np.ndarray:
    """For each byte of the block's shared memory, which thread has stored it and not fenced since, or NOBODY."""
    block = getcurrent().block
    found: np.ndarray = block.__dict__.setdefault("stored", np.full(block.shared.size, NOBODY, np.int16))
    return found


def noting(word: Callable[..., None], count: int) -> Callable[..., None]:
    """A word that stores `count` bytes at its first argument."""

    def store(address: int, *values: Any) -> None:
        word(address, *values)
        stored_by()[address - SHARED_BASE : address - SHARED_BASE + count] = getcurrent().number

    return store


def barrier_wait(at: int, parity: int) -> None:
    thread, barrier = getcurrent(), barrier_at(at)
    while barrier.phase & 1 == parity:
        thread.blocked = True
        barrier.waiting.append(thread)
        thread.block.hub.switch()


def meet(number: int, threads: int) -> None:
    if not 1 <= number <= 15 or threads % WARP:
        raise RuntimeError(f"a barrier {number} of {threads} threads")
    getcurrent().block.meet(("meet", number), threads)


# -- the copy engine ------------------------------------------------------------------------------------------------------------
def tensor_map_ready(tensor_map: int) -> None:
    getcurrent().block.__dict__.setdefault("maps", set()).add(tensor_map)


def swizzled(at: Any, chunks: int = 8) -> Any:
    """Where the copy engine puts the byte that belongs at `at`: chunks of 16 bytes, permuted by the number of their 128 bytes."""
    return at ^ ((at >> 7) & (chunks - 1)) << 4


def copy_box(to: int, tensor_map: int, column: int, row: int, barrier: int) -> None:
    block = getcurrent().block
    if tensor_map not in block.__dict__.get("maps", ()):
        raise RuntimeError("a tensor map is used that was not made ready in this block")
    address, rows, columns, row_bytes, box_rows = block.memory.at(tensor_map, 128, 64).view(np.int64)[:5].tolist()
    if to % 1024 or address % 16 or row_bytes % 16 or not 0 < box_rows <= 256:
        raise IndexError(f"a box of {box_rows} rows of what lies at {address:#x}, {row_bytes} bytes a row, to {to}")
    there, at = barrier_at(barrier), to - SHARED_BASE
    if at < 0 or at + box_rows * BOX_BYTES > block.shared.size:
        raise IndexError(f"a box of {box_rows} rows at {at} of {block.shared.size} of shared memory")
    places = swizzled(to + np.arange(box_rows * BOX_BYTES)).reshape(box_rows, BOX_BYTES) - SHARED_BASE

    def arrive() -> None:
        for i, place in enumerate(places):
            inside = min(BOX_BYTES, columns - column) if 0 <= row + i < rows else 0
            line = np.zeros(BOX_BYTES, np.uint8)
            if inside > 0:
                line[:inside] = block.memory.at(address + (row + i) * row_bytes + column, inside, 1)
            block.shared[place] = line
        there.count(0, -places.size)

    if block.schedule.copies == "eager":
        arrive()
    else:
        block.shared[places] = POISON
        block.under_way.append(arrive)


# -- products of a warpgroup ----------------------------------------------------------------------------------------------------
def matrix(descriptor: int, rows: int) -> np.ndarray:
    """uint8 [rows, 32] that a descriptor names: sections "Matrix Descriptor Format" and "Strides" of wgmma, K-major."""
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
    shared = getcurrent().block.shared
    if at.min() < 0 or at.max() >= shared.size:
        raise IndexError(f"a matrix at {at.min()} to {at.max()} of {shared.size} of shared memory")
    if (stored_by()[at] != NOBODY).any():
        raise RuntimeError("a matrix holds what a thread has stored and not fenced")
    found: np.ndarray = shared[at]
    return found


@dataclass
class Products:
    """One instruction, as far as one warp of the four goes: 16 of its rows. The warps need not come to it together."""

    n: int
    warp: int
    values: list[tuple[np.ndarray, int, int]]
    done: bool = False

    def do(self) -> None:
        if not self.done:
            self.done = True
            _, a, b = self.values[0]
            rows = matrix(a, 64)[16 * self.warp : 16 * self.warp + 16].astype(np.int32)
            total = rows @ matrix(b, self.n).view(np.int8).astype(np.int32).T
            i, j = np.arange(4), np.arange(self.n // 8)[:, None]
            for lane, (acc, *_) in enumerate(self.values):
                acc += total[lane // 4 + 8 * (i // 2)[None], 8 * j + lane % 4 * 2 + i % 2].reshape(acc.shape)


def products_fence() -> None:
    getcurrent().fenced = True


def multiply_add(n: int) -> Callable[[np.ndarray, int, int], None]:
    def products(acc: np.ndarray, a: int, b: int) -> None:
        thread = getcurrent()
        if not getattr(thread, "fenced", False):
            raise RuntimeError("accumulators are not fenced")
        warp = thread.number // WARP

        def combine(brought: dict[int, Any]) -> Products:
            values = [brought[WARP * warp + lane] for lane in range(WARP)]
            if len({value[1:] for value in values}) != 1 or acc.size != n // 2:
                raise RuntimeError("threads of a warp multiply different matrices")
            made = Products(n, warp % 4, values)
            if thread.block.schedule.copies == "eager":
                made.do()
            return made

        made = thread.block.meet(("products", warp), WARP, (acc, a, b), combine)
        thread.__dict__.setdefault("open", []).append(made)

    return products


def products_commit() -> None:
    thread = getcurrent()
    thread.__dict__.setdefault("closed", []).append(thread.__dict__.pop("open", []))


def products_wait(n: int, groups: int) -> Callable[[np.ndarray], None]:
    def wait(acc: np.ndarray) -> None:
        thread = getcurrent()
        closed = thread.__dict__.setdefault("closed", [])
        while len(closed) > groups:
            for products in closed.pop(0):
                products.do()
        thread.fenced = False  # its accumulators may change now

    return wait


STORES = {"store_shared_u16": 2, "store_shared_i32": 4, "store_shared_f32": 4, "copy_async": 16}
WORDS |= {
    **{name: noting(WORDS[name], count) for name, count in STORES.items()},
    "barrier_init": barrier_init,
    "barriers_ready": barriers_ready,
    "barrier_arrive": lambda at: barrier_at(at).count(1, 0),
    "barrier_expect": lambda at, nbytes: (barrier_at(at).count(0, nbytes), barrier_at(at).count(1, 0)),
    "barrier_wait": barrier_wait,
    "meet": meet,
    "tensor_map_ready": tensor_map_ready,
    "copy_box": copy_box,
    "products_fence": products_fence,
    "multiply_add": multiply_add,
    "products_commit": products_commit,
    "products_wait": products_wait,
}
