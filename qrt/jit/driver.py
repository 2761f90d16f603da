"""A GPU by NVIDIA's driver API, through ctypes: memory, kernels, streams, graphs. The only door to libcuda that does things.

Names, values and calls: "CUDA Driver API", NVIDIA's reference manual.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from qrt.core.errors import DeviceError
from qrt.jit.cuda import FORKED, NOT_INITIALIZED, DeviceKernel, cubin, missing, symbol

__all__ = ["Driver", "within"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_END, _BUFFER_POINTER, _BUFFER_SIZE = 0, 1, 2  # CU_LAUNCH_PARAM_…
_NON_BLOCKING, _NO_TIMING = 1, 2  # CU_STREAM_NON_BLOCKING, CU_EVENT_DISABLE_TIMING
_MEMORY_TYPE, _ORDINAL = 2, 9  # CU_POINTER_ATTRIBUTE_…
_ON_DEVICE = 2  # CU_MEMORYTYPE_DEVICE
_UINT8, _NO_INTERLEAVE, _SWIZZLE_128, _L2_256, _FILL_ZERO = 0, 0, 3, 3, 0  # CU_TENSOR_MAP_…
_MAP_BYTES, _MAP_ALIGN, _BOX_BYTES = 128, 128, 128
# The tensor cores' products of codes, and copies that go on while a block computes.
_LEAST = (8, 0)

# kernel, grid, the bytes of its record
Launch = tuple[DeviceKernel, tuple[int, int], bytes]


class _Node(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        *((name, ctypes.c_void_p) for name in ("params", "extra", "kernel", "context")),
    )


_D = TypeVar("_D", bound="Driver")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def within(method: Callable[Concatenate[_D, _P], _R]) -> Callable[Concatenate[_D, _P], _R]:
    """The method of a Driver, with that one's context current to the thread; then again the one before, which may be another library's."""

    @functools.wraps(method)
    def entered(self: _D, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _current(self._library, self._context):
            return method(self, *args, **kwargs)

    return entered


class _current:
    """Within it a context is current to the thread. A class, as a generator would take twice the time around every call."""

    __slots__ = ("context", "library")

    def __init__(self, library: Any, context: ctypes.c_void_p) -> None:
        self.library, self.context = library, context

    def __enter__(self) -> None:
        _checked(self.library, "cuCtxPushCurrent_v2", self.context)

    def __exit__(self, *error: object) -> None:
        self.library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _checked(library: Any, name: str, *args: Any) -> None:
    """Calls the driver. Raises DeviceError where it refuses."""
    if status := getattr(library, name)(*args):
        text = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(text))
        said = text.value.decode() if text.value else "no explanation"
        raise DeviceError(f"NVIDIA's driver refuses {name}: {said} (CUresult {status}){f': {FORKED}' if status == NOT_INITIALIZED else ''}")


# Kernels that are loaded, by context and name: sessions share them.
_functions: dict[tuple[int | None, str], ctypes.c_void_p] = {}
_loading = threading.Lock()


class Driver:
    """The first device, with a stream of its own. What is asked of a stream is done in order; None stands for its own.

    Methods may be called from many threads at once. Raises DeviceError where CUDA is not available, and wherever the driver refuses.
    """

    ordinal = 0

    def __init__(self) -> None:
        if reason := missing():
            raise DeviceError(f"target 'cuda' cannot be used: {reason}")
        self._library: Any = ctypes.CDLL("libcuda.so.1")
        device, self._context, stream, self._mark, self._between = ctypes.c_int(), *(ctypes.c_void_p() for _ in range(4))
        self._call("cuDeviceGet", ctypes.byref(device), self.ordinal)
        self.cc = self._attribute(_MAJOR, device), self._attribute(_MINOR, device)
        if self.cc < _LEAST:
            raise DeviceError(f"target 'cuda' cannot be used: the device is of compute capability {self.cc[0]}.{self.cc[1]}; qrt needs 8.0")
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._ordering = threading.Lock()
        with _current(self._library, self._context):
            self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
            for event in (self._mark, self._between):
                self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(_NO_TIMING))
        self.stream: int = stream.value or 0
        made = (("cuEventDestroy_v2", self._mark), ("cuEventDestroy_v2", self._between), ("cuStreamDestroy_v2", stream))
        weakref.finalize(self, _give_back, self._library, self._context, made).atexit = False

    def _call(self, name: str, *args: Any) -> None:
        _checked(self._library, name, *args)

    def _attribute(self, which: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    def _stream(self, stream: int | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream if stream is None else stream)

    # -- memory -----------------------------------------------------------------------------------------------------------
    @within
    def allocate(self, nbytes: int) -> int:
        """The address of new memory, a multiple of 256."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Gives memory back, once the device has done what it was given so far."""
        _give_back(self._library, self._context, [("cuMemFree_v2", ctypes.c_uint64(address))], done=True)

    @within
    def holds(self, address: int, nbytes: int) -> bool:
        """Whether both ends of these bytes are memory of this device, as far as the driver knows."""
        return all(self._holds(byte) for byte in (address, address + max(nbytes, 1) - 1))

    def _holds(self, address: int) -> bool:
        kind, ordinal = ctypes.c_uint(), ctypes.c_int(-1)
        for to, which in ((kind, _MEMORY_TYPE), (ordinal, _ORDINAL)):
            if self._library.cuPointerGetAttribute(ctypes.byref(to), ctypes.c_int(which), ctypes.c_uint64(address)):
                return False
        return kind.value == _ON_DEVICE and ordinal.value == self.ordinal

    @within
    def upload(self, address: int, array: np.ndarray[Any, Any], stream: int | None = None) -> None:
        """Copies a C-contiguous array to the device; the array may change afterwards."""
        if array.nbytes:
            self.send(address, array, stream)
            self._call("cuStreamSynchronize", self._stream(stream))

    @within
    def download(self, array: np.ndarray[Any, Any], address: int, stream: int | None = None) -> None:
        """Fills a C-contiguous array from the device."""
        if array.nbytes:
            self.fetch(array, address, stream)
            self._call("cuStreamSynchronize", self._stream(stream))

    @within
    def pin(self, nbytes: int) -> np.ndarray[Any, Any]:
        """Page-locked memory of the CPU's: uint8 [nbytes], until `unpin` is given its address."""
        address = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(nbytes), ctypes.c_uint(0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address.value or 0))

    def unpin(self, address: int) -> None:
        """Gives page-locked memory back, once the device has done what it was given so far."""
        _give_back(self._library, self._context, [("cuMemFreeHost", ctypes.c_void_p(address))], done=True)

    @within
    def send(self, address: int, array: np.ndarray[Any, Any], stream: int | None = None) -> None:
        """Starts to copy a C-contiguous array to the device; if it is page-locked, this may return before it is read."""
        source, count = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, count, self._stream(stream))

    @within
    def fetch(self, array: np.ndarray[Any, Any], address: int, stream: int | None = None) -> None:
        """Starts to fill a C-contiguous array from the device; if it is page-locked, this may return before it is filled."""
        to, count = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", to, ctypes.c_uint64(address), count, self._stream(stream))

    @within
    def tensor_map(self, address: int, rows: int, columns: int, row_bytes: int, box_rows: int) -> np.ndarray[Any, Any]:
        """How the copy engine finds boxes of `box_rows` rows of 128 bytes in the matrix of bytes at `address`, which it puts into shared
        memory with their 16-byte chunks permuted ("128-byte swizzle"): uint8 [128], which belongs into the device's memory."""
        room = np.zeros(_MAP_BYTES + _MAP_ALIGN, np.uint8)
        start = -room.ctypes.data % _MAP_ALIGN
        made = room[start : start + _MAP_BYTES]
        sizes, strides = (ctypes.c_uint64 * 2)(columns, rows), (ctypes.c_uint64 * 1)(row_bytes)
        box, steps = (ctypes.c_uint32 * 2)(_BOX_BYTES, box_rows), (ctypes.c_uint32 * 2)(1, 1)
        how = [ctypes.c_int(word) for word in (_NO_INTERLEAVE, _SWIZZLE_128, _L2_256, _FILL_ZERO)]
        where = ctypes.c_int(_UINT8), ctypes.c_uint32(2), ctypes.c_void_p(address)
        self._call("cuTensorMapEncodeTiled", ctypes.c_void_p(made.ctypes.data), *where, sizes, strides, box, steps, *how)
        return made

    # -- streams ------------------------------------------------------------------------------------------------------------
    @within
    def wait(self, stream: int | None = None) -> None:
        """Returns once a stream has done what it was given so far."""
        self._call("cuStreamSynchronize", self._stream(stream))

    @within
    def order(self, first: int, then: int | None) -> None:
        """What the stream `then` is given from now on waits for what `first` was given so far."""
        with self._ordering:  # another thread's event is not the one to wait for
            self._call("cuEventRecord", self._between, self._stream(first))
            self._call("cuStreamWaitEvent", self._stream(then), self._between, ctypes.c_uint(0))

    @within
    def mark(self, stream: int | None) -> None:
        """Notes how far a stream was told to go, for `follow`."""
        self._call("cuEventRecord", self._mark, self._stream(stream))

    @within
    def follow(self, stream: int | None) -> None:
        """What a stream is given from now on waits for the mark that was set last."""
        self._call("cuStreamWaitEvent", self._stream(stream), self._mark, ctypes.c_uint(0))

    # -- graphs -------------------------------------------------------------------------------------------------------------
    @within
    def record(self, launches: Sequence[Launch]) -> int:
        """The launches as one CUDA graph, each after the one before.

        Node by node: while a stream were captured, nobody in this process might wait for the device.
        """
        graph, executable, last = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuGraphCreate", ctypes.byref(graph), ctypes.c_uint(0))
        try:
            for launch in launches:
                last = self._add(graph, last, launch)
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def _add(self, graph: ctypes.c_void_p, last: ctypes.c_void_p, launch: Launch) -> ctypes.c_void_p:
        """A launch as a node after `last`, if there is one. The graph keeps a copy of the record."""
        kernel, grid, record = launch
        size, buffer = ctypes.c_size_t(len(record)), ctypes.create_string_buffer(record, len(record))
        pointers = (ctypes.addressof(buffer), ctypes.addressof(size))
        extra = (ctypes.c_void_p * 5)(_BUFFER_POINTER, pointers[0], _BUFFER_SIZE, pointers[1], _END)
        shape = (*grid, 1, kernel.block, 1, 1, kernel.shared)
        params = _Node(self._function(kernel), *shape, None, ctypes.addressof(extra), None, None)
        node = ctypes.c_void_p()
        after = (ctypes.byref(last), ctypes.c_size_t(1)) if last.value else (None, ctypes.c_size_t(0))
        self._call("cuGraphAddKernelNode_v2", ctypes.byref(node), graph, *after, ctypes.byref(params))
        return node

    @within
    def replay(self, graph: int, stream: int | None = None) -> None:
        """Starts a recorded graph."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), self._stream(stream))

    def destroy(self, graph: int) -> None:
        """Gives a recorded graph back; if it is running, once it has run."""
        _give_back(self._library, self._context, [("cuGraphExecDestroy", ctypes.c_void_p(graph))])

    def _function(self, kernel: DeviceKernel) -> ctypes.c_void_p:
        """The kernel on the device, loaded once."""
        key = (self._context.value, symbol(kernel))
        with _loading:
            if key not in _functions:
                module, function, code = ctypes.c_void_p(), ctypes.c_void_p(), cubin(kernel, self.cc)
                self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(code))
                self._call("cuModuleGetFunction", ctypes.byref(function), module, key[1].encode())
                if kernel.shared:
                    self._call("cuFuncSetAttribute", function, ctypes.c_int(_MAX_DYNAMIC_SHARED), ctypes.c_int(kernel.shared))
                _functions[key] = function
            return _functions[key]


def _give_back(library: Any, context: ctypes.c_void_p, made: Sequence[tuple[str, Any]], done: bool = False) -> None:
    """Gives back what a Driver made, and before that waits for the device, if it has to be `done` with it.

    What the driver says of it no longer matters to anybody: what a GPU has failed at, the next call says as well, and in a process that was
    forked nothing of it is there. Garbage is collected where nobody could catch an error.
    """
    with contextlib.suppress(DeviceError), _current(library, context):
        if done:
            library.cuCtxSynchronize()
        for name, handle in made:
            getattr(library, name)(handle)
