"""Benchmarks of threads: how work scales, what a barrier costs, and whether sessions fight that run at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

import numpy as np

from benchmarks.contest import Measured, Result, Settings, engines_of, measure
from benchmarks.data import INT8, network
from benchmarks.timed import Timed
from qrt.jit import Kernel, host_target, record_dtype
from qrt.ops.op import Array, Operand, Spec, Steps
from qrt.ops.program import Program
from qrt.report.bench import Engine, time_in_turns
from qrt.report.example import example_feeds
from qrt.runtime.plan import Packs, build

__all__ = ["barrier_row", "scaling_rows", "session_rows", "thread_rows"]

EMPTY = Kernel("empty__generic", record_dtype(("x", "i8")), "benchmarks.cpu_empty:empty")
# Steps of a plan, and calls of each session while the other runs: enough that starting them costs nothing beside them.
STEPS, CALLS = 10_000, 8


def thread_rows(settings: Settings) -> Iterator[Result]:
    """With several numbers of threads: --threads, or 1 and 2."""
    counts = _counts(settings)
    for name in ("resnet50", "mobilenet_v2"):
        yield from scaling_rows(name, counts, settings)
    yield barrier_row(counts, settings)


def _counts(settings: Settings) -> tuple[int, ...]:
    return settings.threads if len(settings.threads) > 1 else (1, 2)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def scaling_rows(name: str, counts: Sequence[int], settings: Settings) -> Iterator[Result]:
    """Each engine beside itself on fewer threads."""
    model = network(name)[INT8]
    notes: list[str] = []
    teams = [engines_of(model, example_feeds(model), threads, settings, notes) for threads in counts]
    everyone = [(threads, engine) for threads, team in zip(counts, teams, strict=True) for engine in team]
    settings.progress(name)
    by_engine: dict[str, list[Measured]] = {}
    for (threads, _), timing in zip(everyone, time_in_turns([engine for _, engine in everyone], settings.rounds), strict=True):
        by_engine.setdefault(timing.runtime, []).append(replace(measure(timing), engine=_threads(threads)))
    for engine, measured in by_engine.items():
        yield Result(f"{name}, {INT8}, {engine}", max(counts), measured, notes=notes if engine == "qrt" else [])


@dataclass(frozen=True)
class _Empty(Timed):
    """STEPS steps that do nothing; all threads meet after each."""

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (inputs[0],)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        for _ in range(STEPS):
            steps.step(EMPTY, x=inputs[0].ref)


def barrier_row(counts: Sequence[int], settings: Settings) -> Result:
    """Microseconds a step that does nothing: on several threads, those of a barrier."""
    settings.progress("barrier")
    x = np.zeros(1, np.int64)
    program = Program()
    program.inputs = [program.value(Spec(x.shape, x.dtype))]
    program.outputs = list(program.call(_Empty(), program.inputs, "empty"))
    plans = [build(program, host_target(), threads, Packs()) for threads in counts]
    engines = [Engine(_threads(count), version("qrt"), partial(plan.run, [x])) for count, plan in zip(counts, plans, strict=True)]
    measured = [measure(timing).scaled(1e3 / STEPS) for timing in time_in_turns(engines, settings.rounds)]
    return Result("barrier, qrt", max(counts), measured, "µs")


def session_rows(name: str, settings: Settings) -> Iterator[Result]:
    """Two sessions of a network, each on all the threads: called in turn by one Python thread, and at once by two."""
    model, threads = network(name)[INT8], max(_counts(settings))
    feeds = example_feeds(model)
    notes: list[str] = []
    pairs = zip(*(engines_of(model, feeds, threads, settings, heard) for heard in (notes, [])), strict=True)
    settings.progress(name)
    for pair in pairs:
        case = f"2 × {name}, {INT8}, {pair[0].runtime}"
        yield Result(case, threads, _in_turn_and_at_once(pair, settings), notes=notes if pair[0].runtime == "qrt" else [])


def _in_turn_and_at_once(pair: Sequence[Engine], settings: Settings) -> list[Measured]:
    """Milliseconds a call."""

    def calls(engine: Engine) -> Sequence[Array]:
        return [engine.run() for _ in range(CALLS)][-1]

    with ThreadPoolExecutor(len(pair)) as pool:
        in_turn = replace(pair[0], runtime="in turn", run=lambda: [calls(engine)[0] for engine in pair])
        at_once = replace(pair[0], runtime="at once", run=lambda: [result[0] for result in pool.map(calls, pair)])
        timings = time_in_turns([in_turn, at_once], settings.rounds)
    return [measure(timing).scaled(1 / (len(pair) * CALLS)) for timing in timings]
