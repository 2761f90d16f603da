"""The words of `qrt.jit.lang.cuda_hopper` for the emulator: barriers, the copy engine, products of a warpgroup.

Boxes arrive, and products are done, when they are asked for ("eager"), or as late as anybody can wait for them ("lazy"). Where a box is on
its way, shared memory holds POISON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from device import hopper_parts as parts
from device.emulator import POISON, SHARED_BASE, WARP, WORDS
from greenlet import getcurrent


# -- barriers in shared memory --------------------------------------------------------------------------------------------------
@dataclass
class Barrier(parts.Barrier):
    """With the threads that wait for the end of a phase."""

    waiting: list[Any] = field(default_factory=list)

    def count(self, arrivals: int, nbytes: int) -> bool:
        ended = super().count(arrivals, nbytes)
        if ended:
            for thread in self.waiting:
                thread.blocked = False
            self.waiting.clear()
        return ended


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
    parts.check_barrier(at, getcurrent().block.shared.size)
    if at in barriers():
        raise IndexError(f"a second barrier at {at}")
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


def copy_box(to: int, tensor_map: int, column: int, row: int, barrier: int) -> None:
    block = getcurrent().block
    if tensor_map not in block.__dict__.get("maps", ()):
        raise RuntimeError("a tensor map is used that was not made ready in this block")
    there, places = barrier_at(barrier), parts.box_places(block.memory, tensor_map, to, block.shared.size)

    def arrive() -> None:
        block.shared[places] = parts.box(block.memory, tensor_map, column, row)
        there.count(0, -places.size)

    if block.schedule.copies == "eager":
        arrive()
    else:
        block.shared[places] = POISON
        block.under_way.append(arrive)


# -- products of a warpgroup ----------------------------------------------------------------------------------------------------
def matrix(descriptor: int, rows: int) -> np.ndarray:
    """uint8 [rows, 32] that a descriptor names."""
    shared = getcurrent().block.shared
    at = parts.matrix_places(descriptor, rows, shared.size)
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
