"""Calling a kernel by hand, and arrays that end where memory ends."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from qrt.core.target import Target
from qrt.jit import Kernel
from qrt.jit.load import address


def call(kernel: Kernel, target: Target, **values: np.ndarray | int) -> None:
    """Runs the kernel on one thread; an array stands for its address."""
    record = np.zeros((), kernel.record)
    for name, value in values.items():
        record[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
    ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address(kernel, target))(record.ctypes.data, 0, 1)


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy whose last byte is the last before memory that may not be touched: reading past it ends the process."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    block = mmap.mmap(-1, size + page)
    whole = np.frombuffer(block, np.uint8)  # keeps the mapping alive
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(whole.ctypes.data + size), ctypes.c_size_t(page), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    out: np.ndarray = whole[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out
