"""A GPU by NVIDIA's driver API, through ctypes: memory, kernels, one stream, graphs. The only door to libcuda that does things.

Names, values and calls: "CUDA Driver API", NVIDIA's reference manual.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from qrt.core.errors import DeviceError
from qrt.jit.cuda import DeviceKernel, cubin, missing, symbol

__all__ = ["Driver"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_END, _BUFFER_POINTER, _BUFFER_SIZE = 0, 1, 2  # CU_LAUNCH_PARAM_…
_NON_BLOCKING, _RELAXED = 1, 2  # CU_STREAM_NON_BLOCKING, CU_STREAM_CAPTURE_MODE_RELAXED
_UINT8, _NO_INTERLEAVE, _SWIZZLE_128, _L2_256, _FILL_ZERO = 0, 0, 3, 3, 0  # CU_TENSOR_MAP_…
_MAP_BYTES, _MAP_ALIGN, _BOX_BYTES = 128, 64, 128

# kernel, grid, the bytes of its record
Launch = tuple[DeviceKernel, tuple[int, int], bytes]


class Driver:
    """The first device. One at a time may use it; what it made lives as long as the process.

    Raises DeviceError where CUDA is not available, and wherever the driver refuses.
    """

    def __init__(self) -> None:
        if reason := missing():
            raise DeviceError(f"no GPU can be used: {reason}")
        self._library: Any = ctypes.CDLL("libcuda.so.1")
        self._functions: dict[str, ctypes.c_void_p] = {}
        device, self._context, self._stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._enter()
        self._call("cuStreamCreate", ctypes.byref(self._stream), ctypes.c_uint(_NON_BLOCKING))
        self.cc = self._attribute(_MAJOR, device), self._attribute(_MINOR, device)

    def _call(self, name: str, *args: Any) -> None:
        if status := getattr(self._library, name)(*args):
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            said = text.value.decode() if text.value else "no explanation"
            raise DeviceError(f"NVIDIA's driver refuses {name}: {said} (CUresult {status})")

    def _attribute(self, which: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    def _enter(self) -> None:
        """Makes the context this thread's: every thread needs it for itself."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """The address of new memory, a multiple of 256."""
        self._enter()
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Gives memory back."""
        self._enter()
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Copies a C-contiguous array to the device, after what was launched before; the array may change afterwards."""
        if array.nbytes:
            self._enter()
            source, count = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
            self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, count, self._stream)
            self._call("cuStreamSynchronize", self._stream)

    def download(self, array: np.ndarray[Any, Any], address: int) -> None:
        """Fills a C-contiguous array from the device, after what was launched before."""
        if array.nbytes:
            self._enter()
            to, count = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
            self._call("cuMemcpyDtoHAsync_v2", to, ctypes.c_uint64(address), count, self._stream)
            self._call("cuStreamSynchronize", self._stream)

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

    def record(self, launches: Sequence[Launch]) -> ctypes.c_void_p:
        """The launches as one CUDA graph, each after the one before."""
        functions = [self._function(kernel) for kernel, _, _ in launches]
        self._enter()
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_RELAXED))
        try:
            for function, (kernel, grid, record) in zip(functions, launches, strict=True):
                self._launch(function, kernel, grid, record)
        finally:
            self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        self._call("cuGraphDestroy", graph)
        return executable

    def replay(self, graph: ctypes.c_void_p) -> None:
        """Starts a recorded graph."""
        self._enter()
        self._call("cuGraphLaunch", graph, self._stream)

    def _function(self, kernel: DeviceKernel) -> ctypes.c_void_p:
        """The kernel on the device, loaded once."""
        name = symbol(kernel)
        if name not in self._functions:
            self._enter()
            module, function, code = ctypes.c_void_p(), ctypes.c_void_p(), cubin(kernel, self.cc)
            self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(code))
            self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
            if kernel.shared:
                self._call("cuFuncSetAttribute", function, ctypes.c_int(_MAX_DYNAMIC_SHARED), ctypes.c_int(kernel.shared))
            self._functions[name] = function
        return self._functions[name]

    def _launch(self, function: ctypes.c_void_p, kernel: DeviceKernel, grid: tuple[int, int], record: bytes) -> None:
        size, buffer = ctypes.c_size_t(len(record)), ctypes.create_string_buffer(record, len(record))
        pointers = (ctypes.addressof(buffer), ctypes.addressof(size))
        extra = (ctypes.c_void_p * 5)(_BUFFER_POINTER, pointers[0], _BUFFER_SIZE, pointers[1], _END)
        shape = [ctypes.c_uint(extent) for extent in (*grid, 1, kernel.block, 1, 1, kernel.shared)]
        self._call("cuLaunchKernel", function, *shape, self._stream, None, extra)
