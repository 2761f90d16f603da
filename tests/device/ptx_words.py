"""What PTX's instructions do that are not on numbers: memory, copies, barriers, what a warp does together. For `machine.py`.

After NVIDIA's "Parallel Thread Execution ISA", section 9.7.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from device.emulator import POISON, WARP
from device.machine import Act, Array, Machine, Turn, kinds_of, selection
from device.ptx import Address, Instruction, Number, Operand, PtxError, Symbol

from qrt.jit.lang.cuda_twins import WARP_TWINS

Done = tuple[Act | None, Turn | None]
U4, I4 = np.dtype("u4"), np.dtype("i4")


# -- loads and stores -----------------------------------------------------------------------------------------------------------
def _space(instruction: Instruction) -> str:
    found = [name for name in ("shared", "global", "param") if name in instruction.name]
    if len(found) != 1:
        raise PtxError(f"{instruction} is of no known space")
    return found[0]


def load(machine: Machine, instruction: Instruction) -> Done:
    kind, count = kinds_of(instruction.name)
    to, at = instruction.operands
    if _space(instruction) == "param":
        if not isinstance(at, Address) or not isinstance(at.base, Symbol):
            raise PtxError(f"{instruction} reads no parameter")
        offset, declared = machine.parameter(at.base.name)
        if declared.itemsize != kind.itemsize:
            raise PtxError(f"{at.base.name} is of {declared}, and read as {kind}")
        value = np.frombuffer(machine.record, kind, 1, offset + at.offset)[0]
        register = machine.register(to, kind)
        return (lambda mask: register.__setitem__(selection(mask), value)), None
    read, addresses = getattr(machine, f"read_{_space(instruction)}"), machine.addresses(at)
    registers = [machine.register(one, kind) for one in (to if isinstance(to, tuple) else (to,))]

    def act(mask: Array | None) -> None:
        which = selection(mask)
        numbers = read(addresses(which), kind.itemsize * count, which).view(kind)
        for i, register in enumerate(registers):
            register[which] = numbers[:, i]

    return act, None


def store(machine: Machine, instruction: Instruction) -> Done:
    kind, _ = kinds_of(instruction.name)
    at, what = instruction.operands
    write, addresses = getattr(machine, f"write_{_space(instruction)}"), machine.addresses(at)
    numbers = [machine.numbers(one, kind) for one in (what if isinstance(what, tuple) else (what,))]

    def act(mask: Array | None) -> None:
        which = selection(mask)
        write(addresses(which), np.stack([number[which] for number in numbers], 1).view(np.uint8), which)

    return act, None


# -- copies that go on while a block computes -------------------------------------------------------------------------------------
class Copies:
    """cp.async: each copy belongs to a group of its thread, and is done when that is waited for; eagerly, at once."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.eager = machine, machine.schedule.copies == "eager"
        self.start()

    def start(self) -> None:
        self.groups = np.zeros(self.machine.lanes, np.int64)  # how many each thread has closed
        self.open: list[tuple[Array, Array, Array, Array, Array]] = []

    def copy(self, lanes: Array, to: Array, addresses: Array, counts: Array) -> None:
        machine = self.machine
        if (addresses % 16).any() or (counts > 16).any():
            raise IndexError("an asynchronous copy that is misaligned or longer than 16 bytes")
        index = machine.shared_index(to, 16, lanes)
        if not self.eager:
            machine.shared.reshape(-1, 16)[index] = POISON
            self.open.append((lanes, index, addresses, counts, self.groups[lanes].copy()))
        else:
            self._bring(index, addresses, counts)

    def _bring(self, index: Array, addresses: Array, counts: Array) -> None:
        room = self.machine.shared.reshape(-1, 16)
        room[index] = 0
        for count in np.unique(counts[counts > 0]):
            some = counts == count
            bytes_of = (addresses[some][:, None] + np.arange(count)).reshape(-1)
            room[index[some], :count] = self.machine.read_global(bytes_of, 1).reshape(-1, count)

    def wait(self, which: Array, groups: int) -> None:
        done = np.zeros(self.machine.lanes, np.int64)
        done[which] = self.groups[which] - groups
        left = []
        for lanes, index, addresses, counts, group in self.open:
            now = group < done[lanes]
            if now.any():
                self._bring(index[now], addresses[now], counts[now])
            if not now.all():
                left.append((lanes[~now], index[~now], addresses[~now], counts[~now], group[~now]))
        self.open = left


