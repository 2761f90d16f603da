"""How Python ends while others still hold what was handed to them."""

from __future__ import annotations

import subprocess
import sys


def test_arrays_that_outlive_python() -> None:
    """By DLPack: what others took, a capsule that nobody took, and one that was taken, wherever they are kept."""
    program = """
import builtins, sys
import numpy as np
from qrt.runtime import dlpack

class Given:
    def __init__(self):
        self.memory = np.arange(32, dtype=np.float32)
        self.capsule = dlpack.export(self.memory.ctypes.data, (32,), self.memory.dtype, (1, 0), self.memory)
    def __dlpack__(self, **how):
        return self.capsule
    def __dlpack_device__(self):
        return 1, 0

first = Given()
sys.first = np.from_dlpack(first)
builtins.second, np.third, fourth = (np.from_dlpack(Given()) for _ in range(3))
builtins.fifth = Given()
gone = np.from_dlpack(Given())
del gone
assert len(dlpack._given) == 5
print(int(sys.first.sum()), int(fourth.sum()))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "496 496\n", "")
