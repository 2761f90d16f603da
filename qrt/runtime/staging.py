"""Page-locked memory, through which a plan's arrays go to the device and come from it while the CPU does something else."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from qrt.core.errors import DeviceError
from qrt.ops.op import Array, Spec
from qrt.runtime.arena import ALIGNMENT
from qrt.runtime.device_memory import Device

__all__ = ["Staging"]

K = TypeVar("K", bound=Hashable)


class Staging(Generic[K]):
    """One piece of page-locked memory with room for a value of each of `specs`; none where the system refuses so much of it.

    `rooms`: arrays in it, which are gone once it is given back: by `free`, or when nobody holds this any more.
    """

    def __init__(self, device: Device, specs: Mapping[K, Spec]) -> None:
        starts, end = dict[K, int](), 0
        for key, spec in specs.items():
            starts[key], end = end, end + -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
        self.rooms: dict[K, Array] = {}
        self._release: Callable[[], object] = lambda: None
        try:
            memory = device.pin(max(end, 1))
        except DeviceError:  # memory that is not page-locked is copied as well, only more slowly
            return
        self.rooms = {k: memory[at : at + specs[k].nbytes].view(specs[k].dtype).reshape(specs[k].shape) for k, at in starts.items()}
        self._release = release = weakref.finalize(self, device.unpin, memory.ctypes.data)
        release.atexit = False

    def free(self) -> None:
        """Gives it back; a second time does nothing."""
        self.rooms.clear()
        self._release()
