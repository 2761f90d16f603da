"""Executes PTX on the CPU: the threads of many blocks at once, a NumPy array for each register.

Threads that stand at the same instruction do it together; of those that do not, the ones that are furthest behind go first, as far as a
schedule lets their warps move at all. An instruction that the threads of a warp do together waits for all 32. Memory is checked as the
emulator of the source checks it (`emulator.py`), which this machine shares the memory and the schedules of: what asynchronous copies and
products have not brought yet reads as POISON.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from device.emulator import POISON, SHARED_BASE, WARP, Memory, Schedule
from device.ptx import KINDS, Address, Code, Instruction, Number, Operand, PtxError, Register, Special, Symbol
from device.ptx_numbers import number_function

Array = np.ndarray
_T = TypeVar("_T")
# What is done to the threads of a mask (None: all); and what may send them elsewhere or let them wait, which sets their place itself.
Act = Callable[[Array | None], None]
Turn = Callable[[Array], None]
RUNNING, AT_BARRIER, AT_WARP, AT_PHASE = 0, 1, 2, 3
# Threads that are executed at once: fewer, and an instruction costs more than its numbers; more, and registers leave the cache.
TOGETHER = 8192


class Machine:
    """A launch. `words`: instructions that are not on numbers, by name: (machine, instruction) → what it does."""

    def __init__(
        self, code: Code, grid: tuple[int, int], shared: int, record: bytes, memory: Memory, schedule: Schedule, words: dict[str, Any]
    ) -> None:
        self.code, self.grid, self.memory, self.schedule, self.words = code, grid, memory, schedule, words
        self.threads, self.record = code.threads, record
        self.blocks = min(grid[0] * grid[1], max(1, TOGETHER // code.threads))
        self.lanes = self.blocks * code.threads
        self.block_of = np.repeat(np.arange(self.blocks), code.threads)
        self.thread_of = np.tile(np.arange(code.threads), self.blocks)
        self.warps = -(-code.threads // WARP)
        self.warp_of = self.block_of * self.warps + self.thread_of // WARP
        self.shared = np.empty((self.blocks, shared), np.uint8)
        self.places, self.state, self.barrier = (np.zeros(self.lanes, np.int64) for _ in range(3))
        self.needed: dict[int, int] = {}  # of each barrier of the block, how many threads meet there
        self._parts: dict[Any, Any] = {}  # what belongs to some instructions: copies under way, barriers in shared memory
        self.random = random.Random(schedule.seed)
        self.under_way: list[Callable[[], None]] = []  # what arrives by itself: at the latest when all threads wait
        self._registers = self._made_registers()
        self._specials = {
            "%tid.x": self.thread_of.astype("u4"),
            "%ntid.x": np.uint32(code.threads),
            "%nctaid.x": np.uint32(grid[0]),
            "%nctaid.y": np.uint32(grid[1]),
            "%ctaid.x": np.zeros(self.lanes, "u4"),
            "%ctaid.y": np.zeros(self.lanes, "u4"),
        }
        self._parameters = self._laid_out()
        self._targets = set(code.labels.values())
        self._acts: list[Act | None] = []
        self._turns: list[Turn | None] = []
        for instruction in code.instructions:
            act, turn = self._compiled(instruction)
            self._acts.append(act)
            self._turns.append(turn)

    def _made_registers(self) -> dict[str, Array]:
        """Those of a kind lie in one array; they hold anything at first."""
        made: dict[str, Array] = {}
        for kind in set(self.code.registers.values()):
            names = [name for name, of in self.code.registers.items() if of == kind]
            room = np.full(len(names) * self.lanes * kind.itemsize, POISON if kind.kind != "b" else 1, np.uint8).view(kind)
            made |= zip(names, room.reshape(len(names), self.lanes), strict=True)
        return made

    def _laid_out(self) -> dict[str, tuple[int, np.dtype]]:
        """Where each parameter lies in the buffer of a launch: aligned to its own size."""
        at, found = 0, {}
        for name, kind in self.code.parameters.items():
            at = -(-at // kind.itemsize) * kind.itemsize
            found[name] = at, kind
            at += kind.itemsize
        if at != len(self.record):
            raise PtxError(f"{at} bytes of parameters, and {len(self.record)} are given")
        return found

    def parameter(self, name: str) -> tuple[int, np.dtype]:
        """Where it lies in the record, and of what kind it is."""
        return self._parameters[name]

    def part(self, kind: Callable[[Machine], _T]) -> _T:
        """The one of a kind that this launch has; `start` is called for the blocks that run next."""
        if kind not in self._parts:
            self._parts[kind] = kind(self)
        found: _T = self._parts[kind]
        return found

    # -- operands -----------------------------------------------------------------------------------------------------------
    def source(self, operand: Operand, kind: np.dtype) -> Array:
        """The numbers of an operand, one or for each thread, as `kind`: of a wider register, its low bits."""
        if isinstance(operand, Register):
            register = self._registers[operand.name]
            if register.dtype.itemsize < kind.itemsize or (register.dtype.kind == "b") != (kind.kind == "b"):
                raise PtxError(f"{operand.name} is of {register.dtype}, and read as {kind}")
            return register.view(kind)[:: register.dtype.itemsize // kind.itemsize]
        if isinstance(operand, Special):
            return self._specials[operand.name].view(kind)
        if isinstance(operand, Symbol) and operand.name == "qrt_shared":
            return np.array(SHARED_BASE, kind)
        if not isinstance(operand, Number):
            raise PtxError(f"{operand} is no number")
        if operand.float_bits:
            return np.array(operand.value, f"u{operand.float_bits // 8}").view(f"f{operand.float_bits // 8}").view(kind)
        if kind.kind == "b":
            return np.array(bool(operand.value))
        return np.array(operand.value & ((1 << 8 * kind.itemsize) - 1), f"u{kind.itemsize}").view(kind)

    def numbers(self, operand: Operand, kind: np.dtype) -> Array:
        """The same, one for each thread."""
        return np.broadcast_to(self.source(operand, kind), (self.lanes,))

    def register(self, operand: Operand, kind: np.dtype) -> Array:
        """Where numbers of `kind` are put: a register, in which narrower ones, if they are signed, bring their sign."""
        if not isinstance(operand, Register):
            raise PtxError(f"{operand} is no register")
        found = self._registers[operand.name]
        if found.dtype.itemsize < kind.itemsize or (found.dtype.kind == "b") != (kind.kind == "b"):
            raise PtxError(f"{operand.name} is of {found.dtype}, and gets {kind}")
        return found.view(kind if kind.itemsize == found.dtype.itemsize else np.dtype(f"{kind.kind}{found.dtype.itemsize}"))

    def addresses(self, operand: Operand) -> Callable[[Array | slice], Array]:
        """Of an operand in brackets, the addresses of the threads that a mask holds: int64."""
        if not isinstance(operand, Address):
            raise PtxError(f"{operand} is no address")
        kind = "u8" if isinstance(operand.base, Register) and self._registers[operand.base.name].dtype.itemsize == 8 else "u4"
        base = self.numbers(operand.base, np.dtype(kind))
        return lambda which: base[which].astype(np.int64) + operand.offset

    def threads_of(self, mask: Array | None) -> Array:
        """Numbers of the threads that a mask holds."""
        return np.arange(self.lanes) if mask is None else np.flatnonzero(mask)

    # -- memory -------------------------------------------------------------------------------------------------------------
    def read_global(self, addresses: Array, count: int, _: Array | slice = slice(None)) -> Array:
        """Pieces of `count` bytes at these addresses: uint8 [addresses, count]."""
        found = np.empty((len(addresses), count), np.uint8)
        for some, room, index in self._arrays(addresses, count):
            found[some] = room[index]
        return found

    def write_global(self, addresses: Array, pieces: Array, _: Array | slice = slice(None)) -> None:
        for some, room, index in self._arrays(addresses, pieces.shape[1]):
            room[index] = pieces[some]

    def _arrays(self, addresses: Array, count: int) -> Iterator[tuple[Array | slice, Array, Array]]:
        """The arrays that the addresses lie in: which of them, its pieces, and the numbers of those."""
        left: Array | slice = slice(None)
        while (there := addresses[left]).size:
            start, room = self.memory.around(int(there.min()))
            inside = there < start + room.size
            if (there[inside] + count > start + room.size).any() or not inside.any() or (there % count).any():
                raise IndexError(f"{count} bytes at {there.min():#x}, where an array of {room.size} bytes is at {start:#x}")
            whole = bool(inside.all())
            some = left if whole else np.arange(len(addresses))[left][inside]
            yield some, room[: room.size // count * count].reshape(-1, count), (there[inside] - start) // count
            if whole:
                return
            left = np.arange(len(addresses))[left][~inside]

    def read_shared(self, addresses: Array, count: int, which: Array | slice) -> Array:
        """The same of the shared memory of the block of each thread."""
        return self.shared.reshape(-1, count)[self.shared_index(addresses, count, which)]

    def write_shared(self, addresses: Array, pieces: Array, which: Array | slice) -> None:
        self.shared.reshape(-1, pieces.shape[1])[self.shared_index(addresses, pieces.shape[1], which)] = pieces

    def shared_index(self, addresses: Array, count: int, which: Array | slice) -> Array:
        """Numbers of pieces of `count` bytes in the shared memory of all blocks."""
        size, offsets = self.shared.shape[1], addresses - SHARED_BASE
        if (offsets % count).any() or offsets.min() < 0 or offsets.max() + count > size or size % count:
            raise IndexError(f"{count} bytes at {offsets.min()} to {offsets.max()} of {size} of shared memory")
        index: Array = (self.block_of[which] * size + offsets) // count
        return index

    # -- instructions ---------------------------------------------------------------------------------------------------------
    def _compiled(self, instruction: Instruction) -> tuple[Act | None, Turn | None]:
        word = instruction.name[0]
        if word in ("bra", "ret", "exit"):
            return None, self._jump(instruction)
        known = self.words.get(".".join(instruction.name)) or self.words.get(word)
        if known is not None:
            act, turn = known(self, instruction)
            return (self._guarded(instruction, act) if act else None), turn
        function, kind, kinds = number_function(instruction.name)
        to, *operands = instruction.operands
        sources = [self.source(operand, of or kind) for operand, of in zip(operands, kinds, strict=False)]
        found = self.register(to, kind)

        def compute(mask: Array | None) -> None:
            np.copyto(found, function(*sources), where=True if mask is None else mask)

        return self._guarded(instruction, compute), None

    def _guarded(self, instruction: Instruction, act: Act) -> Act:
        if not instruction.guard:
            return act
        guard, negated = self._registers[instruction.guard], instruction.negated

        def guarded(mask: Array | None) -> None:
            where = guard ^ negated if mask is None else mask & (guard ^ negated)
            if where.any():
                act(where)

        return guarded

    def _jump(self, instruction: Instruction) -> Turn:
        end = len(self.code.instructions)
        target = instruction.operands[0] if instruction.operands else None
        to = self.code.labels[target.name] if isinstance(target, Symbol) else end
        if not instruction.guard:

            def always(mask: Array) -> None:
                self.places[mask] = to

            return always
        guard, negated = self._registers[instruction.guard], instruction.negated

        def maybe(mask: Array) -> None:
            self.places[mask] += 1
            self.places[mask & (guard ^ negated)] = to

        return maybe

    # -- threads that wait for each other ---------------------------------------------------------------------------------------
    def meet(self, mask: Array, number: int, count: int) -> None:
        """Threads wait at a barrier of their block until `count` of them are there; then they go on after the instruction."""
        self.places[mask] += 1
        self.state[mask], self.barrier[mask] = AT_BARRIER, number
        if self.needed.setdefault(number, count) != count:
            raise RuntimeError(f"barrier {number} is for {self.needed[number]} threads and for {count}")
        there = (self.state == AT_BARRIER) & (self.barrier == number)
        met = np.bincount(self.block_of[there], minlength=self.blocks)
        if met.max() > count:
            raise RuntimeError(f"{met.max()} threads meet at barrier {number}, which is for {count}")
        self.state[there & (met == count)[self.block_of]] = RUNNING

    def whole_warps(self, mask: Array, place: int) -> Array:
        """Of the threads that came to the instruction at `place`, with those that wait there, whole warps; the others wait for theirs."""
        mask = mask | ((self.state == AT_WARP) & (self.places == place))
        whole = np.bincount(self.warp_of[mask], minlength=self.blocks * self.warps) == WARP
        together = mask & whole[self.warp_of]
        self.state[mask] = np.where(together[mask], RUNNING, AT_WARP)
        return together

    def together(self, act: Act) -> Turn:
        """What the threads of a warp do together."""

        def turn(mask: Array) -> None:
            whole = self.whole_warps(mask, int(self.places[np.argmax(mask)]))
            if whole.any():
                act(None if whole.all() else whole)
                self.places[whole] += 1

        return turn

    # -- running ----------------------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Runs all blocks of the grid."""
        order = np.stack([place.reshape(-1) for place in np.meshgrid(*(np.arange(n) for n in self.grid), indexing="ij")], 1)
        if self.schedule.order.endswith("reverse"):
            order = order[::-1]
        with np.errstate(all="ignore"):
            for first in range(0, len(order), self.blocks):
                self._run(order[first : first + self.blocks])

    def _run(self, order: Array) -> None:
        """Blocks that run at once."""
        end = len(self.code.instructions)
        self.shared[:] = POISON
        self.places[:], self.state[:] = np.where(self.block_of < len(order), 0, end), RUNNING
        for axis, name in enumerate(("%ctaid.x", "%ctaid.y")):
            self._specials[name][: len(order) * self.threads] = np.repeat(order[:, axis], self.threads)
        for part in self._parts.values():
            part.start()
        while True:
            ready = (self.state == RUNNING) & (self.places < end)
            if not ready.any():
                if (self.places >= end).all():
                    break
                if not self.under_way:
                    waiting = np.unique(self.places[self.places < end])
                    raise RuntimeError(f"threads wait for ever at {[self.code.instructions[i] for i in waiting]}")
                self.under_way.pop(self.random.randrange(len(self.under_way)) if self.schedule.order == "random" else 0)()
                continue
            chosen = self._chosen(ready)
            place = int(self.places[chosen].min())
            self._go(place, chosen & (self.places == place))
        while self.under_way:
            self.under_way.pop(0)()

    def _chosen(self, ready: Array) -> Array:
        """Those of the threads whose turn it is by the schedule."""
        order = self.schedule.order
        if order in ("forward", "reverse"):
            return ready
        warps = np.unique(self.warp_of[ready])
        if order == "greedy":
            return ready & (self.warp_of == warps[0])
        if order == "greedy_reverse":
            return ready & (self.warp_of == warps[-1])
        return ready & np.isin(self.warp_of, self.random.sample(warps.tolist(), -(-len(warps) // 2)))

    def _go(self, place: int, mask: Array) -> None:
        """Lets threads go on from `place` as long as they stay together and nobody may join them."""
        everybody = bool(mask.all())
        which = None if everybody else mask
        while True:
            if act := self._acts[place]:
                act(which)
                place += 1
                if everybody or place not in self._targets:
                    continue
                self.places[mask] = place
                return
            self.places[mask] = place
            turn = self._turns[place]
            if turn is None:
                raise PtxError(f"nothing at {place}")
            turn(mask)
            place = int(self.places[0])
            if not everybody or place == len(self.code.instructions) or self.state.any() or (self.places != place).any():
                return


def selection(mask: Array | None) -> Array | slice:
    """Indices of the threads that a mask holds."""
    return slice(None) if mask is None else np.flatnonzero(mask)


def kinds_of(name: Sequence[str]) -> tuple[np.dtype, int]:
    """Of a load or a store: the kind of its numbers, and how many it moves."""
    return KINDS[name[-1]], next((int(part[1:]) for part in name if part in ("v2", "v4")), 1)
