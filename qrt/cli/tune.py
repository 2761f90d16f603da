"""qrt tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import qrt
from qrt.cli.compile import shape_sets
from qrt.cli.console import Json, progress, show_json, show_table, tell
from qrt.core.errors import InvalidInput
from qrt.jit import host_target
from qrt.report.tune import Tuned, tune_model
from qrt.runtime.team import available_cpus

__all__ = ["tune"]


def tune(
    model: Annotated[Path, typer.Argument(help="An ONNX model, float or quantized.", metavar="MODEL")],
    shape: Annotated[
        list[str] | None,
        typer.Option(help="The shape of an input that the model leaves open. Once for each such input.", metavar="NAME=1,3,224,224"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that will run it; by default one per processor.", min=1, metavar="N")] = None,
    target: Annotated[str | None, typer.Option(help="The instruction set, if not this machine's best.", metavar="ISA")] = None,
    rounds: Annotated[int, typer.Option(help="How often each kernel takes its turn.", min=1)] = 20,
    json: Json = False,
) -> None:
    """Measure which kernels are fastest for a model on this machine, and take those from now on.

    Results stay the same to the bit. What was compiled before (`qrt compile`) has to be compiled again.
    """
    sets = shape_sets(shape or ()) or [{}]
    if len(sets) > 1:
        raise InvalidInput("--shape names an input twice: tune for one set of shapes at a time")
    used = available_cpus() if threads is None else threads
    with progress() as bar:
        task = bar.add_task("Timing", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = tune_model(qrt.load(model), sets[0], threads, target, rounds, advance)
    isa = host_target(target).isa
    before = sum(shape.microseconds[shape.before] for shape in found)
    after = sum(shape.microseconds[shape.fastest] for shape in found)
    if json:
        fields = {"before_us": before, "after_us": after, "shapes": [_fields(shape) for shape in found]}
        show_json({"model": str(model), "threads": used, "target": isa, **fields})
        return
    title = f"{model}, {used} thread{'s' if used > 1 else ''}, {isa}; µs of all nodes of a shape, fastest of {rounds} rounds in turns"
    show_table(["shape", ">nodes", "before", ">µs", "fastest", ">µs", ">gain"], [_row(shape) for shape in found], title)
    tell(f"products and convolutions: {before:.0f} µs before, {after:.0f} µs from now on")


def _row(shape: Tuned) -> tuple[str, ...]:
    times = [f"{shape.microseconds[way]:.1f}" for way in (shape.before, shape.fastest)]
    gain = f"{shape.gain:.2f}×" if shape.fastest != shape.before else ""
    return shape.shape, str(len(shape.nodes)), shape.before, times[0], shape.fastest, times[1], gain


def _fields(shape: Tuned) -> dict[str, object]:
    ways = {"before": shape.before, "fastest": shape.fastest, "gain": shape.gain}
    return {"shape": shape.shape, "nodes": shape.nodes, **ways, "microseconds": shape.microseconds}
