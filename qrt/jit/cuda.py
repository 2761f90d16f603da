"""CUDA: is a GPU here, and kernel → cubin. numba-cuda is imported only to compile, NVIDIA's driver only to ask what is there.

A device kernel is written in Python like those of the CPU (`qrt/jit/lang/cuda.py`), compiled to PTX by numba-cuda and linked to a cubin by
nvJitLink; neither needs a GPU. Cubins lie on disk beside the CPU's objects, under a digest of everything that shaped them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qrt.core.errors import KernelError
from qrt.core.record import record
from qrt.jit import cache

__all__ = ["FORKED", "NOT_INITIALIZED", "DeviceKernel", "Usage", "available", "compile_cubin", "cubin", "missing", "ptx", "symbol"]

# What makes PTX and what links it: of one minor version of CUDA, or the second does not know what the first one writes.
_WRITER, _LINKER = "nvidia-nvvm", "nvidia-nvjitlink"
# What kernels are compiled with. Whatever of these changes may change code.
_PACKAGES = ("numba", "numba-cuda", "llvmlite", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", _WRITER, _LINKER)
_LOCK = threading.Lock()
# CUDA 13.0 as cuDriverGetVersion says it. A driver loads code of its own major version and of older ones.
_DRIVER = 13000
NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED
FORKED = "a process that was forked from one that used CUDA cannot use it: start it afresh (multiprocessing's 'spawn')"


@record
class DeviceKernel:
    """A kernel of the GPU, written in Python: one row of a family's table.

    `record`: its parameters in order; its bytes are the launch's parameter buffer. `source`: "module:function"; the function, given
    `params`, returns the Python kernel. `block`: threads of a block. `shared`: bytes of dynamic shared memory. `specific`: it speaks
    words of one compute capability, which no later one has to know.
    """

    name: str
    record: np.dtype[np.void]
    source: str
    params: tuple[int | str, ...] = ()
    block: int = 256
    shared: int = 0
    specific: bool = False

    @property
    def parameters(self) -> int:
        """Bytes of its parameters: the record without what alignment adds at its end."""
        return max(offset + kind.itemsize for kind, offset, *_ in (self.record.fields or {}).values())


@record
class Usage:
    """What a thread of a compiled kernel takes: registers, and bytes of stack and of spills (which should be 0). `losses`: what the linker
    says of performance that may be lost."""

    registers: int
    stack: int
    spills: int
    losses: tuple[str, ...] = ()


# -- is it here ---------------------------------------------------------------------------------------------------------
def missing() -> str | None:
    """What keeps CUDA from being used here and what to do about it, or None."""
    absent = [name for name in _PACKAGES if _version(name) is None]
    if absent:
        return f"{', '.join(absent)} is not installed: pip install 'qrt[cuda]'"
    writer, linker = ((_version(name) or "").split(".")[:2] for name in (_WRITER, _LINKER))
    if writer != linker:
        return f"{_WRITER} is of CUDA {'.'.join(writer)} and {_LINKER} of {'.'.join(linker)}: pip install 'qrt[cuda]'"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "NVIDIA's driver (libcuda.so.1) is not installed: install a driver for CUDA 13 (580 or later)"
    if (status := driver.cuInit(0)) == NOT_INITIALIZED:
        return FORKED
    if status:
        return f"NVIDIA's driver does not start (cuInit gave {status}): see whether nvidia-smi finds a device"
    count, version = ctypes.c_int(), ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) or version.value < _DRIVER:
        said = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"NVIDIA's driver is for CUDA {said}, and does not load code of CUDA 13: install one of 580 or later"
    if (status := driver.cuDeviceGetCount(ctypes.byref(count))) or count.value == 0:
        return "NVIDIA's driver finds no device: see nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


def available() -> bool:
    """Whether CUDA's packages, a driver and a device are here."""
    return missing() is None


@functools.cache
def _version(package: str) -> str | None:
    from importlib import metadata  # here: it takes 10 ms

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# -- kernel → cubin --------------------------------------------------------------------------------------------------------
def symbol(kernel: DeviceKernel) -> str:
    """The kernel's name in its cubin."""
    return f"qrt_{kernel.name}"


def cubin(kernel: DeviceKernel, cc: tuple[int, int]) -> bytes:
    """The kernel's code for devices of the compute capability `cc`, from disk where it is known. Needs no GPU.

    Raises KernelError if it cannot be compiled.
    """
    return cache.fetch_file(_key(kernel, cc), lambda: compile_cubin(kernel, cc)[0])


