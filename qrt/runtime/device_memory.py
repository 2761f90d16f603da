"""What the plans of a session share on a GPU: its stream, constants that were uploaded once, and one arena."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

from qrt.core.errors import InvalidInput
from qrt.jit.cuda import DeviceKernel
from qrt.ops.op import Array

__all__ = ["Constant", "Device", "DeviceMemory", "Held"]


class Device(Protocol):
    """What is needed of a GPU: see `qrt.jit.driver.Driver`. A stream None is the device's own, `stream`."""

    cc: tuple[int, int]
    ordinal: int
    stream: int

    def allocate(self, nbytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def holds(self, address: int, nbytes: int) -> bool: ...

    def upload(self, address: int, array: Array, stream: int | None = None) -> None: ...

    def download(self, array: Array, address: int, stream: int | None = None) -> None: ...

    def pin(self, nbytes: int) -> Array: ...

    def unpin(self, address: int) -> None: ...

    def send(self, address: int, array: Array, stream: int | None = None) -> None: ...

    def fetch(self, array: Array, address: int, stream: int | None = None) -> None: ...

    def tensor_map(self, address: int, rows: int, columns: int, row_bytes: int, box_rows: int) -> Array: ...

    def wait(self, stream: int | None = None) -> None: ...

    def order(self, first: int, then: int | None) -> None: ...

    def mark(self, stream: int | None) -> None: ...

    def follow(self, stream: int | None) -> None: ...

    def record(self, launches: Sequence[tuple[DeviceKernel, tuple[int, int], bytes]]) -> int: ...

    def replay(self, graph: int, stream: int | None = None) -> None: ...

    def destroy(self, graph: int) -> None: ...


class Held:
    """Memory of a device, given back by `free` or when nobody holds it any more."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.address, self.nbytes = device.allocate(nbytes), nbytes
        self._release = weakref.finalize(self, device.free, self.address)
        self._release.atexit = False

    @property
    def alive(self) -> bool:
        """Whether it was not given back yet."""
        return self._release.alive

    def free(self) -> None:
        """Gives it back; a second time does nothing."""
        self._release()


class DeviceMemory:
    """A session's memory on `device`. `lock` is held by whoever runs: runs take turns, as there is one arena.

    `pending`: whether a run may still be under way that nobody waited for; its end is marked on the device.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lock = threading.RLock()
        self.pending = False
        self._constants: weakref.WeakValueDictionary[int, Constant] = weakref.WeakValueDictionary()
        self._arena: Held | None = None
        self._closed = False

    def check_open(self) -> None:
        """Raises InvalidInput once `close` was called."""
        if self._closed:
            raise InvalidInput("the session is closed; make a new one")

    def constant(self, array: Array) -> Constant:
        """Where `array` is on the device: uploaded the first time, for as long as anybody holds what this gives."""
        with self.lock:
            found = self._constants.get(id(array))
            if found is None:
                found = self._constants[id(array)] = Constant(self.device, array)
            return found

    def settle(self) -> None:
        """Waits for what runs may still be using."""
        if self.pending:
            self.device.follow(None)
        self.device.wait()
        self.pending = False

    def arena(self, nbytes: int) -> int:
        """The address of the arena, which is at least this large. It moves when it grows."""
        if self._arena is None or self._arena.nbytes < nbytes:
            if self._arena is not None:
                self.settle()
                self._arena.free()
                self._arena = None  # where there is no memory for a larger one, there is none
            self._arena = Held(self.device, nbytes)
        return self._arena.address

    def close(self) -> None:
        """Gives all memory back, after the run that is under way, if one is."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            try:
                self.settle()
            finally:
                for constant in list(self._constants.values()):
                    constant.free()
                if self._arena is not None:
                    self._arena.free()


class Constant(Held):
    """An array on a device. It is kept, so that its id is no other's."""

    def __init__(self, device: Device, array: Array) -> None:
        super().__init__(device, array.nbytes)
        self.array = array
        device.upload(self.address, array)
