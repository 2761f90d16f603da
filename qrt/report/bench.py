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
from qrt.core.record import record
from qrt.graph import Model
from qrt.ops.op import Array
from qrt.report.example import example_feeds
from qrt.session import InferenceSession

__all__ = ["PEERS", "Engine", "Timing", "bench_model", "difference", "peer_engine", "qrt_engine", "time_in_turns"]

Run = Callable[[], Sequence[Array]]

# A round runs each runtime for about this long; rounds go A B A B, so that a change of the machine's speed meets all alike.
ROUND_SECONDS = 0.02
# Codes of int8 runtimes may be one apart, here and there; what is further off than this share of an output's range is another result.
TOLERANCE = 0.05


@record
class Engine:
    """A runtime with a model loaded, ready to run it on one feed. `error`: largest difference to qrt's outputs, relative to their range."""

    runtime: str
    version: str
    run: Run
    error: float = 0.0


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
    target: str | None = None,
) -> list[Timing]:
    """Times `model` on example feeds in qrt, and in the runtimes `against` (names of PEERS). `progress` hears of each round done.
    `target`: a session's.

    Raises InvalidInput for a runtime that is unknown or not installed, QrtError if its results differ from qrt's.
    """
    feeds = example_feeds(model)
    ours = qrt_engine(model, feeds, threads, target)
    expected, content = ours.run(), model.to_proto().SerializeToString() if against else b""
    return time_in_turns([ours, *(peer_engine(name, content, feeds, threads, expected) for name in against)], rounds, progress)


def qrt_engine(model: Model, feeds: Mapping[str, Array], threads: int, target: str | None = None) -> Engine:
    """`model` in qrt."""
    session = InferenceSession(model, num_threads=threads, target=target)
    return Engine("qrt", version("qrt"), lambda: session.run(None, feeds))


def peer_engine(name: str, model: bytes, feeds: Mapping[str, Array], threads: int, expected: Sequence[Array]) -> Engine:
    """The ONNX file `model` in another runtime, once its results agreed with `expected`.

    Raises InvalidInput if it is unknown or not installed, QrtError if its results differ.
    """
    if name not in PEERS:
        raise InvalidInput(f"no runtime {name!r}: there are {', '.join(PEERS)}")
    try:
        run = PEERS[name](model, feeds, threads)
    except ImportError as error:
        raise InvalidInput(f"{name} is not installed: pip install {name}") from error
    return Engine(name, version(name), run, difference(name, expected, run()))


def time_in_turns(engines: Sequence[Engine], rounds: int, progress: Callable[[int], object] = lambda done: None) -> list[Timing]:
    """The times of each engine, in `rounds` rounds A B A B …; ratios are to the first. `progress` hears of each round done."""
    timings = [Timing(engine.runtime, engine.version, engine.error) for engine in engines]
    calls = [_calls(engine.run) for engine in engines]
    for done in range(rounds):
        for timing, engine, count in zip(timings, engines, calls, strict=True):
            timing.rounds.append(_time(engine.run, count))
        progress(done + 1)
    for timing in timings:
        timing.ratio = timing.median_ms / timings[0].median_ms
    return timings


def difference(name: str, ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """The largest difference of `theirs` to `ours`, relative to the range of each output. Raises QrtError if it is too large."""
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

    hints: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    core = openvino.Core()
    network = core.read_model(model=model, weights=b"")
    if not any(_holds_codes(op) for op in network.get_ops()):
        hints["INFERENCE_PRECISION_HINT"] = "f32"  # a float32 model is not to run in bfloat16, its default where there is AMX
    request = core.compile_model(network, "CPU", hints).create_infer_request()
    outputs = range(len(request.model_outputs))

    def run() -> list[Array]:
        request.infer(feeds, share_inputs=True)
        return [request.get_output_tensor(index).data.copy() for index in outputs]

    return run


def _holds_codes(op: Any) -> bool:
    return any(out.get_element_type().get_type_name() in ("u8", "i8") for out in op.outputs())


PEERS: dict[str, Callable[[bytes, Mapping[str, Array], int], Run]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
