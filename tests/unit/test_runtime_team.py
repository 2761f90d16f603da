"""The thread team: every share of a job runs once, whatever the number of threads, and a fork gets a team of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from qrt.jit import Kernel, record_dtype
from qrt.jit.host import host_target
from qrt.jit.load import address
from qrt.runtime import team as team_module
from qrt.runtime.kernels import JOB, STEP
from qrt.runtime.team import Team, available_cpus, run_job, team

COUNT = Kernel("count__generic", record_dtype(("counts", "i8"), ("total", "i8")), "kernels.cpu_runtime:count")


class Job:
    """A plan by hand: `steps` times the counting kernel, shared by `sharers` threads."""

    def __init__(self, steps: int, sharers: int, meet: bool = True) -> None:
        self.counts, self.total = np.zeros((64, 8), np.int64), np.zeros(1, np.int64)
        self._record = np.zeros(1, COUNT.record)
        self._record["counts"], self._record["total"] = self.counts.ctypes.data, self.total.ctypes.data
        self._table = np.zeros(steps, STEP)
        self._table["kernel"] = address(COUNT, host_target())
        self._table["record"] = self._record.ctypes.data
        self._table["threads"] = sharers
        self._table["meet"] = int(meet)
        self._table["meet"][-1] = 1
        self.barrier, self.clock = np.zeros(8, np.int64), np.zeros(steps + 1, np.int64)
        self.record = np.zeros(1, JOB)
        self.record["table"], self.record["end"] = self._table.ctypes.data, steps
        self.record["barrier"] = self.barrier.ctypes.data

    @property
    def address(self) -> int:
        self.barrier[0] = 0
        return int(self.record.ctypes.data)


@pytest.fixture(scope="module")
def crew() -> Team:
    """More threads than this machine may have cores."""
    return Team(5)


def test_each_thread_takes_its_share_once(crew: Team) -> None:
    for threads in range(2, 6):
        job = Job(steps=7, sharers=5)
        crew.run(job.address, threads)
        np.testing.assert_array_equal(job.counts[:6, 0], [7] * threads + [0] * (6 - threads))


def test_jobs_of_changing_width_never_mix(crew: Team) -> None:
    # A worker that looks late at a narrow job must not take a share of the wide one that follows, twice.
    jobs = {threads: Job(steps=1, sharers=5) for threads in (2, 5)}
    for _ in range(1500):
        for threads, job in jobs.items():
            crew.run(job.address, threads)
    for threads, job in jobs.items():
        np.testing.assert_array_equal(job.counts[:6, 0], [1500] * threads + [0] * (6 - threads))


def test_sleeping_workers_are_woken(crew: Team) -> None:
    job = Job(steps=3, sharers=5)
    for _ in range(3):
        time.sleep(0.05)  # long past spinning and yielding
        crew.run(job.address, 4)
    assert job.total[0] == 3 * 3 * 4


def test_steps_for_fewer_threads(crew: Team) -> None:
    job = Job(steps=6, sharers=1, meet=False)
    crew.run(job.address, 4)
    np.testing.assert_array_equal(job.counts[:4, 0], [6, 0, 0, 0])
    job = Job(steps=6, sharers=2)
    crew.run(job.address, 4)
    np.testing.assert_array_equal(job.counts[:4, 0], [6, 6, 0, 0])


@contextlib.contextmanager
def busy(crew: Team) -> Iterator[threading.Event]:
    """Another thread has the team, until the event is set or the block ends."""
    has, done = threading.Event(), threading.Event()

    def work() -> None:
        with crew.busy:
            has.set()
            done.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert has.wait(60)
    try:
        yield done
    finally:
        done.set()
        thread.join(60)


def test_a_run_that_finds_the_team_busy_carries_on_alone() -> None:
    job = Job(steps=4, sharers=2)
    with busy(team()):
        run_job(job.address, 2)
    np.testing.assert_array_equal(job.counts[:2, 0], [4, 0])
    run_job(job.address, 2)
    assert job.counts[1, 0] == 4


def test_a_run_waits_a_little_for_the_one_that_has_the_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_module, "_PATIENCE", 60.0)
    job, crew = Job(steps=4, sharers=2), team()
    with busy(crew) as done:
        timer = threading.Timer(0.02, done.set)
        timer.start()
        run_job(job.address, 2)
        timer.join()
    np.testing.assert_array_equal(job.counts[:2, 0], [4, 4])


@pytest.mark.parametrize("taken", [True, False], ids=["as soon as the team is taken", "before"])
def test_an_interrupt_leaves_the_team_free(crew: Team, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    class Interrupted:
        release = crew.busy.release

        def acquire(self, blocking: bool) -> bool:
            if taken:
                free.acquire()
            raise KeyboardInterrupt

    free = crew.busy
    monkeypatch.setattr(team_module, "team", lambda: crew)
    job = Job(steps=3, sharers=5)
    with monkeypatch.context() as patch:
        patch.setattr(crew, "busy", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            run_job(job.address, 5)
    assert not job.counts.any()
    thread = threading.Thread(target=run_job, args=(job.address, 5))
    thread.start()
    thread.join(60)
    assert (job.counts[:5, 0] == 3).all()
    assert team_module._running == {}


def test_runs_at_once_leave_a_processor_to_each_other(crew: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_module, "team", lambda: crew)
    for others in range(7):
        monkeypatch.setattr(team_module, "_running", dict.fromkeys(range(others)))
        job = Job(steps=3, sharers=5)
        run_job(job.address, 5)
        share = max(5 - others, 1)
        np.testing.assert_array_equal(job.counts[:6, 0], [3] * share + [0] * (6 - share))
        assert team_module._running == dict.fromkeys(range(others))


def test_a_run_that_was_interrupted_is_counted_no_longer_than_to_the_next(crew: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_module, "team", lambda: crew)
    monkeypatch.setattr(team_module, "_running", {threading.get_ident(): None})
    job = Job(steps=3, sharers=5)
    run_job(job.address, 5)
    assert (job.counts[:5, 0] == 3).all()
    assert team_module._running == {}


def test_runs_from_many_python_threads() -> None:
    jobs = [Job(steps=3, sharers=2) for _ in range(6)]

    def work(job: Job) -> None:
        for _ in range(300):
            run_job(job.address, 2)

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for job in jobs:
        assert job.counts[0, 0] == 900
        assert 0 <= job.counts[1, 0] <= 900


def test_the_clock_never_runs_back() -> None:
    job = Job(steps=5, sharers=2)
    job.record["clock"] = job.clock.ctypes.data
    run_job(job.address, 2)
    assert (np.diff(job.clock) > 0).all()
    assert job.clock[0] > 0


def test_a_forked_child_has_a_team_of_its_own() -> None:
    job = Job(steps=4, sharers=2)
    run_job(job.address, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Python 3.12 on, forking with threads warns
        child = os.fork()
    if child == 0:
        status = 1
        try:
            run_job(job.address, 2)
            status = 0 if job.counts[:2, 0].tolist() == [8, 8] else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(found[1]) == 0
    run_job(job.address, 2)  # the parent's team goes on
    assert job.counts[:2, 0].tolist() == [8, 8]


FORK = """
import os, threading, time, warnings
import {module} as module
from qrt.jit import host_target
from qrt.jit.compile import object_code
from qrt.runtime import team
from qrt.runtime.kernels import LEAD
owner = {owner}
plain = owner.{function}
begun = threading.Event()
def work():
    {work}
