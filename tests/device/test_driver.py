"""What is asked of NVIDIA's driver, by one that only pretends: addresses are the host's, and launches are noted."""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import Gpu, GpuArray
from qrt.core.errors import DeviceError
from qrt.jit import driver
from qrt.jit.cuda import DeviceKernel, symbol
from qrt.jit.driver import Driver
from qrt.ops.gemm.device import PAD_ROWS, PRODUCTS

STREAM, GRAPH = 0x51, 0x61
# Contexts: the device's, and one that another library made current.
OURS, OTHER = 0x31, 0x32
# What needs no context.
FREE_CALLS = (
    *("cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetName", "cuDevicePrimaryCtxRetain", "cuDriverGetVersion"),
    *("cuCtxPushCurrent_v2", "cuGetErrorString", "cuInit", "cuDeviceGetCount"),
)


class Pretended:
    """libcuda. `calls`: names, in order; `launches`: function's name, the seven extents, the parameter buffer; `contexts`: the stack of
    those that were current to the thread."""

    def asked(self) -> list[str]:
        """The calls, without those that only change the context."""
        return [name for name in self.calls if not name.startswith("cuCtxP")]

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.launches: list[tuple[str, list[int], bytes]] = []
        self.attributes: list[tuple[str, int, int]] = []
        self.failing, self.status = "", 2
        self.nodes = 0
        self.capability = {75: 9, 76: 0}
        self.contexts: list[int | None] = [OTHER]
        self._memory: dict[int, Any] = {}
        self._names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> int:
            self.calls.append(name)
            if self.contexts[-1] != OURS and name not in FREE_CALLS:
                return 201  # CUDA_ERROR_INVALID_CONTEXT
            if name == self.failing:
                return self.status
            act = getattr(type(self), f"_{name}", None)
            return (act(self, *args) or 0) if act else 0

        return call

    def _cuDevicePrimaryCtxRetain(self, to: Any, device: Any) -> None:
        to._obj.value = OURS

    def _cuCtxPushCurrent_v2(self, context: Any) -> None:
        self.contexts.append(context.value)

    def _cuCtxPopCurrent_v2(self, to: Any) -> None:
        to._obj.value = self.contexts.pop()

    def _cuDeviceGetAttribute(self, to: Any, which: int, device: Any) -> None:
        to._obj.value = self.capability[which]

    def _cuStreamCreate(self, to: Any, flags: Any) -> None:
        assert flags.value == 1  # CU_STREAM_NON_BLOCKING
        to._obj.value = STREAM

    def _cuMemAlloc_v2(self, to: Any, count: Any) -> None:
        memory = ctypes.create_string_buffer(count.value)
        to._obj.value = ctypes.addressof(memory)
        self._memory[to._obj.value] = memory

    def _cuMemHostAlloc(self, to: Any, count: Any, flags: Any) -> None:
        assert flags.value == 0
        self._cuMemAlloc_v2(to, count)

    def _cuMemFree_v2(self, address: Any) -> None:
        del self._memory[address.value]

    def _cuMemFreeHost(self, address: Any) -> None:
        self._cuMemFree_v2(address)

    def _cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, count: Any, stream: Any) -> None:
        assert stream.value == STREAM
        ctypes.memmove(to.value, source.value, count.value)

    def _cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, count: Any, stream: Any) -> None:
        self._cuMemcpyHtoDAsync_v2(to, source, count, stream)

    def _cuModuleGetFunction(self, to: Any, module: Any, name: bytes) -> None:
        to._obj.value = 0x1000 + len(self._names)
        self._names[to._obj.value] = name.decode()

    def _cuFuncSetAttribute(self, function: Any, which: Any, value: Any) -> None:
        self.attributes.append((self._names[function.value], which.value, value.value))

    def _cuGraphCreate(self, to: Any, flags: Any) -> None:
        to._obj.value = GRAPH
        self.nodes = 0

    def _cuPointerGetAttribute(self, to: Any, which: Any, address: Any) -> int:
        inside = any(start <= address.value < start + len(memory) for start, memory in self._memory.items())
        to._obj.value = {2: 2, 9: 0}[which.value]
        return 0 if inside else 1

    def _cuGraphInstantiateWithFlags(self, to: Any, graph: Any, flags: Any) -> None:
        assert graph.value == GRAPH
        to._obj.value = GRAPH + 1

    def _cuGraphAddKernelNode_v2(self, to: Any, graph: Any, before: Any, count: Any, params: Any) -> None:
        node = params._obj
        assert (graph.value, node.params, node.kernel, node.context) == (GRAPH, None, None, None)
        assert (before._obj.value if before is not None else 0, count.value) == (self.nodes, bool(self.nodes))
        extra = (ctypes.c_void_p * 5).from_address(node.extra)
        assert [extra[0], extra[2], extra[4]] == [1, 2, None]  # CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END
        size = ctypes.c_size_t.from_address(extra[3]).value
        shape = [node.grid_x, node.grid_y, node.grid_z, node.block_x, node.block_y, node.block_z, node.shared]
        self.launches.append((self._names[node.function], shape, ctypes.string_at(extra[1], size)))
        self.nodes += 1
        to._obj.value = self.nodes

    def _cuTensorMapEncodeTiled(self, to: Any, *rest: Any) -> None:
        assert to.value % 128 == 0
        kind, rank, address, sizes, strides, box, steps, interleave, swizzle, promotion, fill = rest
        assert (kind.value, rank.value, interleave.value, swizzle.value, promotion.value, fill.value) == (0, 2, 0, 3, 3, 0)
        assert list(steps) == [1, 1]
        words = np.uint64([address.value, *sizes, *strides, *box])
        ctypes.memmove(to.value, words.ctypes.data, words.nbytes)

    def _cuDeviceGetName(self, to: Any, count: int, device: int) -> None:
        to.value = b"NVIDIA H200"

    def _cuDriverGetVersion(self, to: Any) -> None:
        to._obj.value = 13000

    def _cuDeviceGetCount(self, to: Any) -> None:
        to._obj.value = 1

    def _cuEventElapsedTime_v2(self, to: Any, first: Any, then: Any) -> None:
        to._obj.value = 2.5

    def _cuMemcpyDtoDAsync_v2(self, to: Any, source: Any, count: Any, stream: Any) -> None:
        self._cuMemcpyHtoDAsync_v2(to, source, count, stream)

    def _cuGetErrorString(self, status: int, to: Any) -> None:
        to._obj.value = b"out of memory"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    pretended = Pretended()
    monkeypatch.setattr(driver, "missing", lambda: None)
    monkeypatch.setattr(driver, "cubin", lambda kernel, cc: b"\x7fELF" + bytes(cc))
    monkeypatch.setattr(driver, "_functions", {})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pretended)
    return pretended


