"""Hopper's instructions for `machine.py`: barriers in shared memory, the copy engine, products of a warpgroup.

Boxes arrive, and products are done, when they are asked for ("eager"), or as late as anybody can wait for them ("lazy").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from device import hopper_parts as parts
from device.emulator import POISON, WARP
from device.machine import AT_PHASE, RUNNING, Array, Machine, selection
from device.ptx import Address, Instruction, PtxError
from device.ptx_words import Done

U4, I4, U8 = np.dtype("u4"), np.dtype("i4"), np.dtype("u8")
GROUP = 4  # warps of a warpgroup


class Barriers:
    """Those of the blocks that run, by block and address."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.start()

    def start(self) -> None:
        self.found: dict[tuple[int, int], parts.Barrier] = {}
        self.maps: set[tuple[int, int]] = set()  # tensor maps that are ready, of a block

    def at(self, block: int, address: int) -> parts.Barrier:
        there = self.found.get((block, address))
        if there is None or not there.ready:
            raise RuntimeError(f"no barrier is ready at {address}")
        return there

    def make(self, block: int, address: int, arrivals: int) -> None:
        parts.check_barrier(address, self.machine.shared.shape[1])
        if (block, address) in self.found:
            raise IndexError(f"a second barrier at {address}")
        self.found[block, address] = parts.Barrier(arrivals, arrivals)

    def count(self, block: int, address: int, arrivals: int, nbytes: int) -> None:
        if self.at(block, address).count(arrivals, nbytes):
            self.machine.state[self.machine.state == AT_PHASE] = RUNNING


def _of_threads(machine: Machine, *operands: Any) -> Any:
    """For the threads of a mask, one after the other: block, and the numbers of operands (addresses, where they are in brackets)."""
    reads = [machine.addresses(one) if isinstance(one, Address) else machine.numbers(one, I4).__getitem__ for one in operands]

    def threads(mask: Array | None) -> Any:
        which = selection(mask)
        return zip(machine.block_of[which].tolist(), *(read(which).tolist() for read in reads), strict=True)

    return threads


def mbarrier(machine: Machine, instruction: Instruction) -> Done:
    barriers = machine.part(Barriers)
    match instruction.name[1:]:
        case ("init", "shared::cta", "b64"):
            made = _of_threads(machine, *instruction.operands)

            def init(mask: Array | None) -> None:
                for block, at, arrivals in made(mask):
                    barriers.make(block, at, arrivals)

            return init, None
        case ("arrive", "shared::cta", "b64"):
            arrived = _of_threads(machine, *instruction.operands[1:])

            def arrive(mask: Array | None) -> None:
                for block, at in arrived(mask):
                    barriers.count(block, at, 1, 0)

            return arrive, None
        case ("arrive", "expect_tx", "shared::cta", "b64"):
            expected = _of_threads(machine, *instruction.operands[1:])

            def expect(mask: Array | None) -> None:
                for block, at, nbytes in expected(mask):
                    barriers.count(block, at, 0, nbytes)
                    barriers.count(block, at, 1, 0)

            return expect, None
        case ("try_wait", "parity", "shared::cta", "b64"):
            done, *rest = instruction.operands
            found, waited = machine.register(done, np.dtype(bool)), _of_threads(machine, *rest)

            tried = np.zeros(machine.lanes, bool)

            def turn(mask: Array) -> None:
                """Who waits in vain is told so once, as after the time that a device waits; then it waits until a phase ends."""
                ended = np.array([barriers.at(block, at).phase & 1 != parity for block, at, parity in waited(mask)])
                which = np.flatnonzero(mask)
                sleep = which[~ended & tried[which]]
                found[which] = ended
                machine.places[which] += 1
                machine.places[sleep] -= 1
                machine.state[sleep] = AT_PHASE
                tried[which] = ~ended & ~tried[which]

            return None, turn
    raise PtxError(f"{instruction} is not known")


def fence(machine: Machine, instruction: Instruction) -> Done:
    barriers = machine.part(Barriers)
    match instruction.name[1:]:
        case ("mbarrier_init", "release", "cluster"):
            blocks = _of_threads(machine)

            def ready(mask: Array | None) -> None:
                own = {block for (block,) in blocks(mask)}
                for (block, _), there in barriers.found.items():
                    there.ready |= block in own

            return ready, None
        case ("proxy", "async", "shared::cta"):
            return (lambda mask: None), None
        case ("proxy", "tensormap::generic", "acquire", "sys"):
            maps = _of_threads(machine, instruction.operands[0])
            return (lambda mask: barriers.maps.update(maps(mask))), None
    raise PtxError(f"{instruction} is not known")


BOX = ("bulk", "tensor", "2d", "shared::cluster", "global", "tile", "mbarrier::complete_tx::bytes")


def copy_box(machine: Machine, instruction: Instruction) -> Done:
    to, source, there = instruction.operands
    if instruction.name[2:] != BOX or not isinstance(source, Address) or len(source.place) != 2:
        raise PtxError(f"{instruction} is not known")
    barriers, boxes = machine.part(Barriers), _of_threads(machine, to, source, *source.place, there)

    def act(mask: Array | None) -> None:
        for block, *rest in boxes(mask):
            one(block, *rest)

    def one(block: int, to: int, tensor_map: int, column: int, row: int, at: int) -> None:
        if (block, tensor_map) not in barriers.maps:
            raise RuntimeError("a tensor map is used that was not made ready in this block")
        barriers.at(block, at)
        shared = machine.shared[block]
        places = parts.box_places(machine.memory, tensor_map, to, shared.size)

        def arrive() -> None:
            shared[places] = parts.box(machine.memory, tensor_map, column, row)
            barriers.count(block, at, 0, -places.size)

        if machine.schedule.copies == "eager":
            arrive()
        else:
            shared[places] = POISON
            machine.under_way.append(arrive)

    return act, None


