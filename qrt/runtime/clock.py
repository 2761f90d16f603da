"""The cycle counter that profiled plans read, tied to `time.perf_counter_ns`."""

from __future__ import annotations

import time

import numpy as np

from qrt.ops.op import Array
from qrt.runtime.kernels import JOB
from qrt.runtime.team import run_job

__all__ = ["Clock", "cycles"]


def cycles() -> int:
    """The cycle counter now: what the executor writes before its first step, of none."""
    counter = np.zeros(1, np.int64)
    job = np.zeros(1, JOB)
    job["clock"] = counter.ctypes.data
    run_job(job.ctypes.data, 1)
    return int(counter[0])


class Clock:
    """Turns cycle counts into time: the counter runs at a constant rate, measured between two moments far apart."""

    def __init__(self) -> None:
        cycles()  # the first call compiles
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[int, int]:
        return time.perf_counter_ns(), cycles()

    def microseconds(self, counts: Array) -> Array:
        """Microseconds since this clock was made, float64, for int64 `counts` of the counter."""
        (ns, count), (start_ns, start_count) = self._now(), self._start
        return (counts - start_count) * ((ns - start_ns) / max(count - start_count, 1) / 1000.0)
