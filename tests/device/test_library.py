"""Whole programs through the driver as it is: NVIDIA's library is played by the emulator, which takes apart what it is handed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import Schedule
from device.test_driver import Pretended
from device.test_gemm import case
from device.test_plan import network
from kernels.check import program_of
from kernels.products import codes, floats

from qrt.jit import driver
from qrt.jit.cuda import DeviceKernel, symbol
from qrt.jit.driver import Driver
from qrt.ops.gemm import device as products
from qrt.ops.gemm.device import HopperTile
from qrt.ops.program import interpret
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs


def memory_of(address: int, count: int) -> np.ndarray:
    """Bytes of this process."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))


class Library(Pretended):
    """libcuda over an emulated device. `kernels`: those whose code was asked for, by their names there."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.kernels = EmulatedDevice(Schedule("random", "lazy")), dict[str, DeviceKernel]()
        self.device.stream = 0x51

    def code(self, kernel: DeviceKernel, cc: tuple[int, int]) -> bytes:
        self.kernels[symbol(kernel)] = kernel
        return b"\x7fELF"

    def _cuMemAlloc_v2(self, to: Any, count: Any) -> None:
        to._obj.value = self.device.allocate(count.value)

    def _cuMemFree_v2(self, address: Any) -> None:
        self.device.free(address.value)

    def _cuMemHostAlloc(self, to: Any, count: Any, flags: Any) -> None:
        to._obj.value = self.device.pin(count.value).ctypes.data

    def _cuMemFreeHost(self, address: Any) -> None:
        self.device.unpin(address.value)

    def _cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, count: Any, stream: Any) -> None:
        self._copy(self.device.send, self.device.upload, to.value, memory_of(source.value, count.value), stream)

    def _cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, count: Any, stream: Any) -> None:
        self._copy(self.device.fetch, self.device.download, memory_of(to.value, count.value), source.value, stream)

    def _copy(self, at_leisure: Any, at_once: Any, to: Any, source: Any, stream: Any) -> None:
        try:
            at_leisure(to, source, stream.value)
        except ValueError:  # of memory that is not page-locked
            at_once(to, source, stream.value)

    def _cuStreamSynchronize(self, stream: Any) -> None:
        self.device.wait(stream.value)

    def _cuGraphInstantiateWithFlags(self, to: Any, graph: Any, flags: Any) -> None:
        launches = []
        for name, (x, y, z, *block, shared), record in self.launches:
            kernel = self.kernels[name]
            assert (z, block, shared) == (1, [kernel.block, 1, 1], kernel.shared)
            launches.append((kernel, (x, y), record))
        self.launches.clear()
        to._obj.value = self.device.record(launches)

    def _cuGraphLaunch(self, graph: Any, stream: Any) -> None:
        self.device.replay(graph.value, stream.value)

    def _cuTensorMapEncodeTiled(self, to: Any, *rest: Any) -> None:
        super()._cuTensorMapEncodeTiled(to, *rest)
        _, _, address, (columns, rows), (row_bytes,), (_, box_rows), *_ = rest
        memory_of(to.value, 128)[:] = self.device.tensor_map(address.value, rows, columns, row_bytes, box_rows)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    made = Library()
    monkeypatch.setattr(driver, "missing", lambda: None)
    monkeypatch.setattr(driver, "cubin", made.code)
    monkeypatch.setattr(driver, "_functions", {})
    real = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *rest: made if name == "libcuda.so.1" else real(name, *rest))
    yield made
    assert not made.device.sizes, "memory was not given back"
    assert not made.device.pinned, "page-locked memory was not given back"


def test_a_network(library: Library) -> None:
    program = network(33, 50, 70, 40)
    plan = DevicePlan(program, Driver(), Packs())
    for _ in range(2):
        feeds = [floats(33, 50), codes(1, 33, 40)]
        for wanted, found in zip(interpret(program, feeds), plan.run(feeds), strict=True):
            np.testing.assert_array_equal(found, wanted)
    plan.close()


def test_tensor_maps(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "choose_hopper_tile", lambda m, n: HopperTile(64, 32, 128, 2))
    op, feeds = case("u8", 70, 144, 40)
    plan = DevicePlan(program_of(op, feeds)[0], Driver(), Packs())
    np.testing.assert_array_equal(plan.run(feeds)[0], op.reference(feeds)[0])
    assert library.attributes
    plan.close()
