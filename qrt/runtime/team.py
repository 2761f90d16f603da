"""The thread team: one per process, shared by every session.

Workers live inside native code, without the GIL: they spin, then yield, then sleep on a semaphore. Runs on several threads
that are under way at once share the processors: each leaves one to each other. One that finds the team busy waits for some milliseconds
at most, and carries on alone. Results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import threading
from pathlib import Path

import numpy as np

from qrt.core.errors import InvalidInput
from qrt.core.forks import in_child
from qrt.core.target import Target
from qrt.jit import host_target
from qrt.jit.load import address
from qrt.runtime.kernels import EXECUTOR, LEAD, RUNTIME, SEMAPHORE_BYTES, TEAM, WORKER

__all__ = ["Team", "available_cpus", "checked_threads", "run_job", "team"]

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
# About 100 µs of spinning and as much of yielding: longer than the gap between two requests of a busy server, shorter
# than what a person would call a wasted core.
_SPINS, _YIELDS = 2000, 200
# Seconds that a run waits for the one that has the team, as long as a system lets a thread run before another: to begin beside it would
# take a core from one of its threads, and all others would wait for that one at their next barrier.
_PATIENCE = 0.004


@functools.cache
def available_cpus() -> int:
    """Processors this process may use: its affinity mask, cut by the cgroup's CPU quota; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: nothing cuts the mask
    return max(cpus, 1)


def checked_threads(num_threads: int | None) -> int:
    """The threads that a user asked for; None: `available_cpus`. Raises InvalidInput for what is no integer of 1 or more."""
    threads = available_cpus() if num_threads is None else num_threads
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InvalidInput(f"num_threads is {num_threads!r}: give an integer of 1 or more, or None for every processor")
    return threads


@functools.cache
def _entry(kernel_name: str, target: Target) -> ctypes._FuncPointer:
    kernel = {k.name: k for k in RUNTIME}[kernel_name]
    return _ENTRY(address(kernel, target))


class Team:
    """`size` threads, the caller's included."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = threading.RLock()
        target = host_target()
        rows = size // 8 + 1
        self._words = np.zeros((3 + 2 * rows + size, 8), np.int64)  # rows are cache lines
        self._record = np.zeros((), TEAM)
        starts = {"generation": 0, "job": 1, "done": 2, "parked": 3, "seen": 3 + rows, "beds": 3 + 2 * rows}
        for name, row in starts.items():
            self._record[name] = self._words[row].ctypes.data
        self._record["executor"] = address(EXECUTOR, target)
        self._record["spins"], self._record["yields"] = _SPINS, _YIELDS
        self._address = self._record.ctypes.data
        for array in (self._words, self._record):
            # Workers look at them until the process ends, and so after Python has freed everything that it knows of.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(array))
        self._lead, worker = _entry(LEAD.name, target), _entry(WORKER.name, target)
        for tid in range(size):
            ctypes.CDLL(None).sem_init(ctypes.c_void_p(int(self._record["beds"]) + SEMAPHORE_BYTES * tid), 0, 0)
        for tid in range(1, size):
            threading.Thread(target=worker, args=(self._address, tid, size), name=f"qrt-{tid}", daemon=True).start()

    def run(self, job: int, threads: int) -> None:
        """Runs the job at address `job` on `threads` threads, the caller's one of them. The caller holds `busy`."""
        self._record["new_job"] = job
        self._lead(self._address, 0, threads)


_teams: dict[int, Team] = {}
_making = threading.Lock()
# The threads of Python that are in a run on several threads. A key that an interrupt left behind goes with that thread's next run.
_running: dict[int, None] = {}


def _forget() -> None:
    """Threads do not survive a fork, nor will one of them ever finish a team and let go of the lock."""
    global _making
    _making = threading.Lock()
    _teams.clear()
    _running.clear()


in_child(_forget)


def team() -> Team:
    """The process's team, as large as the machine allows; started at first use."""
    found = _teams.get(0)
    if found is None:
        with _making:
            found = _teams.get(0)
            if found is None:
                found = _teams[0] = Team(max(available_cpus(), 2))
    return found


@functools.cache
def _executor() -> ctypes._FuncPointer:
    return _entry(EXECUTOR.name, host_target())


def run_job(job: int, threads: int) -> None:
    """Runs the steps that the JOB record at address `job` names, on up to `threads` threads; without the GIL."""
    if threads == 1:
        _executor()(job, 0, 1)
        return
    crew, caller = team(), threading.get_ident()
    try:
        _running[caller] = None
        try:
            held = crew.busy.acquire(blocking=False) or crew.busy.acquire(timeout=_PATIENCE)
            share = min(threads, crew.size + 1 - len(_running)) if held else 1
            if share > 1:
                crew.run(job, share)
        finally:
            try:  # noqa: SIM105 - contextlib.suppress makes calls of its own, between which an interrupt may come
                crew.busy.release()  # whatever `held` says: an interrupt may come before it says anything
            except RuntimeError:
                pass  # another thread has it
        if share <= 1:
            _executor()(job, 0, 1)
    finally:
        _running.pop(caller, None)
