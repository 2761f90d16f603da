"""Floor 1: the only door to numba and llvmlite. Kernels in, addresses out."""

from qrt.jit.host import host_target
from qrt.jit.kernel import Kernel, choose, record_dtype

__all__ = ["Kernel", "choose", "host_target", "record_dtype"]
