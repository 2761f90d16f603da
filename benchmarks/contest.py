"""What every benchmark does: engines run the same file on the same feed, in turns, once their results agreed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qrt import Model
from qrt.ops.op import Array
from qrt.report.bench import Engine, Timing, peer_engine, qrt_engine, time_in_turns

__all__ = ["FLOAT", "Measured", "Result", "Settings", "Skipped", "contest", "engines_of", "measure", "reason"]

# The kind of model whose times in other runtimes stand beside int8's as well.
FLOAT = "float32"


class Skipped(Exception):
    """A benchmark that cannot run here, and why."""


@dataclass(frozen=True)
class Settings:
    """`peers`: names of qrt.report.bench.PEERS. `threads`: of every engine; each number gives results of its own. `rounds`: A B A B …"""

    peers: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    rounds: int = 50
    progress: Callable[[str], object] = lambda doing: None

    @property
    def launches(self) -> int:
        """Rounds of what starts a process each time."""
        return min(self.rounds, 10)


@dataclass
class Measured:
    """What one engine took in each round. `error`: largest difference to qrt's outputs, relative to their range."""

    engine: str
    version: str
    rounds: list[float]
    error: float = 0.0

    @property
    def minimum(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def scaled(self, factor: float) -> Measured:
        """The same for a part, or a multiple, of what a round did."""
        return replace(self, rounds=[value * factor for value in self.rounds])


@dataclass
class Result:
    """One row: ratios are medians beside the first engine's. `rate`: 10⁹ operations or bytes a second of a kernel, `share`: of the peak.
    `threads`: 0 on a GPU."""

    case: str
    threads: int
    engines: list[Measured]
    unit: str = "ms"
    rate: float | None = None
    share: float | None = None
    rate_unit: str = "GOP/s"
    notes: list[str] = field(default_factory=list)

    def ratio(self, engine: Measured) -> float:
        """How many times as much as the first engine it took."""
        return engine.median / self.engines[0].median


def contest(models: Mapping[str, Model], feeds: Mapping[str, Array], threads: int, settings: Settings, case: str = "") -> list[Result]:
    """A result for each of `models` (kind → model), all timed together.

    Other runtimes' times of the kind FLOAT stand beside those of the other kinds too.
    """
    teams, results, everyone = {}, [], []
    for kind, model in models.items():
        notes: list[str] = []
        teams[kind] = engines_of(model, feeds, threads, settings, notes)
        everyone += teams[kind]
        results.append(Result(", ".join(filter(None, (case, kind))), threads, [], notes=notes))
    settings.progress(f"{case} on {threads} threads")
    timings = iter(time_in_turns(everyone, settings.rounds))
    measured = {kind: [measure(next(timings)) for _ in team] for kind, team in teams.items()}
    for kind, result in zip(models, results, strict=True):
        result.engines = measured[kind]
        if kind != FLOAT:
            result.engines = result.engines + [replace(m, engine=f"{m.engine} {FLOAT}") for m in measured.get(FLOAT, [])[1:]]
    return results


def measure(timing: Timing) -> Measured:
    """A timing as part of a result."""
    return Measured(timing.runtime, timing.version, timing.rounds, timing.error)


def engines_of(model: Model, feeds: Mapping[str, Array], threads: int, settings: Settings, notes: list[str]) -> list[Engine]:
    """qrt and every peer that runs `model` and agrees with it; `notes` hears of those that do not."""
    ours = qrt_engine(model, feeds, threads)
    expected: Sequence[Array] = ours.run()
    engines, content = [ours], model.to_proto().SerializeToString()
    for name in settings.peers:
        try:
            engines.append(peer_engine(name, content, feeds, threads, expected))
        except Exception as error:  # each runtime has errors of its own; a model that one cannot run is no reason to stop
            notes.append(f"{name}: {reason(error)}")
    return engines


def reason(error: Exception) -> str:
    """An error as one short line, without the places in a runtime's own source that it begins with."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from"))[:200]
