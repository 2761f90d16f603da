"""The native side of the runtime: the executor that walks a plan's table, and the loop a worker thread waits in."""

from __future__ import annotations

from qrt.jit.lang import device, fields, i64
from qrt.jit.lang.atomic import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    atomic_store,
    call,
    cycles,
    pause,
    sched_yield,
    semaphore_post,
    semaphore_wait,
    usleep,
)
from qrt.runtime.kernels import SEMAPHORE_BYTES

# A barrier between two threads that run takes less than a microsecond; after about 10, the other one has a longer share, or does not run.
# After about a millisecond it waits for the core of another program: yields do not help then, as this core has to idle before the system
# moves anybody to it. A nap takes some 70 µs, so that earlier ones made runs longer.
SPINS, YIELDS, NAP = 200, 5000, 20


@device
def reach(word, count):  # type: ignore[no-untyped-def]
    """Waits until the int64 at address `word` is `count` or more: spins, then yields, then naps."""
    looks = 0
    while atomic_load(word) < count:
        looks += 1
        if looks <= SPINS:
            pause()
        elif looks <= SPINS + YIELDS:
            sched_yield()
        else:
            usleep(NAP)


def executor():  # type: ignore[no-untyped-def]
    """Every thread walks the steps of the table; those that share a step meet at a barrier after it."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        table = i64(r.table)
        clock = i64(r.clock)
        generation = 0
        if r.clock != 0 and tid == 0:
            clock[r.begin] = cycles()
        for i in range(r.begin, r.end):
            function = table[4 * i]
            step = table[4 * i + 1]
            sharers = min(table[4 * i + 2], nthreads)
            if tid < sharers:
                call(function, step, tid, sharers)
            # A step on one thread followed by a step on the same one thread needs no meeting.
            if nthreads > 1 and table[4 * i + 3] != 0:
                generation += 1
                atomic_add(r.barrier, 1)
                reach(r.barrier, generation * nthreads)
            if r.clock != 0 and tid == 0:
                clock[i + 1] = cycles()

    return kernel


def lead():  # type: ignore[no-untyped-def]
    """Runs the job `new_job` with `nthreads` threads, the caller as the first: hands it to the workers, wakes those that sleep, does its
    share, and returns when every worker has left. One native call: nothing can come between, a signal's exception included.

    The low 16 bits of the generation's word say how many threads share the job, so that a worker who looks late never
    takes one job's generation for another's share.
    """

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        atomic_store(r.done, 0)
        atomic_store(r.job, r.new_job)
        atomic_store(r.generation, (((atomic_load(r.generation) >> 16) + 1) << 16) | nthreads)
        for worker in range(1, nthreads):
            if atomic_exchange(r.parked + 8 * worker, 0) != 0:
                semaphore_post(r.beds + SEMAPHORE_BYTES * worker)
        call(r.executor, r.new_job, 0, nthreads)
        reach(r.done, nthreads - 1)

    return kernel


def worker():  # type: ignore[no-untyped-def]
    """Waits for jobs and does its share of them, for ever: spins, then yields, then sleeps on its semaphore."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        seen = i64(r.seen)
        idle = 0
        while True:
            generation = atomic_load(r.generation)
            if generation != seen[tid]:
                seen[tid] = generation
                sharers = generation & 0xFFFF
                if tid < sharers:
                    call(r.executor, atomic_load(r.job), tid, sharers)
                    atomic_add(r.done, 1)
                idle = 0
                continue
            idle += 1
            if idle < r.spins:
                pause()
            elif idle < r.spins + r.yields:
                sched_yield()
            else:
                atomic_store(r.parked + 8 * tid, 1)
                # A job posted between the last look and parking is not missed: either we see it now and take our mark
                # back, or the leader has taken it and wakes us.
                if atomic_load(r.generation) == seen[tid] or atomic_exchange(r.parked + 8 * tid, 0) == 0:
                    semaphore_wait(r.beds + SEMAPHORE_BYTES * tid)
                idle = 0

    return kernel
