"""Runs the source of device kernels on the CPU: blocks of threads as greenlets, instructions by their NumPy twins.

Nothing of CUDA is needed. A kernel's module is executed with the words of `qrt.jit.lang.cuda` replaced by those below; its threads are
switched only where they wait for each other, in the order of a schedule. Memory is checked: an address that belongs to no array, a
misaligned one, and shared memory that was never written (which reads as `POISON`) do not pass.
"""

from __future__ import annotations

import ast
import bisect
import importlib.util
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

try:
    from greenlet import getcurrent, greenlet
except ImportError:
    import pytest

    pytest.skip("needs greenlet, in which the emulator runs threads: pip install 'qrt[test]'", allow_module_level=True)

from qrt.jit.lang.cuda_twins import TWINS, WARP_TWINS

POISON = 0xA5
WARP = 32
SHARED_BASE = 1024  # where shared memory starts: not at 0, so that who forgets it is found


@dataclass(frozen=True)
class Schedule:
    """`order`: of warps: "forward" and "reverse" move all on together, "greedy" and "greedy_reverse" one as far as it goes before the next,
    "random" mixes. `copies`: asynchronous copies are done when they are asked for ("eager") or when they are waited for ("lazy")."""

    order: str
    copies: str
    seed: int = 0


SCHEDULES = tuple(
    Schedule(order, copies) for order in ("forward", "reverse", "greedy", "greedy_reverse", "random") for copies in ("lazy", "eager")
)


class Memory:
    """Global memory: arrays at addresses that are far from each other."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._bytes: list[np.ndarray] = []

    def place(self, array: np.ndarray) -> int:
        """The address of `array`, whose bytes kernels read and write."""
        start = (self._starts[-1] + self._bytes[-1].size if self._starts else 0) + (1 << 33) & -256
        self._starts.append(start)
        self._bytes.append(array.reshape(-1).view(np.uint8))
        return start

    def drop(self, address: int) -> None:
        """What was placed there is memory no more."""
        self._bytes[self._starts.index(address)] = np.empty(0, np.uint8)

    def around(self, address: int) -> tuple[int, np.ndarray]:
        """Where the array starts that an address lies in or after, and its bytes."""
        index = bisect.bisect_right(self._starts, address) - 1
        return (self._starts[index], self._bytes[index]) if index >= 0 else (0, np.empty(0, np.uint8))

    def at(self, address: int, count: int, align: int) -> np.ndarray:
        """`count` bytes."""
        start, room = self.around(address)
        offset = address - start
        if address % align or offset + count > room.size:
            raise IndexError(f"{count} bytes at {address:#x}, {offset} into an array of {room.size}")
        return room[offset : offset + count]


class Thread(greenlet):  # type: ignore[misc]
    """One thread of a block."""

    def __init__(self, run: Callable[[], None], number: int, block: Block) -> None:
        super().__init__(run, block.hub)
        self.number, self.block = number, block
        self.blocked = False
        self.copies: list[Callable[[], None]] = []
        self.groups: list[list[Callable[[], None]]] = []


@dataclass
class Meeting:
    """Threads that wait for each other: what each brought, and what each gets."""

    brought: dict[int, Any] = field(default_factory=dict)
    given: Any = None


class Block:
    """The threads of a block, its shared memory, and who waits for whom."""

    def __init__(self, shared: int, memory: Memory, index: tuple[int, int], schedule: Schedule) -> None:
        self.shared = np.full(shared, POISON, np.uint8)
        self.memory, self.index, self.schedule = memory, index, schedule
        self.random = random.Random(schedule.seed + 1000 * index[0] + index[1])
        self.hub = getcurrent()
        self.grid = (1, 1)
        self.threads: list[Thread] = []
        self.meetings: dict[Any, Meeting] = {}
        self.under_way: list[Callable[[], None]] = []  # what arrives by itself: at the latest when all threads wait

    def meet(self, place: Any, count: int, value: Any = None, combine: Callable[[dict[int, Any]], Any] | None = None) -> Any:
        """Waits until `count` threads are at `place`; gives what `combine` makes of their values."""
        thread = getcurrent()
        meeting = self.meetings.setdefault(place, Meeting())
        if thread.number in meeting.brought:
            raise RuntimeError(f"thread {thread.number} is at {place} twice")
        meeting.brought[thread.number] = value
        if len(meeting.brought) == count:
            del self.meetings[place]
            meeting.given = combine(meeting.brought) if combine else None
            for number in meeting.brought:
                self.threads[number].blocked = False
        else:
            thread.blocked = True
            self.hub.switch()
        return meeting.given

    def run(self) -> None:
        """Runs all threads to their end."""
        order = self.schedule.order
        warps = [self.threads[i : i + WARP] for i in range(0, len(self.threads), WARP)]
        while warps:
            chosen = warps[::-1] if order.endswith("reverse") else self.random.sample(warps, len(warps)) if order == "random" else warps
            if not sum(self._advance(warp) for warp in chosen):
                if self.under_way:
                    self.under_way.pop(self.random.randrange(len(self.under_way)) if order == "random" else 0)()
                    continue
                raise RuntimeError(f"threads wait for ever at {[(k, len(m.brought)) for k, m in self.meetings.items()]}")
            warps = [warp for warp in warps if not all(thread.dead for thread in warp)]

    def _advance(self, warp: list[Thread]) -> bool:
        moved = False
        while ready := [thread for thread in warp if not thread.dead and not thread.blocked]:
            moved = True
            for thread in self.random.sample(ready, len(ready)) if self.schedule.order == "random" else ready:
                thread.switch()
            order = self.schedule.order
            if not (order.startswith("greedy") or (order == "random" and self.random.random() < 0.7)):
                break
        return moved


# -- the words of qrt.jit.lang.cuda --------------------------------------------------------------------------------------------
def _integer(bits: int) -> Callable[[Any], int]:
    half = 1 << (bits - 1)
    return lambda value: ((int(value) + half) & ((1 << bits) - 1)) - half


_int32, _int64 = _integer(32), _integer(64)


def _typed(name: str) -> Any:
    """A type of Numba's: a conversion, and the dtype of local arrays."""
    return SimpleNamespace(int32=_int32, int64=_int64, float32=np.float32).__dict__[name]