def record_of(kernel: DeviceKernel) -> bytes:
    return bytes(range(kernel.parameters))


def test_memory(library: Pretended) -> None:
    device = Driver()
    assert device.cc == (9, 0)
    x, y = np.arange(12, dtype=np.float32), np.zeros(12, np.float32)
    address = device.allocate(x.nbytes)
    device.upload(address, x)
    device.download(y, address)
    np.testing.assert_array_equal(y, x)
    device.free(address)
    assert not library._memory
    assert library.asked()[-1] == "cuMemFree_v2"


def test_a_graph(library: Pretended) -> None:
    device = Driver()
    product = PRODUCTS[0]
    graph = device.record([(PAD_ROWS, (3, 1), record_of(PAD_ROWS)), (product, (2, 5), record_of(product)), (product, (1, 1), b"12")])
    assert graph == GRAPH + 1
    assert library.launches == [
        (symbol(PAD_ROWS), [3, 1, 1, PAD_ROWS.block, 1, 1, 0], record_of(PAD_ROWS)),
        (symbol(product), [2, 5, 1, product.block, 1, 1, product.shared], record_of(product)),
        (symbol(product), [1, 1, 1, product.block, 1, 1, product.shared], b"12"),
    ]
    # More than 48 KB of shared memory has to be asked for; a kernel is loaded once, for all sessions.
    assert library.attributes == [(symbol(product), 8, product.shared)]
    assert library.calls.count("cuModuleLoadData") == 2
    device.replay(graph)
    assert library.asked()[-1] == "cuGraphLaunch"
    device.destroy(graph)
    assert library.asked()[-1] == "cuGraphExecDestroy"
    Driver().record([(PAD_ROWS, (3, 1), record_of(PAD_ROWS))])
    assert library.calls.count("cuModuleLoadData") == 2


