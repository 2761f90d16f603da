"""What this machine can run."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path

from qrt.core.target import TARGETS, Target, choose_target

__all__ = ["cache_bytes", "host_target", "processor", "wants_cuda"]

_ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


# A target that is none of this machine's processor.
CUDA = "cuda"

# What a core has for itself where the system does not say: the least of what cores with 256-bit vectors were built with.
_CACHES = {1: 32 << 10, 2: 256 << 10}
_CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")


@functools.cache
def cache_bytes(level: int) -> int:
    """Bytes of a core's data cache of `level` 1 or 2, as Linux tells them (Documentation/ABI/testing/sysfs-devices-system-cpu)."""
    for index in sorted(_CACHE_FOLDER.glob("index*")):
        try:
            kind, at, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction" and int(at) == level and size.endswith("K"):
                return max(int(size[:-1]) << 10, _CACHES[level])
        except (OSError, ValueError):
            continue  # not told: the fallback
    return _CACHES[level]


@functools.cache
def processor() -> str:
    """What the processor is called, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


# LLVM's name → Linux's, for the features that rungs need.
_LINUX_NAMES = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "amx-tile": "amx_tile", "amx-int8": "amx_int8"}


def _linux_features() -> frozenset[str] | None:
    """What Linux says of an x86-64 processor, in LLVM's words; None if it says nothing."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    except OSError:
        return None
    needed = frozenset().union(*(target.needs for target in TARGETS if target.arch == "x86_64"))
    return None if flags is None else frozenset(name for name in needed if _LINUX_NAMES.get(name, name) in flags)


def _llvm_features() -> frozenset[str]:
    import llvmlite.binding as llvm

    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


@functools.cache
def _host_features() -> frozenset[str]:
    features = _linux_features()
    if features is None:
        features = _llvm_features()  # the same, and 40 ms slower
    return features if "amx-tile" not in features or _may_use_tiles() else features - {"amx-tile", "amx-int8"}


def _may_use_tiles() -> bool:
    """Asks Linux for the tile registers' state, which a process has to do once: Documentation/arch/x86/xstate.rst."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def _asked(wanted: str | None) -> str | None:
    return wanted or os.environ.get("QRT_TARGET") or None


def wants_cuda(wanted: str | None = None) -> bool:
    """Whether `wanted`, else the environment's QRT_TARGET, is a GPU. Touches none."""
    return _asked(wanted) == CUDA


def host_target(wanted: str | None = None) -> Target:
    """The target to compile the CPU's kernels for: `wanted`, else the environment's QRT_TARGET, else, and beside a GPU, the best this
    machine can run. Raises InvalidInput if the machine cannot run it."""
    wanted = None if wants_cuda(wanted) else _asked(wanted)
    machine = platform.machine().lower()
    return choose_target(_ARCHITECTURES.get(machine, machine), _host_features(), wanted)
