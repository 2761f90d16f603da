"""What tests of sessions on a GPU share: one that is emulated in its place, and arrays of other libraries' that lie on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from device.emulated import EmulatedDevice


class Emulation:
    """Devices that sessions made, in order; each is of the class `kind`."""

    def __init__(self) -> None:
        self.made: list[EmulatedDevice] = []
        self.kind = EmulatedDevice

    def __call__(self) -> EmulatedDevice:
        self.made.append(self.kind())
        return self.made[-1]

    @property
    def device(self) -> EmulatedDevice:
        """The last one."""
        return self.made[-1]


class Foreign:
    """Another library's array on an emulated device."""

    def __init__(self, device: EmulatedDevice, array: np.ndarray, **differences: Any) -> None:
        self.device, self.like = device, array
        self.address = device.allocate(array.nbytes)
        device.upload(self.address, np.ascontiguousarray(array))
        self.interface = {"version": 3, "shape": array.shape, "typestr": array.dtype.str, "data": (self.address, False), "strides": None}
        self.interface |= differences

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface

    def numpy(self) -> np.ndarray:
        array = np.empty_like(self.like, order="C")
        self.device.finish()
        self.device.download(array, self.address)
        return array