def test_the_callers_context_stays(library: Pretended) -> None:
    """Whatever is asked for, also by what is given back late, and where the driver refuses."""
    device = Driver()
    assert library.contexts == [OTHER]
    address, array = device.allocate(64), np.zeros(4, np.float32)
    made = device.record([(PAD_ROWS, (1, 1), record_of(PAD_ROWS))])
    device.tensor_map(0x700000000, 70, 200, 208, 64)
    device.wait()
    device.mark(None)
    device.follow(3)
    device.order(1, 2)
    device.upload(address, array)
    device.replay(made)
    device.destroy(made)
    device.unpin(device.pin(16).ctypes.data)
    assert device.holds(address, 64)
    device.free(address)
    assert library.contexts == [OTHER]
    library.failing = "cuMemAlloc_v2"
    with pytest.raises(DeviceError, match="refuses cuMemAlloc_v2"):
        device.allocate(1)
    del device
    assert library.asked()[-1] == "cuStreamDestroy_v2"
    assert library.contexts == [OTHER]


def test_what_an_address_is(library: Pretended) -> None:
    device = Driver()
    address = device.allocate(100)
    assert device.holds(address, 100)
    assert not device.holds(address, 101)
    assert not device.holds(address - 1, 4)
    device.free(address)
    assert not device.holds(address, 1)


def test_streams(library: Pretended) -> None:
    device = Driver()
    assert device.stream == STREAM
    library.calls.clear()
    device.order(1, None)
    device.mark(0x99)
    device.follow(None)
    device.wait(0x99)
    expected = ["cuEventRecord", "cuStreamWaitEvent", "cuEventRecord", "cuStreamWaitEvent", "cuStreamSynchronize"]
    assert library.asked() == expected
    del device
    assert library.asked()[-3:] == ["cuEventDestroy_v2", "cuEventDestroy_v2", "cuStreamDestroy_v2"]