def _local_array(shape: Any, kind: Any) -> np.ndarray:
    dtype = {_int32: np.int32, _int64: np.int64, np.float32: np.float32}[kind]
    return np.full(np.prod(shape) * 8, POISON, np.uint8).view(dtype)[: np.prod(shape)].reshape(shape)


def _load(dtype: Any) -> Callable[[int], Any]:
    size, convert = np.dtype(dtype).itemsize, np.float32 if dtype is np.float32 else int

    def load(address: int) -> Any:
        return convert(getcurrent().block.memory.at(address, size, size).view(dtype)[0])

    return load


def _store(dtype: Any) -> Callable[[int, Any], None]:
    size = np.dtype(dtype).itemsize

    def store(address: int, value: Any) -> None:
        number = np.float32(value) if dtype is np.float32 else np.array(int(value) & ((1 << 8 * size) - 1), f"u{size}")
        getcurrent().block.memory.at(address, size, size)[:] = np.frombuffer(number.tobytes(), np.uint8)

    return store


def _shared(address: int, count: int) -> np.ndarray:
    """`count` bytes of the block's shared memory."""
    block, at = getcurrent().block, address - SHARED_BASE
    if at % count or at < 0 or at + count > block.shared.size:
        raise IndexError(f"{count} bytes at {at} of {block.shared.size} of shared memory")
    return block.shared[at : at + count]


def _four(words: np.ndarray) -> tuple[int, ...]:
    return tuple(words.view(np.int32).tolist())


def _store_words(address: int, words: Sequence[int]) -> None:
    getcurrent().block.memory.at(address, 4 * len(words), 4 * len(words))[:] = np.array(words, np.int32).view(np.uint8)


