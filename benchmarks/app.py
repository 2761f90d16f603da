"""The command line: which benchmarks, beside whom, and how what they found is shown."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from benchmarks import networks, process, teams
from benchmarks.contest import FLOAT, Measured, Result, Settings, Skipped
from benchmarks.conv import conv_rows
from benchmarks.device_rows import CUDA, DEVICE_BENCHMARKS
from benchmarks.gemm import gemm_rows
from benchmarks.gpu import Gpu
from benchmarks.observers import observer_rows
from qrt.cli.console import progress, show_table, tell
from qrt.core.errors import DeviceError, QrtError
from qrt.jit import host_target
from qrt.report.bench import PEERS
from qrt.runtime.team import available_cpus

__all__ = ["BENCHMARKS", "main", "record"]

BENCHMARKS: dict[str, Callable[[Settings], Iterator[Result]]] = {
    "gemm": gemm_rows,
    "conv": conv_rows,
    "resnet50": partial(networks.network_rows, "resnet50"),
    "mobilenet_v2": partial(networks.network_rows, "mobilenet_v2"),
    "efficientnet_lite0": partial(networks.network_rows, "efficientnet_lite0"),
    "minilm": networks.minilm_rows,
    "resnet20": networks.resnet20,
    "ort_resnet20": networks.ort_resnet20,
    "digits": networks.digits_rows,
    "cnn": partial(networks.network_rows, "cnn"),
    "mlp": partial(networks.network_rows, "mlp"),
    "silero": networks.silero,
    "yolox_nano": networks.yolox_nano,
    "observers": observer_rows,
    "overhead": networks.overhead,
    "threads": teams.thread_rows,
    "sessions": partial(teams.session_rows, "mobilenet_v2"),
    "cold_start": process.cold_start,
    "compile": process.compilation,
    "memory": process.memory,
}


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmarks named and prints a table of each. Gives the exit status: 1 if one of them failed, or if there is no GPU."""
    options = _parse(arguments)
    settings = Settings(options.peers, options.threads, options.rounds)
    benchmarks, machine = BENCHMARKS, header(settings)
    if options.target == CUDA:
        try:
            gpu = Gpu()
        except DeviceError as error:
            tell(str(error))
            return 1
        benchmarks = {name: partial(rows, gpu) for name, rows in DEVICE_BENCHMARKS.items()}
        machine = {"gpu": gpu.name, **header(replace(settings, peers=_on_gpu()))}
    for key, value in machine.items():
        tell(f"{key}: {value}")
    found, failures = [], 0
    for name in options.names or benchmarks:
        tell("")
        try:
            with progress() as bar:
                task = bar.add_task(name, total=None)
                tell_bar = partial(_describe, bar, task, name)
                results = list(benchmarks[name](replace(settings, progress=tell_bar)))
        except Skipped as reason:
            tell(f"{name}: skipped: {reason}")
            continue
        except QrtError as error:
            tell(f"{name}: failed: {error}")
            failures += 1
            continue
        show(name, results)
        found += [record(name, result) for result in results]
    if options.json:
        options.json.write_text(json.dumps({**machine, "results": found}, indent=1) + "\n")
    return int(failures > 0)


def _describe(bar: Progress, task: TaskID, name: str, doing: str) -> None:
    bar.update(task, description=f"{name}: {doing}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time qrt beside other runtimes. Results are compared first.")
    about = f"which benchmarks: {', '.join(BENCHMARKS)}; with --target cuda {', '.join(DEVICE_BENCHMARKS)}; all by default"
    parser.add_argument("names", nargs="*", metavar="NAME", help=about)
    parser.add_argument("--target", choices=("cpu", CUDA), default="cpu", help="what qrt runs on; on a GPU the peer is torch, if installed")
    parser.add_argument("--peers", type=_peers, default=_installed(), help=f"of {','.join(PEERS)}; by default those installed; '' for none")
    parser.add_argument("--threads", type=_threads, default=(1,), help="numbers of threads, as in 1,2 (1)")
    parser.add_argument(
        "--rounds", type=int, default=50, help="how often each engine takes its turn (50); processes start 10 times at most"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every round of every engine to this file")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in (known := DEVICE_BENCHMARKS if options.target == CUDA else BENCHMARKS):
            parser.error(f"no benchmark {name!r} of --target {options.target}: there are {', '.join(known)}")
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def _installed() -> tuple[str, ...]:
    return tuple(name for name in PEERS if importlib.util.find_spec(name))


def _on_gpu() -> tuple[str, ...]:
    """What else has a version there."""
    return ("numba-cuda", *(("torch",) if importlib.util.find_spec("torch") else ()))


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    for name in names:
        if name not in _installed():
            raise argparse.ArgumentTypeError(f"{name!r} is not {' or '.join(PEERS)}, or not installed (pip install {name})")
    return names


def _threads(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,2")
    return counts


def header(settings: Settings) -> dict[str, str | int]:
    """What ran where."""
    packages = ("qrt", "numpy", "numba", "llvmlite", "onnx", *settings.peers)
    return {
        "machine": _processor(),
        "cores": available_cpus(),
        "target": host_target().isa,
        "versions": ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def record(benchmark: str, result: Result) -> dict[str, Any]:
    """A result as JSON has it."""
    engines = [
        {
            "engine": m.engine,
            "version": m.version,
            "min": m.minimum,
            "median": m.median,
            "ratio": result.ratio(m),
            "error": m.error,
            "rounds": m.rounds,
        }
        for m in result.engines
    ]
    rest = {"unit": result.unit, "rate": result.rate, "rate_unit": result.rate_unit, "share": result.share, "notes": result.notes}
    return {"benchmark": benchmark, "case": result.case, "threads": result.threads, "engines": engines, **rest}


def show(name: str, results: Sequence[Result]) -> None:
    """A table: a line a result, for each engine its fastest and median round and its median beside the first engine's."""
    names = sorted(dict.fromkeys(m.engine for result in results for m in result.engines), key=lambda engine: engine.endswith(FLOAT))
    rated = any(result.rate is not None for result in results)
    threads = any(result.threads for result in results)
    columns = ["case", *([">threads"] if threads else []), "unit", *(column for engine in names for column in _columns(engine, names))]
    rows = []
    for result in results:
        by_name = {m.engine: m for m in result.engines}
        cells = [cell for engine in names for cell in _cells(result, by_name.get(engine), engine == names[0])]
        rate = [f"{result.rate:.0f}", f"{result.share:.0%}"] if result.rate is not None and result.share is not None else []
        rows.append([result.case, *([str(result.threads)] if threads else []), result.unit, *cells, *rate])
    columns += [f">{results[0].rate_unit}", ">of peak"] if rated else []
    show_table(columns, rows, f"{name}: min / median; × {names[0] if names else ''}")
    for note in _distinct(note for result in results for note in result.notes):
        tell(f"  {note}")


def _columns(engine: str, names: Sequence[str]) -> list[str]:
    return [f">{engine}"] if engine == names[0] else [f">{engine}", ">×"]


def _cells(result: Result, measured: Measured | None, first: bool) -> list[str]:
    if measured is None:
        return [""] if first else ["", ""]
    times = f"{measured.minimum:.4g} / {measured.median:.4g}"
    return [times] if first else [times, f"{result.ratio(measured):.2f}"]


def _distinct(notes: Iterable[str]) -> Iterator[str]:
    """Each note once, and how often it was made."""
    counts: dict[str, int] = {}
    for note in notes:
        counts[note] = counts.get(note, 0) + 1
    for note, count in counts.items():
        yield note if count == 1 else f"{note} ({count} times)"
