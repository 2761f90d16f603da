"""Benchmarks that need processes of their own: from the start to the first result, compiling every kernel, peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

import qrt
from benchmarks.contest import Measured, Result, Settings
from benchmarks.data import INT8, network
from qrt.core.errors import QrtError
from qrt.jit.cache import cache_dir
from qrt.ops.op import Array
from qrt.report.bench import difference
from qrt.report.example import example_feeds

__all__ = ["Launch", "cold_start", "compilation", "first_launch", "launch", "memory"]

# qrt has ONNX Runtime's API, so that one program serves both. VmHWM is the peak of this process; ru_maxrss would count its parent's too.
PROGRAM = """
import sys
import numpy
import {module} as runtime

options = runtime.SessionOptions()
options.intra_op_num_threads = {threads}
options.log_severity_level = 3
session = runtime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = {{x.name: numpy.ones([d if isinstance(d, int) else 1 for d in x.shape], numpy.float32) for x in session.get_inputs()}}
for _ in range({runs}):
    results = session.run(None, feeds)
numpy.savez(sys.argv[2], *results)
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


@dataclass(frozen=True)
class Launch:
    """What a process took: seconds from its start to its end, peak resident memory in 10⁶ bytes, and what it computed."""

    seconds: float
    megabytes: float
    outputs: list[Array]


def launch(module: str, model: Path, threads: int, runs: int = 1, environment: Mapping[str, str] | None = None) -> Launch:
    """Runs `model` in a new process, in qrt or onnxruntime, with `environment` besides this one's. It may keep bytecode, as any installed
    program does."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        program = PROGRAM.format(module=module, threads=threads, runs=runs)
        command = [sys.executable, "-c", program, str(model), f"{folder}/results.npz"]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env={**inherited, **(environment or {})}, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise QrtError(f"{module} fails on {model.name}: {done.stderr.strip().splitlines()[-1:]}")
        with np.load(f"{folder}/results.npz") as file:
            outputs = [file[name] for name in file.files]
    return Launch(seconds, int(done.stdout) * 1024 / 1e6, outputs)


def first_launch(model: Path, threads: int, runs: int) -> Launch:
    """As `launch` in qrt of a model that was never run here, whose kernels are compiled: it is loaded, planned, and its plan is kept."""
    with tempfile.TemporaryDirectory() as cache:
        for name in ("kernels", "tuned"):
            if (there := cache_dir() / name).exists():
                Path(cache, name).symlink_to(there.absolute())
        return launch("qrt", model, threads, runs, {"QRT_CACHE_DIR": cache})


def _launches(name: str, threads: int, settings: Settings, runs: int, value: Callable[[Launch], float], unit: str) -> Result:
    """qrt and ONNX Runtime in turns, each in new processes; the first launch of each warms the caches and is checked."""
    with tempfile.TemporaryDirectory() as folder:
        path, compiled = Path(folder, f"{name}.onnx"), Path(folder, f"{name}.qrt")
        model = network(name)[INT8]
        model.save(path)
        shapes = {name: array.shape for name, array in example_feeds(model).items()}
        qrt.compile(model, compiled, shapes, num_threads=threads)
        ways = {"qrt": partial(launch, "qrt", path, threads, runs)}
        if "onnxruntime" in settings.peers:
            ways["onnxruntime"] = partial(launch, "onnxruntime", path, threads, runs)
        ways["qrt, .qrt file"] = partial(launch, "qrt", compiled, threads, runs)
        ways["qrt, first run"] = partial(first_launch, path, threads, runs)
        settings.progress(f"{name}, {len(ways) * (settings.launches + 1)} processes")
        firsts = [way().outputs for way in ways.values()]
        errors = [difference(way, firsts[0], outputs) for way, outputs in zip(ways, firsts, strict=True)]
        rounds = [[value(way()) for way in ways.values()] for _ in range(settings.launches)]
    measured = [
        Measured(way, version(way.partition(",")[0]), list(values), error)
        for way, values, error in zip(ways, zip(*rounds, strict=True), errors, strict=True)
    ]
    return Result(f"{name}, {INT8}", threads, measured, unit)


def _seconds(done: Launch) -> float:
    return done.seconds


def _megabytes(done: Launch) -> float:
    return done.megabytes


def cold_start(settings: Settings) -> Iterator[Result]:
    """From the start of a process to the end of its first inference, kernels compiled before."""
    for name in ("mobilenet_v2", "resnet50"):
        yield _launches(name, 1, settings, 1, _seconds, "s")


def memory(settings: Settings) -> Iterator[Result]:
    """Peak resident memory of a process that loads a model and runs it ten times."""
    for name in ("mobilenet_v2", "resnet50"):
        yield _launches(name, 1, settings, 10, _megabytes, "MB")


def compilation(settings: Settings) -> Iterator[Result]:
    """From the start of a process to the end of its first inference, with an empty kernel cache, and with the one it left."""
    for name in ("mobilenet_v2", "resnet50"):
        with ExitStack() as stack:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()), f"{name}.onnx")
            network(name)[INT8].save(path)
            cold, warm = [], []
            rounds = min(settings.launches, 3)
            settings.progress(f"{name}, {2 * rounds} processes")
            for _ in range(rounds):
                cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                done = [launch("qrt", path, 1, environment={"QRT_CACHE_DIR": str(cache)}) for _ in range(2)]
                _same(done[0].outputs, done[1].outputs)
                cold.append(done[0].seconds)
                warm.append(done[1].seconds)
            kernels = len(list(cache.rglob("*.o")))
        engines = [Measured("empty cache", version("qrt"), cold), Measured("warm cache", version("qrt"), warm)]
        yield Result(f"{name}, {INT8}, {kernels} kernels", 1, engines, "s")


def _same(a: Sequence[Array], b: Sequence[Array]) -> None:
    if not all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)):
        raise QrtError("a kernel from the cache gives another result than when it was compiled")
