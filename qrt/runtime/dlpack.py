"""Arrays in memory that NumPy cannot see: what they are, and how libraries hand them to each other without a copy.

`__cuda_array_interface__`: version 3 of Numba's "CUDA Array Interface". DLPack: the structures of dlpack.h 0.8 (DLManagedTensor), in the
capsules of the Python specification.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from qrt.core.dtypes import dtype_of
from qrt.core.errors import InvalidInput
from qrt.core.record import record

__all__ = ["CPU", "CUDA", "Seen", "export", "look"]

# DLDeviceType
CPU, CUDA = 1, 2
_NAME = b"dltensor"
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLDataTypeCode
_CODES = {kind: code for code, kind in _KINDS.items()}
_BFLOAT = 4


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_python: Any = ctypes.pythonapi
_new = _python.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
# Of a capsule as an object, and as an address while it is being destroyed.
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _python))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _python))
_pointer_of_dying = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _python))


@record
class Seen:
    """An array somewhere. `strides` are in bytes, None if it is C-contiguous. `stream`: where work on it may be under way, or None.
    `array`: what was given; `owner`: keeps the memory alive."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None
    read_only: bool
    device: tuple[int, int]
    stream: int | None
    array: object
    owner: object

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether it is C-contiguous."""
        if self.strides is None or 0 in self.shape:
            return True
        expected = self.dtype.itemsize
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1 and stride != expected:
                return False
            expected *= extent
        return True


def look(array: Any, stream: int, ordinal: int) -> Seen | None:
    """What `array` is, if it is one on a GPU, or says that it is; None for what offers neither protocol.

    `stream`: where it is going to be used, for a producer by DLPack to order its own work before. `ordinal`: the device that an address
    without a device's number is on. Raises InvalidInput for an array that is malformed.
    """
    try:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is not None:
            return _of_interface(interface, array, ordinal)
        if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
            kind, number = array.__dlpack_device__()
            capsule = array.__dlpack__(stream=stream if kind == CUDA else None)
            return _of_capsule(capsule, array, (int(kind), int(number)))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, BufferError, RuntimeError) as error:
        raise InvalidInput(f"what it says of its memory makes no sense: {error}") from error
    return None


def _of_interface(interface: Any, array: object, ordinal: int) -> Seen:
    if interface.get("mask") is not None:
        raise ValueError("it has a mask")
    address, read_only = interface["data"]
    strides = interface.get("strides")
    stream = interface.get("stream")
    if stream is not None and (isinstance(stream, bool) or not isinstance(stream, int) or stream < 1):
        raise ValueError(f"its stream is {stream!r}")
    shape = _extents(interface["shape"])
    return Seen(
        _address(address),
        shape,
        np.dtype(interface["typestr"]),
        None if strides is None else _steps(strides, len(shape)),
        bool(read_only),
        (CUDA, ordinal),
        stream,
        array,
        array,
    )


def _of_capsule(capsule: object, array: object, device: tuple[int, int]) -> Seen:
    """The capsule stays as it is: it gives the memory back itself when it dies."""
    tensor = _Managed.from_address(_pointer(capsule, _NAME)).tensor
    kind = "bfloat" if tensor.code == _BFLOAT and tensor.bits == 16 else _KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1 or tensor.bits % 8:
        raise ValueError(f"its elements are of DLPack's type ({tensor.code}, {tensor.bits}, {tensor.lanes})")
    if (tensor.device_type, tensor.device_id) != device:
        raise ValueError(f"it is on device {(tensor.device_type, tensor.device_id)}, and said {device}")
    dtype = dtype_of("bfloat16") if kind == "bfloat" else np.dtype(f"{kind}{tensor.bits // 8}")
    shape = _extents(tensor.shape[: tensor.ndim])
    strides = tuple(step * dtype.itemsize for step in tensor.strides[: tensor.ndim]) if tensor.strides else None
    return Seen(_address((tensor.data or 0) + tensor.byte_offset), shape, dtype, strides, False, device, None, array, capsule)


def _address(address: Any) -> int:
    if isinstance(address, bool) or not isinstance(address, int) or not 0 <= address < 1 << 63:
        raise ValueError(f"its address is {address!r}")
    return address


def _extents(shape: Sequence[Any]) -> tuple[int, ...]:
    if not all(isinstance(extent, int) and 0 <= extent < 1 << 48 for extent in shape):
        raise ValueError(f"its shape is {shape!r}")
    return tuple(shape)


def _steps(strides: Sequence[Any], rank: int) -> tuple[int, ...]:
    if len(strides) != rank or not all(isinstance(step, int) for step in strides):
        raise ValueError(f"its strides are {strides!r}")
    return tuple(strides)


# -- giving -----------------------------------------------------------------------------------------------------------------
# What is handed out: the structure with what it points at, and the memory's owner, by the structure's address.
_given: dict[int, tuple[object, ...]] = {}


def _callbacks() -> tuple[Any, Any]:
    """What others call: who took a capsule and has done with it, and Python when one dies. They need no name of this module, whose names
    go before the last of the arrays when Python ends."""
    given, name, is_valid, pointer = _given, _NAME, _is_valid, _pointer_of_dying

    def forget(managed: int) -> None:
        given.pop(managed, None)

    def dispose(capsule: int) -> None:
        if is_valid(capsule, name):  # one that nobody took is given back by nobody else
            given.pop(pointer(capsule, name), None)

    return _Deleter(forget), ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(dispose)


_forgets, _disposes = _callbacks()


@atexit.register
def _leave() -> None:
    """When Python ends, what others hold stays as it is: when they have done with it, there may be no Python any more to be told so."""
    for managed, *_ in _given.values():
        managed.deleter = _Deleter()  # type: ignore[attr-defined]  # none
    for kept in (_given, _forgets, _disposes):
        _python.Py_IncRef(ctypes.py_object(kept))


def export(address: int, shape: Sequence[int], dtype: np.dtype[Any], device: tuple[int, int], owner: object) -> object:
    """A DLPack capsule of C-contiguous memory, which keeps `owner` alive until whoever takes it has done with it."""
    extents = (ctypes.c_int64 * len(shape))(*shape)
    code = _BFLOAT if dtype.name == "bfloat16" else _CODES.get(dtype.kind)
    if code is None:
        raise InvalidInput(f"DLPack has no type for {dtype}")
    tensor = _Tensor(address, *device, len(shape), code, 8 * dtype.itemsize, 1, extents, None, 0)
    managed = _Managed(tensor, None, _forgets)
    where = ctypes.addressof(managed)
    _given[where] = (managed, extents, owner)
    capsule: object = _new(where, _NAME, ctypes.cast(_disposes, ctypes.c_void_p))
    return capsule