# -- products of a warpgroup ------------------------------------------------------------------------------------------------------
@dataclass
class Product:
    """One instruction, of the warps of a warpgroup that came to it together. `registers`: uint32 arrays of all threads."""

    machine: Machine
    lanes: Array
    block: int
    descriptors: tuple[int, int]
    registers: list[Array]
    done: bool = False

    def do(self) -> None:
        if self.done:
            return
        self.done = True
        machine, n = self.machine, 2 * len(self.registers)
        shared = machine.shared[self.block]
        warps = machine.thread_of[self.lanes[::WARP]] // WARP % GROUP
        rows = (16 * warps[:, None] + np.arange(16)).reshape(-1)
        a = shared[parts.matrix_places(self.descriptors[0], 64, shared.size)[rows]]
        b = shared[parts.matrix_places(self.descriptors[1], n, shared.size)].view(np.int8)
        # Products of bytes, and sums of 32 of them, are exact in float32.
        total = (a.astype(np.float32) @ b.astype(np.float32).T).astype(np.int32).reshape(len(warps), 16, n // 8, 8)
        lane, i = np.arange(WARP)[:, None], np.arange(4)[None]
        found = total[:, lane // 4 + 8 * (i // 2), :, 2 * (lane % 4) + i % 2]  # [32, 4, warps, n / 8]
        given = found.transpose(3, 1, 2, 0).reshape(len(self.registers), -1)
        for register, numbers in zip(self.registers, given, strict=True):
            register[self.lanes] += numbers.view(np.uint32)


class Products:
    """Products under way: for each warp those since it closed a group, and its closed groups."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.start()

    def start(self) -> None:
        count = self.machine.blocks * self.machine.warps
        self.fenced = np.zeros(count, bool)
        self.open: list[list[Product]] = [[] for _ in range(count)]
        self.closed: list[list[list[Product]]] = [[] for _ in range(count)]

    def warps(self, mask: Array | None) -> Array:
        return self.machine.warp_of[selection(mask)][::WARP]


def wgmma(machine: Machine, instruction: Instruction) -> Done:
    products = machine.part(Products)
    word, *modes = instruction.name[1:]
    if modes[:2] != ["sync", "aligned"]:
        raise PtxError(f"{instruction} is not known")
    if word == "fence":

        def fence_them(mask: Array | None) -> None:
            products.fenced[products.warps(mask)] = True

        return None, machine.together(fence_them)
    if word == "commit_group":

        def commit(mask: Array | None) -> None:
            for warp in products.warps(mask):
                products.closed[warp].append(products.open[warp])
                products.open[warp] = []

        return None, machine.together(commit)
    if word == "wait_group":
        groups = int(machine.source(instruction.operands[0], I4))

        def wait(mask: Array | None) -> None:
            for warp in products.warps(mask):
                while len(products.closed[warp]) > groups:
                    for product in products.closed[warp].pop(0):
                        product.do()
                products.fenced[warp] = False  # its accumulators may change now

        return None, machine.together(wait)
    if word == "mma_async":
        return None, machine.together(_multiply(machine, instruction, products))
    raise PtxError(f"{instruction} is not known")


def _multiply(machine: Machine, instruction: Instruction, products: Products) -> Any:
    acc, *described, add = instruction.operands
    shape = re.fullmatch(r"m64n(\d+)k32", instruction.name[4])
    if shape is None or instruction.name[5:] != ("s32", "u8", "s8") or not isinstance(acc, tuple) or 2 * len(acc) != int(shape[1]):
        raise PtxError(f"{instruction} is not known")
    registers = [machine.register(register, U4) for register in acc]
    a, b = (machine.numbers(one, U8) for one in described)
    adds = machine.numbers(add, np.dtype(bool))

    def act(mask: Array | None) -> None:
        lanes = machine.threads_of(mask)
        if not np.all(adds[lanes]):
            raise PtxError(f"{instruction} does not add")
        if not products.fenced[machine.warp_of[lanes]].all():
            raise RuntimeError("accumulators are not fenced")
        group = machine.block_of[lanes] * machine.warps + machine.thread_of[lanes] // (GROUP * WARP)
        for one in np.unique(group):
            some = lanes[group == one]
            if np.ptp(a[some]) or np.ptp(b[some]):
                raise RuntimeError("threads of a warpgroup multiply different matrices")
            product = Product(machine, some, int(machine.block_of[some[0]]), (int(a[some[0]]), int(b[some[0]])), registers)
            for warp in machine.warp_of[some[::WARP]]:
                products.open[warp].append(product)
            if machine.schedule.copies == "eager":
                product.do()

    return act


HOPPER: dict[str, Any] = {
    "mbarrier": mbarrier,
    "fence": fence,
    f"cp.async.{'.'.join(BOX)}": copy_box,
    "wgmma": wgmma,
}
