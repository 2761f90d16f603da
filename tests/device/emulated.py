"""A GPU that is none: what a DevicePlan asks of a device, by the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import device.hopper  # noqa: F401 - its words join the emulator's
import numpy as np
from device.emulator import Memory, Schedule, file_of, launch, module

from qrt.jit.cuda import DeviceKernel

ANY_ORDER = Schedule("random", "lazy")
Launch = tuple[DeviceKernel, tuple[int, int], bytes]


def source_of(kernel: DeviceKernel) -> tuple[Path, str]:
    """The file that a kernel is written in, and its function there."""
    name, _, function = kernel.source.partition(":")
    return file_of(name), function


class EmulatedDevice:
    """Memory starts as anything but 0. `launched`: names of the kernels, in order; `noted`: copies and what streams are asked. `mutation`:
    what is replaced by what in the source of those whose names start with `mutant`."""

    def __init__(self, schedule: Schedule = ANY_ORDER, mutation: tuple[str, str] | None = None, mutant: str = "") -> None:
        self.memory, self.schedule, self.mutation, self.mutant = Memory(), schedule, mutation, mutant
        self.sizes: dict[int, int] = {}
        self.launched: list[str] = []
        self.noted: list[tuple[object, ...]] = []
        self.graphs: dict[int, list[Launch]] = {}
        self._next = 1
        self.ordinal, self.stream = 0, 77
        self.cc = (9, 0)

    def allocate(self, nbytes: int) -> int:
        address = self.memory.place(np.full(nbytes, 0xA5, np.uint8))
        self.sizes[address] = nbytes
        return address

    def holds(self, address: int, nbytes: int) -> bool:
        return any(start <= address and address + nbytes <= start + size for start, size in self.sizes.items())

    def free(self, address: int) -> None:
        del self.sizes[address]

    def upload(self, address: int, array: np.ndarray, stream: int | None = None) -> None:
        self.noted.append(("upload", array.nbytes))
        self.memory.at(address, array.nbytes, 1)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, array: np.ndarray, address: int, stream: int | None = None) -> None:
        self.noted.append(("download", array.nbytes))
        array[...] = self.memory.at(address, array.nbytes, 1).view(array.dtype).reshape(array.shape)

    def tensor_map(self, address: int, rows: int, columns: int, row_bytes: int, box_rows: int) -> np.ndarray:
        return np.pad(np.array([address, rows, columns, row_bytes, box_rows]), (0, 11)).view(np.uint8)

    def wait(self, stream: int | None = None) -> None:
        self.noted.append(("wait", stream))

    def order(self, first: int, then: int | None) -> None:
        self.noted.append(("order", first, then))

    def mark(self, stream: int | None) -> None:
        self.noted.append(("mark", stream))

    def follow(self, stream: int | None) -> None:
        self.noted.append(("follow", stream))

    def record(self, launches: Sequence[Launch]) -> int:
        self.graphs[self._next] = list(launches)
        self._next += 1
        return self._next - 1

    def destroy(self, graph: int) -> None:
        del self.graphs[graph]

    def replay(self, graph: int, stream: int | None = None) -> None:
        self.noted.append(("replay", stream))
        for kernel, grid, record in self.graphs[graph]:
            self.launched.append(kernel.name)
            path, function = source_of(kernel)
            values: Any = np.frombuffer(record.ljust(kernel.record.itemsize, b"\0"), kernel.record)[0]
            names = kernel.record.names or ()
            args = [np.float32(values[n]) if kernel.record[n].kind == "f" else int(values[n]) for n in names]
            run = module(path, self.mutation if kernel.name.startswith(self.mutant) else None)[function](*kernel.params)
            launch(run, grid, kernel.block, kernel.shared, self.memory, args, self.schedule)