def copy_async(machine: Machine, instruction: Instruction) -> Done:
    copies = machine.part(Copies)
    match instruction.name[2:]:
        case ("cg", "shared", "global"):
            to, at, whole, count = instruction.operands
            if whole != Number(16):
                raise PtxError(f"{instruction} copies other than 16 bytes")
            targets, sources = machine.addresses(to), machine.addresses(at)
            counts = machine.numbers(count, U4)

            def copy(mask: Array | None) -> None:
                lanes = machine.threads_of(mask)
                copies.copy(lanes, targets(lanes), sources(lanes), counts[lanes].astype(np.int64))

            return copy, None
        case ("commit_group",):

            def commit(mask: Array | None) -> None:
                copies.groups[selection(mask)] += 1

            return commit, None
        case ("wait_group",):
            (groups,) = instruction.operands
            number = int(machine.source(groups, I4))
            return (lambda mask: copies.wait(machine.threads_of(mask), number)), None
    raise PtxError(f"{instruction} is not known")


# -- what the threads of a warp or of a block do together ---------------------------------------------------------------------------
def of_warps(numbers: Array) -> Array:
    """[threads, …] of whole warps as [warps, 32, …]."""
    return numbers.reshape(-1, WARP, *numbers.shape[1:])


def shuffle(machine: Machine, instruction: Instruction) -> Done:
    if instruction.name != ("shfl", "sync", "bfly", "b32"):
        raise PtxError(f"{instruction} is not known")
    to, *found, value, distance, clamp, members = instruction.operands
    whole = ((machine.numbers(members, I4), -1), (machine.numbers(clamp, I4), WARP - 1))
    register, inside = machine.register(to, U4), [machine.register(one, np.dtype(bool)) for one in found]
    given, by = machine.numbers(value, U4), machine.numbers(distance, U4)

    def act(mask: Array | None) -> None:
        which = selection(mask)
        if any((said[which] != wanted).any() for said, wanted in whole):
            raise PtxError(f"{instruction} is of a part of a warp")
        lane = np.arange(WARP) ^ of_warps(by[which]).astype(np.int64)
        register[which] = np.take_along_axis(of_warps(given[which]), lane, 1).reshape(-1)
        for one in inside:
            one[which] = True

    return None, machine.together(act)


def _vector(machine: Machine, operand: Operand) -> list[Array]:
    """The registers of a vector, as int32."""
    if not isinstance(operand, tuple):
        raise PtxError(f"{operand} is no vector")
    return [machine.register(one, I4) for one in operand]


def products(machine: Machine, instruction: Instruction) -> Done:
    if instruction.name[1:] != ("sync", "aligned", "m16n8k32", "row", "col", "s32", "u8", "s8", "s32"):
        raise PtxError(f"{instruction} is not known")
    to, *factors = (_vector(machine, operand) for operand in instruction.operands)

    def act(mask: Array | None) -> None:
        which = selection(mask)
        brought = (of_warps(np.stack([register[which] for register in factor], 1)) for factor in factors)
        for register, numbers in zip(to, WARP_TWINS["mma"](*brought).reshape(-1, len(to)).T, strict=True):
            register[which] = numbers

    return None, machine.together(act)


def load_matrix(machine: Machine, instruction: Instruction) -> Done:
    if instruction.name[1:] != ("sync", "aligned", "m8n8", "x4", "shared", "b16"):
        raise PtxError(f"{instruction} is not known")
    to, addresses = _vector(machine, instruction.operands[0]), machine.addresses(instruction.operands[1])

    def act(mask: Array | None) -> None:
        which = selection(mask)
        rows = of_warps(machine.read_shared(addresses(which), 16, which))
        for register, numbers in zip(to, WARP_TWINS["load_matrix"](rows).reshape(-1, len(to)).T, strict=True):
            register[which] = numbers

    return None, machine.together(act)


def barrier(machine: Machine, instruction: Instruction) -> Done:
    """bar.sync and barrier.cta.sync.aligned: of the whole block, or of so many threads."""
    number, *count = instruction.operands
    if count and instruction.name != ("barrier", "cta", "sync", "aligned"):
        raise PtxError(f"{instruction} is not known")
    which, needed = machine.numbers(number, I4), machine.numbers(count[0] if count else Number(machine.threads), I4)

    def turn(mask: Array) -> None:
        whole = machine.whole_warps(mask, int(machine.places[np.argmax(mask)]))
        for one in np.unique(which[whole]):
            some = whole & (which == one)
            machine.meet(some, int(one), int(needed[np.argmax(some)]))

    return None, turn


WORDS: dict[str, Any] = {
    "ld": load,
    "st": store,
    "cp": copy_async,
    "shfl": shuffle,
    "mma": products,
    "ldmatrix": load_matrix,
    "bar": barrier,
    "barrier": barrier,
}
