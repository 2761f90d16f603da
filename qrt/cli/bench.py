"""qrt bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import qrt
from qrt.cli.console import Json, Target, progress, show_json, show_table
from qrt.jit import host_target, wants_cuda
from qrt.report.bench import PEERS, Timing, bench_model
from qrt.runtime.team import available_cpus

__all__ = ["bench"]

_ROUNDS = 50


def bench(
    model: Annotated[Path, typer.Argument(help="An ONNX model, float or quantized.", metavar="MODEL")],
    against: Annotated[
        list[str] | None, typer.Option(help=f"Another runtime to time beside: {', '.join(PEERS)}. May be repeated.", metavar="RUNTIME")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each runtime; by default one per processor.", metavar="N")] = None,
    target: Target = None,
    json: Json = False,
) -> None:
    """Time a model, beside other runtimes.

    Inputs are made up, of batch 1. Results are compared first; then each runtime runs for a moment in turn, so that all meet the same
    machine.
    """
    used = available_cpus() if threads is None else threads
    loaded = qrt.load(model)
    with progress() as bar:
        task = bar.add_task("Timing", total=_ROUNDS)
        timings = bench_model(loaded, against or (), used, _ROUNDS, lambda done: bar.update(task, completed=done), target)
    on = "cuda" if wants_cuda(target) else host_target(target).isa
    if json:
        show_json({"model": str(model), "threads": used, "target": on, "runtimes": [_fields(timing) for timing in timings]})
    else:
        title = f"{model}, {used} thread{'s' if used > 1 else ''}, {on}; ms a run, {_ROUNDS} rounds in turns"
        show_table(["runtime", "version", ">min", ">median", ">median / qrt's", ">largest difference"], _rows(timings), title)


def _rows(timings: list[Timing]) -> list[tuple[str, ...]]:
    """The timings as rows of text."""
    return [
        (t.runtime, t.version, f"{t.min_ms:.4g}", f"{t.median_ms:.4g}", f"{t.ratio:.2f}×", f"{t.error:.1e}" if t.runtime != "qrt" else "")
        for t in timings
    ]


def _fields(timing: Timing) -> dict[str, object]:
    return {
        "runtime": timing.runtime,
        "version": timing.version,
        "min_ms": timing.min_ms,
        "median_ms": timing.median_ms,
        "ratio": timing.ratio,
        "error": timing.error,
    }
