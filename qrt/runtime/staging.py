"""Page-locked memory, through which a plan's arrays go to the device and come from it while the CPU does something else."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

from qrt.core.errors import DeviceError
from qrt.ops.op import Array, Spec
from qrt.runtime.arena import ALIGNMENT
from qrt.runtime.device_memory import Device

__all__ = ["Staging"]


class Staging:
    """One piece of page-locked memory with room for values of `specs`, by their numbers; none where the system refuses so much of it.

    `rooms`: arrays in it, which are gone once it is given back: by `free`, or when nobody holds this any more.
    """

    def __init__(self, device: Device, specs: Mapping[int, Spec]) -> None:
        starts, end = dict[int, int](), 0
        for key, spec in specs.items():
            starts[key], end = end, end + -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
        self.rooms: dict[int, Array] = {}
        self._release: Callable[[], object] = lambda: None
        if not end:
            return
        try:
            memory = device.pin(end)
        except DeviceError:  # memory that is not page-locked is copied as well, only more slowly
            return
        self.rooms = {k: memory[at : at + specs[k].nbytes].view(specs[k].dtype).reshape(specs[k].shape) for k, at in starts.items()}
        self._release = release = weakref.finalize(self, device.unpin, memory.ctypes.data)
        release.atexit = False

    def free(self) -> None:
        """Gives it back; a second time does nothing."""
        self.rooms.clear()
        self._release()
