"""How fast a model runs, beside other runtimes: results first, then times, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from qrt.core.errors import InvalidInput, QrtError
from qrt.graph import Model
from qrt.ops.op import Array
from qrt.report.example import example_feeds
from qrt.session import InferenceSession

__all__ = ["PEERS", "Timing", "bench_model"]

Run = Callable[[], Sequence[Array]]

# A round runs each runtime for about this long; rounds go A B A B, so that a change of the machine's speed meets all alike.
ROUND_SECONDS = 0.02
# Codes of int8 runtimes may be one apart, here and there; what is further off than this share of an output's range is another result.
TOLERANCE = 0.05


@dataclass
class Timing:
    """Milliseconds of a run. `error`: largest difference to qrt's outputs, relative to their range. `ratio`: median beside qrt's."""

    runtime: str
    version: str
    error: float
    rounds: list[float] = field(default_factory=list)
    ratio: float = 1.0

    @property
    def min_ms(self) -> float:
        return min(self.rounds)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.rounds)


def bench_model(
    model: Model,
    against: Sequence[str] = (),
    threads: int = 1,
    rounds: int = 50,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Timing]:
    """Times `model` on example feeds in qrt, and in the runtimes `against` (names of PEERS). `progress` hears of each round done.

    Raises InvalidInput for a runtime that is unknown or not installed, QrtError if its results differ from qrt's.
    """
    feeds = example_feeds(model)
    session = InferenceSession(model, num_threads=threads)
    ours = session.run(None, feeds)
    runs: dict[str, Run] = {"qrt": lambda: session.run(None, feeds)}
    timings = [Timing("qrt", version("qrt"), 0.0)]
    for name in against:
        if name not in PEERS:
            raise InvalidInput(f"no runtime {name!r}: there are {', '.join(PEERS)}")
        try:
            runs[name] = PEERS[name](model.to_proto().SerializeToString(), feeds, threads)
        except ImportError as error:
            raise InvalidInput(f"{name} is not installed: pip install {name}") from error
        timings.append(Timing(name, version(name), _error(name, ours, runs[name]())))
    calls = {name: _calls(run) for name, run in runs.items()}
    for done in range(rounds):
        for timing in timings:
            timing.rounds.append(_time(runs[timing.runtime], calls[timing.runtime]))
        progress(done + 1)
    for timing in timings:
        timing.ratio = timing.median_ms / timings[0].median_ms
    return timings


def _error(name: str, ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    worst = 0.0
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape:
            raise QrtError(f"output {index} has shape {a.shape} in qrt and {b.shape} in {name}: nothing was timed")
        a64, b64 = a.astype(np.float64), np.asarray(b, np.float64)
        span = float(np.ptp(b64)) if b64.size else 0.0
        difference = float(np.max(np.abs(a64 - b64), initial=0.0))
        error = difference / (span or float(np.max(np.abs(b64), initial=0.0)) or 1.0)
        if not error <= TOLERANCE:
            raise QrtError(f"output {index} of {name} differs from qrt's by {error:.1%} of its range: nothing was timed")
        worst = max(worst, error)
    return worst


def _calls(run: Run) -> int:
    """How many calls make a round."""
    run()
    begin = time.perf_counter()
    run()
    return max(1, int(ROUND_SECONDS / max(time.perf_counter() - begin, 1e-7)))


def _time(run: Run, calls: int) -> float:
    """Milliseconds a call, once the caches hold this runtime's data and not the last one's."""
    run()
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls * 1e3


def _onnxruntime(model: bytes, feeds: Mapping[str, Array], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run() -> Sequence[Array]:
        results: list[Array] = session.run(None, feeds)
        return results

    return run


def _openvino(model: bytes, feeds: Mapping[str, Array], threads: int) -> Run:
    import openvino

    hints: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(model=model, weights=b""), "CPU", hints).create_infer_request()
    outputs = range(len(request.model_outputs))

    def run() -> list[Array]:
        request.infer(feeds, share_inputs=True)
        return [request.get_output_tensor(index).data.copy() for index in outputs]

    return run


PEERS: dict[str, Callable[[bytes, Mapping[str, Array], int], Run]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