def _store_shared_u16(address: int, value: int) -> None:
    _shared(address, 2)[:] = (value & 255, value >> 8 & 255)


def _copy_async(to: int, address: int, count: int) -> None:
    thread, place = getcurrent(), _shared(to, 16)
    if address % 16 or not 0 <= count <= 16:
        raise IndexError(f"an asynchronous copy of {count} bytes from {address:#x}")
    source = thread.block.memory.at(address, count, 16) if count else np.empty(0, np.uint8)

    def copy() -> None:
        place[:count], place[count:] = source, 0

    if thread.block.schedule.copies == "eager":
        copy()
    else:
        place[:] = POISON
        thread.copies.append(copy)


def _copies_commit() -> None:
    thread = getcurrent()
    thread.groups.append(thread.copies)
    thread.copies = []


def _copies_wait(groups: int) -> Callable[[], None]:
    def wait() -> None:
        thread = getcurrent()
        while len(thread.groups) > groups:
            for copy in thread.groups.pop(0):
                copy()

    return wait


def _together(name: str, value: Any, combine: Callable[[list[Any]], np.ndarray]) -> tuple[int, ...]:
    """What this thread gets of an instruction of the whole warp."""
    thread = getcurrent()
    warp = thread.number // WARP

    def ordered(brought: dict[int, Any]) -> list[list[int]]:
        rows: list[list[int]] = combine([brought[WARP * warp + lane] for lane in range(WARP)]).tolist()
        return rows

    return tuple(thread.block.meet((name, warp), WARP, value, ordered)[thread.number % WARP])


def _load_matrix(address: int) -> tuple[int, ...]:
    return _together("load_matrix", address, lambda at: WARP_TWINS["load_matrix"](np.stack([_shared(a, 16) for a in at])))


def _mma(a: Sequence[int], b: Sequence[int], c: Sequence[int]) -> tuple[int, ...]:
    def combine(values: list[Any]) -> np.ndarray:
        return WARP_TWINS["mma"](*(np.array([value[i] for value in values], np.int32) for i in range(3)))

    return _together("mma", (a, b, c), combine)


