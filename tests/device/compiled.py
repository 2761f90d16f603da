"""A GPU that is none: what a DevicePlan asks of a device, by the machine that executes the kernels' PTX."""

from __future__ import annotations

import functools

from device.emulated import EmulatedDevice
from device.machine import Machine
from device.ptx import Code, parse
from device.ptx_hopper import HOPPER
from device.ptx_words import WORDS

from qrt.jit import cuda
from qrt.jit.cuda import DeviceKernel


@functools.cache
def text_of(kernel: DeviceKernel, cc: tuple[int, int]) -> str:
    return cuda.ptx(kernel, cc)


@functools.cache
def code_of(kernel: DeviceKernel, cc: tuple[int, int], mutation: tuple[str, str] | None) -> Code:
    text = text_of(kernel, cc)
    if mutation is not None:
        if mutation[0] not in text:
            raise ValueError(f"{mutation[0]!r} does not stand in {kernel.name}")
        text = text.replace(*mutation)
    return parse(text)


class CompiledDevice(EmulatedDevice):
    """As the emulated device, but what it executes is what the compiler made of the kernels' source: in that, `mutation` replaces."""

    def carry_out(self, kernel: DeviceKernel, grid: tuple[int, int], record: bytes) -> None:
        code = code_of(kernel, self.cc, self.mutation if kernel.name.startswith(self.mutant) else None)
        Machine(code, grid, kernel.shared, record, self.memory, self.schedule, WORDS | HOPPER).run()
