"""Which kernels are fastest for a model's shapes on this machine: measured where they run, in the plan of the whole model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qrt.api import compile_model, fuse_model
from qrt.core.errors import InvalidInput, KernelError
from qrt.core.target import Target
from qrt.graph import Model
from qrt.jit import tuned, wants_cuda
from qrt.ops.op import Array, Spec
from qrt.ops.program import Program
from qrt.report.example import example_feeds
from qrt.runtime.clock import Clock
from qrt.runtime.plan import Packs, Plan, build

__all__ = ["Tuned", "tune_model"]

# The module whose kernels are chosen among, by shape.
FAMILY = "qrt.ops.gemm.cpu"
# What a way has to save before it takes the usual one's place: less is noise.
LEAST_GAIN = 0.01
# Cycles over which their rate is read off.
_SPAN = 10**6


@dataclass
class Tuned:
    """One shape. `before`: the way it was computed so far. `microseconds`: of all `nodes` of that shape together, for each way, in the
    fastest of the rounds; each node with all that it takes: padding and copies too."""

    shape: str
    before: str
    ways: Sequence[str]
    nodes: list[str] = field(default_factory=list)
    microseconds: dict[str, float] = field(default_factory=dict)

    @property
    def fastest(self) -> str:
        """The way to take from now on."""
        best = min(self.microseconds, key=lambda way: self.microseconds[way])
        return best if self.microseconds[best] < (1 - LEAST_GAIN) * self.microseconds[self.before] else self.before

    @property
    def gain(self) -> float:
        """How many times as fast that is as before."""
        return self.microseconds[self.before] / self.microseconds[self.fastest]


def tune_model(
    model: Model,
    shapes: Mapping[str, Sequence[int]] | None = None,
    num_threads: int | None = None,
    target: str | None = None,
    rounds: int = 20,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Tuned]:
    """Times every way to compute the products and convolutions of `model` on example feeds. Keeps the fastest, for this machine's next
    plans, and gives what was found, the longest first.

    `shapes`: of inputs, where examples are to have others than `example_feeds` gives them. Ways take turns, plan by plan, so that all meet
    the same machine. `progress` hears of each round done, and of how many there are. Raises what a run would, OutputError where choices
    cannot be kept.
    """
    if wants_cuda(target):
        raise InvalidInput("kernels of a GPU are not chosen by measurement: leave out the target 'cuda'")
    executable = compile_model(fuse_model(model)[0], num_threads=num_threads, target=target)
    programs = [program for _, program in executable.plans(example_feeds(model, shapes))]
    found: dict[str, Tuned] = {}
    steps = iter(range(1, rounds * len(programs) + 1))
    for program in programs:
        plans, asked = _plans(program, executable.target, executable.threads)
        best = _measure(plans, _example(program), rounds, lambda: progress(next(steps), rounds * len(programs)))
        for entry in asked.values():
            _add(found, entry, best)
    tuned.store(FAMILY, executable.target, {shape.shape: shape.fastest for shape in found.values()})
    return sorted(found.values(), key=lambda shape: -shape.microseconds[shape.before])


def _plans(program: Program, target: Target, threads: int) -> tuple[list[Plan], dict[str, Tuned]]:
    """A plan as it was so far, and as many more as any shape has other ways, in each of which each shape goes another of its ways."""
    shapes: dict[str, Tuned] = {}
    plans: list[Plan] = []

    def ask(node: str, shape: str, ways: Sequence[str], usual: str) -> str:
        before = tuned.choices(FAMILY, target).get(shape, usual)
        before = before if before in ways else usual
        entry = shapes.setdefault(shape, Tuned(shape, before, [before, *(way for way in ways if way != before)]))
        if node not in entry.nodes:
            entry.nodes.append(node)
        return entry.ways[len(plans)] if len(plans) < len(entry.ways) else before

    with tuned.asking(ask):
        packs = Packs()
        plans.append(build(program, target, threads, packs))
        for _ in range(1, max((len(shape.ways) for shape in shapes.values()), default=1)):
            plans.append(build(program, target, threads, packs))
    return plans, shapes


def _example(program: Program) -> list[Array]:
    """What a plan of `program` can be fed: random codes and floats, zeros for other integers, which are good as indices."""
    rng = np.random.default_rng(0)

    def array(spec: Spec) -> Array:
        if spec.dtype.kind == "f":
            return rng.standard_normal(spec.shape).astype(spec.dtype)
        return rng.integers(0, 128, spec.shape).astype(spec.dtype) if spec.dtype.itemsize == 1 else np.zeros(spec.shape, spec.dtype)

    return [array(program.specs[value]) for value in program.inputs]


def _measure(plans: Sequence[Plan], inputs: list[Array], rounds: int, advance: Callable[[], object]) -> list[dict[str, float]]:
    """For each plan, each node's microseconds in the fastest round. Raises KernelError where plans disagree, which they cannot."""
    expected = [array.tobytes() for array in plans[0].run(inputs)]
    if any([array.tobytes() for array in plan.run(inputs)] != expected for plan in plans):
        raise KernelError("two kernels for the same product give different results: nothing was chosen; this is a bug")
    best: list[dict[str, int]] = [{} for _ in plans]
    clock = Clock()
    for _ in range(rounds):
        for plan, least in zip(plans, best, strict=True):
            for node, cycles in _cycles(plan, inputs).items():
                least[node] = min(cycles, least.get(node, cycles))
        advance()
    start, end = clock.microseconds(np.array([0, _SPAN]))
    return [{node: cycles * (end - start) / _SPAN for node, cycles in least.items()} for least in best]


def _cycles(plan: Plan, inputs: list[Array]) -> dict[str, int]:
    """The cycles that each node took in one run."""
    watch: list[Array] = []
    plan.run(inputs, None, watch)
    spent: dict[str, int] = defaultdict(int)
    for node, cycles in zip(plan.names, np.diff(watch[0]).tolist(), strict=True):
        spent[node] += cycles
    return spent


def _add(found: dict[str, Tuned], shape: Tuned, best: list[dict[str, float]]) -> None:
    """Adds what the plans of one stage of the model took to what those before did."""
    entry = found.setdefault(shape.shape, Tuned(shape.shape, shape.before, shape.ways))
    entry.nodes += shape.nodes
    for way, least in zip(shape.ways, best, strict=False):
        entry.microseconds[way] = entry.microseconds.get(way, 0.0) + sum(least.get(node, 0.0) for node in shape.nodes)
