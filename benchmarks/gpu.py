"""A GPU as benchmarks use it: arrays on it, times by its own events, and how fast it copies and multiplies at most."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.contest import Measured
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.jit.driver import Driver, within
from qrt.ops.gemm.device import HOPPER, MULTIPROCESSORS
from qrt.ops.op import Array
from qrt.runtime.device_memory import Held

__all__ = ["Contender", "Gpu", "GpuArray", "copying", "in_turns", "matrix_peak", "scaled"]

# A round runs each contender for about this long.
ROUND_MS = 20.0


class Gpu(Driver):
    """The first device. What is timed is given to `stream`."""

    @property
    def name(self) -> str:
        """As NVIDIA calls it, with its driver's version of CUDA."""
        text, number = ctypes.create_string_buffer(256), ctypes.c_int()
        self._call("cuDeviceGetName", text, len(text), self.ordinal)
        self._call("cuDriverGetVersion", ctypes.byref(number))
        cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
        return f"{text.value.decode()}, compute capability {self.cc[0]}.{self.cc[1]}, CUDA {cuda}"

    @within
    def time(self, run: Callable[[], object]) -> float:
        """Milliseconds that the device takes for what `run` gives to its stream, by events before and after."""
        events = ctypes.c_void_p(), ctypes.c_void_p()
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
        try:
            self._call("cuEventRecord", events[0], self._stream(None))
            run()
            self._call("cuEventRecord", events[1], self._stream(None))
            self._call("cuEventSynchronize", events[1])
            taken = ctypes.c_float()
            self._call("cuEventElapsedTime_v2", ctypes.byref(taken), *events)
        finally:
            for event in events:
                self._call("cuEventDestroy_v2", event)
        return taken.value

    @within
    def copy(self, to: int, address: int, nbytes: int) -> None:
        """Copies bytes within the device."""
        places = ctypes.c_uint64(to), ctypes.c_uint64(address)
        self._call("cuMemcpyDtoDAsync_v2", *places, ctypes.c_size_t(nbytes), self._stream(None))


class GpuArray(Held):
    """An array on the device, C-contiguous."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(gpu, int(np.prod(shape)) * dtype.itemsize)
        self.gpu, self.shape, self.dtype = gpu, shape, dtype

    @classmethod
    def of(cls, gpu: Gpu, array: Array) -> GpuArray:
        """A copy of `array`."""
        made = cls(gpu, array.shape, array.dtype)
        gpu.upload(made.address, np.ascontiguousarray(array))
        return made

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {"version": 3, "shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "strides": None}

    def numpy(self) -> Array:
        """A copy in the CPU's memory, after what the stream was given."""
        array = np.empty(self.shape, self.dtype)
        self.gpu.download(array, self.address)
        return array


@dataclass(frozen=True)
class Contender:
    """`run` gives its work to the GPU's stream, and need not wait for it. `error`: as in qrt.report.bench.Engine."""

    runtime: str
    version: str
    run: Callable[[], object]
    error: float = 0.0


def in_turns(gpu: Gpu, contenders: Sequence[Contender], rounds: int) -> list[Measured]:
    """Milliseconds that a run takes, in `rounds` rounds A B A B …, after a round that is not counted."""
    counts = []
    for contender in contenders:
        contender.run()
        counts.append(max(1, int(ROUND_MS / max(gpu.time(contender.run), 1e-3))))
    measured = [Measured(c.runtime, c.version, [], c.error) for c in contenders]
    for turn in range(rounds + 1):
        for one, contender, count in zip(measured, contenders, counts, strict=True):
            contender.run()  # the caches hold this one's data, and no longer the last one's
            taken = gpu.time(lambda run=contender.run, count=count: [run() for _ in range(count)]) / count  # type: ignore[misc]
            if turn:
                one.rounds.append(taken)
    return measured


def scaled(measured: Measured, factor: float) -> Measured:
    """`factor` times as much work."""
    return replace(measured, rounds=[taken * factor for taken in measured.rounds])


# -- floors -------------------------------------------------------------------------------------------------------------------
def copying(gpu: Gpu, nbytes: int) -> tuple[Contender, int]:
    """The driver's copy from one place of the device's memory to another, and how many bytes that reads and writes."""
    source, target = (GpuArray(gpu, (nbytes,), np.dtype(np.uint8)) for _ in range(2))
    gpu.upload(source.address, np.random.default_rng(0).integers(0, 256, nbytes, np.uint8))
    return Contender("copy", version("qrt"), lambda: gpu.copy(target.address, source.address, nbytes)), 2 * nbytes


LOOP_RECORD = record_dtype(("x", "i8"), ("y", "i8"), ("n", "i4"))
MMA_LOOP = DeviceKernel("peak_mma_u8s8__cuda", LOOP_RECORD, "benchmarks.cuda_peak:mma_loop")
WGMMA_LOOP = DeviceKernel("peak_wgmma_u8s8__cuda", LOOP_RECORD, "benchmarks.cuda_peak:wgmma_loop", (), 256, 48 << 10, specific=True)
# Multiply-accumulates of a block in one turn of its loop: 8 warps make 8 products each, two warpgroups four.
LOOP_MACS = {MMA_LOOP.name: 8 * 8 * 16 * 8 * 32, WGMMA_LOOP.name: 2 * 4 * 64 * 256 * 32}
BLOCKS, TURNS = {MMA_LOOP.name: 2 * MULTIPROCESSORS, WGMMA_LOOP.name: MULTIPROCESSORS}, 2000


def matrix_peak(gpu: Gpu, turns: int = TURNS) -> tuple[Contender, int]:
    """A loop of the tensor cores' int8 products that reads no memory outside of a multiprocessor, on random codes, and how many
    multiply-accumulates it does."""
    kernel = WGMMA_LOOP if gpu.cc == HOPPER else MMA_LOOP
    blocks = BLOCKS[kernel.name]
    x = GpuArray.of(gpu, np.random.default_rng(0).integers(0, 256, 48 << 10, np.uint8))
    y = GpuArray(gpu, (blocks * kernel.block,), np.dtype(np.int32))
    record = np.zeros((), kernel.record)
    record["x"], record["y"], record["n"] = x.address, y.address, turns
    graph = gpu.record([(kernel, (blocks, 1), record.tobytes()[: kernel.parameters])])

    def run() -> tuple[GpuArray, GpuArray]:
        gpu.replay(graph)
        return x, y  # which the graph needs as long as it is run

    return Contender("floor", version("qrt"), run), LOOP_MACS[kernel.name] * blocks * turns