def _shuffle_xor(value: Any, distance: int) -> Any:
    thread = getcurrent()
    return thread.block.meet(("shuffle", thread.number // WARP), WARP, value, dict)[thread.number ^ distance]


def _store_shared(dtype: Any) -> Callable[[int, Any], None]:
    def store(address: int, value: Any) -> None:
        _shared(address, 4)[:] = np.array([value], dtype).view(np.uint8)

    return store


def _scalar(name: str) -> Callable[..., Any]:
    """A twin on one thread's numbers."""
    twin, whole = TWINS[name], name in ("permute", "nearest", "as_bits", "as_bits64", "quotient", "remainder")
    number: Callable[[Any], Any] = int if whole else np.float64 if name == "as_float64" else np.float32
    if name == "dp4a":
        return lambda *words: int(twin(*(np.array([w], np.int32) for w in words))[0])

    def run(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            return number(twin(*args))

    return run


class _Cuda:
    """numba.cuda, as far as kernels use it."""

    local = SimpleNamespace(array=_local_array)

    @property
    def threadIdx(self) -> Any:
        return SimpleNamespace(x=getcurrent().number)

    @property
    def blockIdx(self) -> Any:
        return SimpleNamespace(x=getcurrent().block.index[0], y=getcurrent().block.index[1])

    @property
    def blockDim(self) -> Any:
        return SimpleNamespace(x=len(getcurrent().block.threads))

    @property
    def gridDim(self) -> Any:
        return SimpleNamespace(x=getcurrent().block.grid[0], y=getcurrent().block.grid[1])

    def syncthreads(self) -> None:
        block = getcurrent().block
        block.meet("block", len(block.threads))


LOADS = (("u8", "u1"), ("i8", "i1"), ("u16", "u2"), ("i32", "i4"), ("i64", "i8"), ("f32", "f4"))
WORDS: dict[str, Any] = {
    "cuda": _Cuda(),
    "device": lambda function: function,
    "shared_base": lambda: SHARED_BASE,
    **{name: _typed(name) for name in ("int32", "int64", "float32")},
    **{name: _scalar(name) for name in TWINS},
    **{f"load_{name}": _load(np.dtype(kind).type) for name, kind in LOADS},
    **{f"store_{name}": _store(np.dtype(kind).type) for name, kind in LOADS},
    "load4": lambda address: _four(getcurrent().block.memory.at(address, 16, 16)),
    "store2": lambda address, *words: _store_words(address, words),
    "store4": _store_words,
    "load4_shared": lambda address: _four(_shared(address, 16)),
    "load_shared_f32": lambda address: np.float32(_shared(address, 4).view(np.float32)[0]),
    "store_shared_f32": _store_shared(np.float32),
    "store_shared_i32": _store_shared(np.int32),
    "shuffle_xor": _shuffle_xor,
    "load_shared_u8": lambda address: int(_shared(address, 1)[0]),
    "store_shared_u16": _store_shared_u16,
    "copy_async": _copy_async,
    "copies_commit": _copies_commit,
    "copies_wait": _copies_wait,
    "load_matrix": _load_matrix,
    "mma": _mma,
}


# -- running a kernel ------------------------------------------------------------------------------------------------------------
_LANG = "qrt.jit.lang.cuda"
_WORDS = (_LANG, "qrt.jit.lang.cuda_hopper")  # those that are instructions
_SOURCES = (_LANG, "qrt.ops.")


def _spoken(path: Path) -> list[Path]:
    """The file of a kernel, and before it those of words that are written in words, as far as it needs them."""
    modules = [node.module or "" for node in _imports(ast.parse(path.read_text(encoding="utf-8"))) if node.module not in _WORDS]
    needed = [file_of(name) for name in modules]
    return list(dict.fromkeys([*(file for path in needed for file in _spoken(path)), path]))


def _imports(tree: ast.Module) -> list[ast.ImportFrom]:
    """What a file takes from qrt.jit.lang.cuda, from the words beside it, and from other kernel sources."""
    return [node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_SOURCES)]


def file_of(module_name: str) -> Path:
    """The file of a module, which is not imported: that would need CUDA's packages."""
    spec = importlib.util.find_spec(module_name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(module_name)
    return Path(spec.origin)


def module(path: Path, mutation: tuple[str, str] | None = None) -> dict[str, Any]:
    """The names of a kernel's module, which speaks the emulator's words; with one piece of its source replaced, if asked for."""
    sources = {file: file.read_text(encoding="utf-8") for file in _spoken(path)}
    if mutation is not None:
        if (count := sum(source.count(mutation[0]) for source in sources.values())) != 1:
            raise ValueError(f"{mutation[0]!r} stands {count} times in {[file.name for file in sources]}")
        sources = {file: source.replace(*mutation) for file, source in sources.items()}
    words, names = dict(WORDS), {}
    for file, source in sources.items():
        tree = ast.parse(source)
        imports = _imports(tree)
        tree.body = [node for node in tree.body if node not in imports]
        names = {alias.name: words[alias.name] for node in imports for alias in node.names}
        exec(compile(tree, str(file), "exec"), names)
        words |= {name: names[name] for name in names.get("__all__", ())}
    return names


def launch(
    kernel: Callable[..., None], grid: tuple[int, int], threads: int, shared: int, memory: Memory, args: Sequence[Any], schedule: Schedule
) -> None:
    """Runs every block of the grid, one after the other, the last one first in reverse orders."""

    def quietly() -> None:
        with np.errstate(all="ignore"):  # of each thread: greenlets do not inherit it
            kernel(*args)

    for place in sorted(np.ndindex(*grid), reverse=schedule.order.endswith("reverse")):
        block = Block(shared, memory, place, schedule)
        block.grid, block.threads = grid, [Thread(quietly, number, block) for number in range(threads)]
        block.run()
