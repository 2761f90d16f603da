"""A GPU that is none: what a DevicePlan asks of a device, by the emulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import device.hopper  # noqa: F401 - its words join the emulator's
import numpy as np
from device.emulator import Memory, Schedule, file_of, launch, module

from qrt.core.errors import DeviceError
from qrt.jit.cuda import DeviceKernel

ANY_ORDER = Schedule("random", "lazy")
Launch = tuple[DeviceKernel, tuple[int, int], bytes]

# Blocks along both axes of a grid, threads of a block, and the bytes of shared memory that a block of compute capability 9.0 may have.
MOST_BLOCKS, MOST_THREADS, MOST_SHARED = (2**31 - 1, 65535), 1024, 227 << 10


def source_of(kernel: DeviceKernel) -> tuple[Path, str]:
    """The file that a kernel is written in, and its function there."""
    name, _, function = kernel.source.partition(":")
    return file_of(name), function


def check_whole(*numbers: object) -> None:
    """What goes to the driver has to be Python's own integers: ctypes takes none of NumPy's."""
    if odd := [number for number in numbers if type(number) is not int]:
        raise TypeError(f"{odd[0]!r} is of {type(odd[0])}")


def check_launch(kernel: DeviceKernel, grid: tuple[int, int], record: bytes) -> None:
    """What the driver refuses."""
    check_whole(*grid, kernel.block, kernel.shared)
    if not all(1 <= blocks <= most for blocks, most in zip(grid, MOST_BLOCKS, strict=True)):
        raise DeviceError(f"{kernel.name}: a grid of {grid}")
    if not 1 <= kernel.block <= MOST_THREADS or not 0 <= kernel.shared <= MOST_SHARED or len(record) != kernel.parameters:
        raise DeviceError(f"{kernel.name}: {kernel.block} threads, {kernel.shared} bytes shared, {len(record)} of parameters")


class EmulatedDevice:
    """Memory starts as anything but 0, and ends when it is given back. What a stream is given it does as late as it may.

    `launched`: names of the kernels, in order; `noted`: copies and what streams are asked. `mutation`: what is replaced by what in the
    source of those whose names start with `mutant`. `pinned`: page-locked memory by its address, of which one piece may have `lockable`
    bytes.
    """

    def __init__(self, schedule: Schedule = ANY_ORDER, mutation: tuple[str, str] | None = None, mutant: str = "") -> None:
        self.memory, self.schedule, self.mutation, self.mutant = Memory(), schedule, mutation, mutant
        self.sizes: dict[int, int] = {}
        self.launched: list[str] = []
        self.noted: list[tuple[object, ...]] = []
        self.graphs: dict[int, list[Launch]] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.lockable = 1 << 40
        self._next = 1
        self.ordinal, self.stream = 0, 77
        self.cc = (9, 0)
        self._given: dict[int, list[Callable[[], None]]] = {}  # for each stream what it was given; what is done is there no more
        self._done: dict[int, int] = {}
        self._marked = (self.stream, 0)

    # -- streams ------------------------------------------------------------------------------------------------------------
    def _later(self, stream: int | None, act: Callable[[], None]) -> None:
        self._given.setdefault(self.stream if stream is None else stream, []).append(act)

    def _so_far(self, stream: int | None) -> tuple[int, int]:
        """A stream, and how many things it was given."""
        which = self.stream if stream is None else stream
        return which, self._done.get(which, 0) + len(self._given.get(which, []))

    def _advance(self, stream: int, count: int) -> None:
        """Lets a stream do the first `count` things that it was given."""
        while self._done.get(stream, 0) < count:
            self._done[stream] = self._done.get(stream, 0) + 1
            self._given[stream].pop(0)()

    def finish(self) -> None:
        """Lets all streams do all that they were given."""
        for stream in list(self._given):
            self._advance(*self._so_far(stream))

    def wait(self, stream: int | None = None) -> None:
        self.noted.append(("wait", stream))
        self._advance(*self._so_far(stream))

    def order(self, first: int, then: int | None) -> None:
        self.noted.append(("order", first, then))
        point = self._so_far(first)
        self._later(then, lambda: self._advance(*point))

    def mark(self, stream: int | None) -> None:
        self.noted.append(("mark", stream))
        self._marked = self._so_far(stream)

    def follow(self, stream: int | None) -> None:
        self.noted.append(("follow", stream))
        point = self._marked
        self._later(stream, lambda: self._advance(*point))

    # -- memory -----------------------------------------------------------------------------------------------------------
    def allocate(self, nbytes: int) -> int:
        check_whole(nbytes)
        address = self.memory.place(np.full(nbytes, 0xA5, np.uint8))
        self.sizes[address] = nbytes
        return address

    def holds(self, address: int, nbytes: int) -> bool:
        check_whole(address, nbytes)
        return any(start <= address and address + nbytes <= start + size for start, size in self.sizes.items())

    def free(self, address: int) -> None:
        check_whole(address)
        self.finish()
        del self.sizes[address]
        self.memory.drop(address)

    def upload(self, address: int, array: np.ndarray, stream: int | None = None) -> None:
        self.noted.append(("upload", array.nbytes))
        self._advance(*self._so_far(stream))
        self._room(address, array)[:] = array.reshape(-1).view(np.uint8)

    def download(self, array: np.ndarray, address: int, stream: int | None = None) -> None:
        self.noted.append(("download", array.nbytes))
        self._advance(*self._so_far(stream))
        array.reshape(-1).view(np.uint8)[:] = self._room(address, array)

    def pin(self, nbytes: int) -> np.ndarray:
        check_whole(nbytes)
        if nbytes > self.lockable:
            raise DeviceError("NVIDIA's driver refuses cuMemHostAlloc: out of memory (CUresult 2)")
        made = np.full(nbytes, 0xA5, np.uint8)
        self.pinned[made.ctypes.data] = made
        return made[:]

    def unpin(self, address: int) -> None:
        check_whole(address)
        self.finish()
        self.pinned.pop(address)[:] = 0xA5

    def send(self, address: int, array: np.ndarray, stream: int | None = None) -> None:
        self.noted.append(("send", array.nbytes))
        self._check_pinned(array)
        room = self._room(address, array)
        self._later(stream, lambda: room.__setitem__(slice(None), array.reshape(-1).view(np.uint8)))

    def fetch(self, array: np.ndarray, address: int, stream: int | None = None) -> None:
        self.noted.append(("fetch", array.nbytes))
        self._check_pinned(array)
        room = self._room(address, array)
        self._later(stream, lambda: array.reshape(-1).view(np.uint8).__setitem__(slice(None), room))

    def _check_pinned(self, array: np.ndarray) -> None:
        start, end = array.ctypes.data, array.ctypes.data + array.nbytes
        if not any(at <= start and end <= at + memory.nbytes for at, memory in self.pinned.items()):
            raise ValueError("an array is copied asynchronously that is not page-locked")

    def _room(self, address: int, array: np.ndarray) -> np.ndarray:
        """The memory for the bytes of an array, which the driver takes to lie in one piece."""
        check_whole(address)
        if not array.flags.c_contiguous:
            raise ValueError(f"an array of shape {array.shape} and strides {array.strides} is copied as if it were contiguous")
        return self.memory.at(address, array.nbytes, 1) if array.nbytes else np.empty(0, np.uint8)

    def tensor_map(self, address: int, rows: int, columns: int, row_bytes: int, box_rows: int) -> np.ndarray:
        check_whole(address, rows, columns, row_bytes, box_rows)
        if address % 16 or row_bytes % 16 or not 0 < row_bytes < 1 << 40 or not 0 < box_rows <= 256 or min(rows, columns) < 1:
            raise DeviceError(f"a tensor map of {rows} x {columns} bytes at {address:#x}, {row_bytes} apart, for boxes of {box_rows} rows")
        return np.pad(np.array([address, rows, columns, row_bytes, box_rows]), (0, 11)).view(np.uint8)

    # -- graphs -------------------------------------------------------------------------------------------------------------
    def record(self, launches: Sequence[Launch]) -> int:
        for kernel, grid, record in launches:
            check_launch(kernel, grid, record)
        self.graphs[self._next] = list(launches)
        self._next += 1
        return self._next - 1

    def destroy(self, graph: int) -> None:
        del self.graphs[graph]

    def replay(self, graph: int, stream: int | None = None) -> None:
        self.noted.append(("replay", stream))
        for one in self.graphs[graph]:
            self.launched.append(one[0].name)
            self._later(stream, lambda launched=one: self.carry_out(*launched))  # type: ignore[misc]

    def carry_out(self, kernel: DeviceKernel, grid: tuple[int, int], record: bytes) -> None:
        """Runs one launch."""
        path, function = source_of(kernel)
        values: Any = np.frombuffer(record.ljust(kernel.record.itemsize, b"\0"), kernel.record)[0]
        names = kernel.record.names or ()
        args = [np.float32(values[n]) if kernel.record[n].kind == "f" else int(values[n]) for n in names]
        run = module(path, self.mutation if kernel.name.startswith(self.mutant) else None)[function](*kernel.params)
        launch(run, grid, kernel.block, kernel.shared, self.memory, args, self.schedule)
