"""Records and kernels of the runtime itself."""

from __future__ import annotations

import numpy as np

from qrt.jit import Kernel, record_dtype

__all__ = ["EXECUTOR", "JOB", "LEAD", "RUNTIME", "SEMAPHORE_BYTES", "STEP", "TEAM", "WORKER"]

# One row of a plan's table: kernel address, record address, threads that share it, 1 if all threads meet after it.
STEP = np.dtype([("kernel", "i8"), ("record", "i8"), ("threads", "i8"), ("meet", "i8")])

# `clock`: 0, or the address of end − begin + 1 int64 that get the cycle counter after each step.
JOB = record_dtype(("table", "i8"), ("begin", "i8"), ("end", "i8"), ("barrier", "i8"), ("clock", "i8"))

# Room for the C library's sem_t (32 bytes on Linux), each on a cache line of its own.
SEMAPHORE_BYTES = 64

TEAM = record_dtype(
    ("generation", "i8"),  # addresses of shared words, each on a cache line of its own
    ("job", "i8"),
    ("done", "i8"),
    ("parked", "i8"),  # addresses of arrays, one int64 a worker
    ("seen", "i8"),
    ("beds", "i8"),  # a semaphore for each worker, SEMAPHORE_BYTES apart
    ("executor", "i8"),
    ("new_job", "i8"),
    ("spins", "i8"),
    ("yields", "i8"),
)

EXECUTOR = Kernel("executor_plan__generic", JOB, "qrt.runtime.cpu:executor")
LEAD = Kernel("team_lead__generic", TEAM, "qrt.runtime.cpu:lead")
WORKER = Kernel("team_worker__generic", TEAM, "qrt.runtime.cpu:worker")
RUNTIME = (EXECUTOR, LEAD, WORKER)