def slow(*args):
    begun.set()
    time.sleep(1)
    return plain(*args)
owner.{function} = slow
other = threading.Thread(target=work)
other.start()
begun.wait()
warnings.simplefilter("ignore")  # from Python 3.12 on, forking with threads warns
if (child := os.fork()) == 0:
    work()
    os._exit(0)
other.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(
    ("module", "owner", "function", "work"),
    [
        ("qrt.runtime.team", "module.Team", "__init__", "team.team()"),
        ("qrt.jit.load", "module", "code_of", "team.team()"),
        ("qrt.jit.compile", "module", "_front_end", "object_code(LEAD, host_target())"),
    ],
)
def test_a_fork_while_another_thread_has_a_lock(module: str, owner: str, function: str, work: str) -> None:
    """That thread is not in the child, which makes a team, links and compiles all the same. Locks of numba and of imports are not ours."""
    program = FORK.format(module=module, owner=owner, function=function, work=work)
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "0\n", result.stderr


def test_the_interpreter_ends_while_workers_wait() -> None:
    program = "from qrt.runtime.team import team; team(); print('done')"
    result = subprocess.run([sys.executable, "-I", "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


# -- how many threads -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("quota", "wanted"), [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("900000 100000", 8), ("?", 8)]
)
def test_threads_follow_affinity_and_quota(quota: str, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class File:
        def __init__(self, path: str) -> None:
            assert path == "/sys/fs/cgroup/cpu.max"

        def read_text(self) -> str:
            return quota

    monkeypatch.setattr(team_module, "Path", File)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    available_cpus.cache_clear()
    try:
        assert available_cpus() == wanted
    finally:
        available_cpus.cache_clear()


def test_memory_of_workers_outlives_the_team() -> None:
    """Workers look for jobs until the process ends; what they look at must not be freed when Python shuts down before."""
    crew = Team(2)
    words = weakref.ref(crew._words), weakref.ref(crew._record)
    del crew
    gc.collect()
    assert all(word() is not None for word in words)