def _key(kernel: DeviceKernel, cc: tuple[int, int]) -> str:
    here = Path(__file__).parent
    digest = cache.digest_of_sources(kernel.source.partition(":")[0], "cuda*.py", [*sorted((here / "lang").glob("*.py")), Path(__file__)])
    versions = [_version(name) for name in _PACKAGES]
    parts = (kernel.name, kernel.source, kernel.params, kernel.record.descr, kernel.block, kernel.specific, cc, versions)
    return f"{kernel.name}-{hashlib.sha256(cache.MAGIC + digest + repr(parts).encode()).hexdigest()[:24]}.cubin"


@contextlib.contextmanager
def _rounding_one_by_one() -> Iterator[None]:
    """Within it NVVM rounds products and sums one by one, and makes no one instruction of x · y + z. numba-cuda hands no such option on."""
    from numba.cuda.cudadrv import nvvm

    compile_ir = nvvm.compile_ir
    nvvm.compile_ir = functools.partial(compile_ir, fma=False)
    try:
        yield
    finally:
        nvvm.compile_ir = compile_ir


def ptx(kernel: DeviceKernel, cc: tuple[int, int]) -> str:
    """The kernel in PTX, which nvJitLink turns into the code of a device."""
    module_name, _, function_name = kernel.source.partition(":")
    try:
        with _LOCK:
            from numba import cuda, types

            if "numba_cuda" not in (cuda.__file__ or ""):
                raise ImportError("Python did not read numba-cuda's .pth file: install it into an environment, not a folder of PYTHONPATH")
            kinds = {"i8": types.int64, "i4": types.int32, "f4": types.float32}
            signature = types.void(*(kinds[kernel.record[name].str[1:]] for name in kernel.record.names or ()))
            function: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)(*kernel.params)
            bounds, which = (kernel.block, 1), (*cc, "a") if kernel.specific else cc
            with _rounding_one_by_one():
                text, _ = cuda.compile(function, signature, cc=which, device=False, abi="numba", output="ptx", launch_bounds=bounds)
    except Exception as error:  # numba raises many kinds, and one of its own where libraries are missing
        raise KernelError(f"kernel {kernel.name} ({kernel.source}) does not compile for CUDA: {error}") from error
    entry = re.search(r"\.entry\s+(\w+)", text)
    if entry is None:
        raise KernelError(f"kernel {kernel.name} has no entry point in its PTX")
    return str(text.replace(entry[1], symbol(kernel)))


def compile_cubin(kernel: DeviceKernel, cc: tuple[int, int]) -> tuple[bytes, Usage]:
    """The kernel compiled and linked for `cc`, and what it takes of a device, as the linker says."""
    text = ptx(kernel, cc).encode()
    try:
        from cuda.bindings import nvjitlink
    except ImportError as error:
        raise KernelError(f"kernel {kernel.name} cannot be linked: pip install 'qrt[cuda]'") from error
    options = [f"-arch=sm_{cc[0]}{cc[1]}{'a' if kernel.specific else ''}", "-O3", "-verbose"]
    try:
        handle = nvjitlink.create(len(options), options)
        try:
            nvjitlink.add_data(handle, nvjitlink.InputType.PTX, text, len(text), kernel.name)
            nvjitlink.complete(handle)
            code = bytearray(nvjitlink.get_linked_cubin_size(handle))
            nvjitlink.get_linked_cubin(handle, code)
            log = bytearray(nvjitlink.get_info_log_size(handle))
            nvjitlink.get_info_log(handle, log)
        finally:
            nvjitlink.destroy(handle)
    except nvjitlink.nvJitLinkError as error:  # among others for a device that is newer than the linker
        raise KernelError(f"kernel {kernel.name} does not link for CUDA ({options[0]}): {error}") from error
    return bytes(code), _usage(kernel, log.decode(errors="replace"))


def _usage(kernel: DeviceKernel, log: str) -> Usage:
    """What the linker says: in the words of ptxas -v of each function, and then of the kernel with all that it calls."""
    registers = [int(count) for count in re.findall(r"[Uu]sed (\d+) registers", log)]
    frames = [int(count) for count in re.findall(r"(\d+) (?:bytes stack frame|stack,)", log)]
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", log)]
    if not (registers and frames and spills):
        raise KernelError(f"kernel {kernel.name}: nvJitLink does not say what it takes: {log!r}")
    return Usage(max(registers), max(frames), sum(spills), tuple(re.findall(r"Potential Performance Loss: (.*)", log)))