def test_two_threads_order_streams(library: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one waits for what the one was told of, not for what the other thread has meanwhile marked."""
    device, done = Driver(), list[str]()
    other = threading.Thread(target=lambda: device.order(3, 4))

    def record(self: Pretended, event: Any, stream: Any) -> None:
        done.append(f"mark {stream.value}")
        if stream.value == 1:
            other.start()
            other.join(0.2)

    monkeypatch.setattr(Pretended, "_cuEventRecord", record, raising=False)
    wait = lambda self, stream, event, flags: done.append(f"wait in {stream.value}")  # noqa: E731
    monkeypatch.setattr(Pretended, "_cuStreamWaitEvent", wait, raising=False)
    device.order(1, 2)
    other.join()
    assert done == ["mark 1", "wait in 2", "mark 3", "wait in 4"]


def test_page_locked_memory(library: Pretended) -> None:
    device = Driver()
    address, memory = device.allocate(16), device.pin(16)
    memory.view(np.int32)[:] = range(4)
    there, back = memory.view(np.int32), np.zeros(4, np.int32)
    library.calls.clear()
    device.send(address, there)
    device.fetch(back, address)
    assert library.asked() == ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"]
    assert back.tolist() == [0, 1, 2, 3]
    library.calls.clear()
    device.unpin(memory.ctypes.data)
    assert library.asked() == ["cuCtxSynchronize", "cuMemFreeHost"]
    library.failing = "cuMemHostAlloc"
    with pytest.raises(DeviceError, match="refuses cuMemHostAlloc: out of memory"):
        device.pin(1 << 60)


def test_a_device_that_is_too_old(library: Pretended) -> None:
    library.capability = {75: 7, 76: 5}
    with pytest.raises(DeviceError, match=r"capability 7\.5; qrt needs 8\.0"):
        Driver()


def test_a_tensor_map(library: Pretended) -> None:
    made = Driver().tensor_map(0x700000000, 70, 200, 208, 64)
    assert made.nbytes == 128
    assert made.view(np.uint64)[:6].tolist() == [0x700000000, 200, 70, 208, 128, 64]  # columns, the inner axis, first


def test_what_benchmarks_ask(library: Pretended) -> None:
    device = Gpu()
    assert device.name == "NVIDIA H200, compute capability 9.0, CUDA 13.0"
    library.calls.clear()
    assert device.time(lambda: library.calls.append("work")) == 2.5
    begin, end = ["cuEventCreate"] * 2 + ["cuEventRecord"], ["cuEventRecord", "cuEventSynchronize", "cuEventElapsedTime_v2"]
    assert library.asked() == [*begin, "work", *end, "cuEventDestroy_v2", "cuEventDestroy_v2"]
    x, y = GpuArray.of(device, np.arange(5, dtype=np.int32)), GpuArray(device, (5,), np.dtype(np.int32))
    device.copy(y.address, x.address, x.nbytes)
    assert y.numpy().tolist() == [0, 1, 2, 3, 4]
    assert library.contexts == [OTHER]


def test_what_the_driver_refuses(library: Pretended) -> None:
    device = Driver()
    library.failing = "cuMemAlloc_v2"
    with pytest.raises(DeviceError, match=r"refuses cuMemAlloc_v2: out of memory \(CUresult 2\)"):
        device.allocate(1 << 60)


def test_giving_back_never_fails(library: Pretended, capfd: pytest.CaptureFixture[str]) -> None:
    """Garbage is collected where nobody could catch an error: after a fault of the GPU, in a process that was forked."""
    device = Driver()
    address, memory, graph = device.allocate(16), device.pin(16), device.record([(PAD_ROWS, (1, 1), record_of(PAD_ROWS))])
    held = GpuArray(Gpu(), (4,), np.dtype(np.int32))
    for library.failing in ("cuCtxSynchronize", "cuMemFree_v2", "cuMemFreeHost", "cuGraphExecDestroy", "cuCtxPushCurrent_v2"):
        device.destroy(graph)
        if library.failing == "cuCtxPushCurrent_v2":
            device.free(address)
            device.unpin(memory.ctypes.data)
            del held, device
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_memory_is_given_back_once_the_device_has_done_with_it(library: Pretended) -> None:
    """Of cuMemFree the manual says only that it may wait."""
    device = Driver()
    address = device.allocate(16)
    library.calls.clear()
    device.free(address)
    assert library.asked() == ["cuCtxSynchronize", "cuMemFree_v2"]


def test_a_process_that_was_forked(library: Pretended) -> None:
    device = Driver()
    library.failing, library.status = "cuCtxPushCurrent_v2", 3
    with pytest.raises(DeviceError, match=r"\(CUresult 3\): a process that was forked .* 'spawn'"):
        device.allocate(16)


NUMBERS = {
    "NOT_INITIALIZED": "CUresult.CUDA_ERROR_NOT_INITIALIZED",
    "_MAJOR": "CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
    "_MINOR": "CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
    "_MAX_DYNAMIC_SHARED": "CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES",
    "_END": "CU_LAUNCH_PARAM_END_AS_INT",
    "_BUFFER_POINTER": "CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT",
    "_BUFFER_SIZE": "CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT",
    "_NON_BLOCKING": "CUstream_flags.CU_STREAM_NON_BLOCKING",
    "_NO_TIMING": "CUevent_flags.CU_EVENT_DISABLE_TIMING",
    "_MEMORY_TYPE": "CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE",
    "_ORDINAL": "CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL",
    "_ON_DEVICE": "CUmemorytype.CU_MEMORYTYPE_DEVICE",
    "_UINT8": "CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT8",
    "_NO_INTERLEAVE": "CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE",
    "_SWIZZLE_128": "CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B",
    "_L2_256": "CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B",
    "_FILL_ZERO": "CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE",
}


def test_numbers_and_layouts_are_nvidias() -> None:
    """As NVIDIA's own bindings have them."""
    theirs = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings: pip install 'qrt[cuda]'", exc_type=ImportError)
    for ours, name in NUMBERS.items():
        assert getattr(driver, ours) == int(functools.reduce(getattr, name.split("."), theirs)), ours
    node = theirs.CUDA_KERNEL_NODE_PARAMS_v2()
    places = [name for name, _ in driver._Node._fields_ if name.startswith(("grid", "block"))]
    for value, place in enumerate(places, 1):
        setattr(node, place.replace("_x", "DimX").replace("_y", "DimY").replace("_z", "DimZ"), value)
    node.sharedMemBytes = 70
    ours = driver._Node.from_address(int(node.getPtr()))
    assert [getattr(ours, place) for place in places] == [1, 2, 3, 4, 5, 6]
    assert ours.shared == 70


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "missing", lambda: "nothing is there")
    with pytest.raises(DeviceError, match="target 'cuda' cannot be used: nothing is there"):
        Driver()
