"""Floor 1: the only door to numba and llvmlite. Kernels in, addresses out."""

from qrt.jit.host import cache_bytes, host_target, wants_cuda
from qrt.jit.kernel import Kernel, choose, record_dtype

__all__ = ["Kernel", "cache_bytes", "choose", "host_target", "record_dtype", "wants_cuda"]
