"""Calibration's own work, beside torch's where that is installed: histograms of activations, and the search for the range to keep."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.contest import Result, Settings, measure
from qrt.core.errors import QrtError
from qrt.observers import HistogramObserver
from qrt.ops.op import Array
from qrt.report.bench import Engine, time_in_turns

__all__ = ["KINDS", "observer_rows", "search_row", "update_row"]

ACTIVATIONS, ELEMENTS = 100, 1_000_000

# What activation number i looks like, of a normal sample.
KINDS: dict[str, Callable[[Array, int], Array]] = {
    "normal": lambda x, i: x,
    "after Relu": lambda x, i: np.maximum(x, np.float32(0)),
    "growing": lambda x, i: x * np.float32(1 + i / 50),
}


def observer_rows(settings: Settings) -> Iterator[Result]:
    """Milliseconds for a histogram of 100 activations of 1 M elements each, and for a search in it; one thread."""
    for kind in KINDS:
        activations = _activations(kind, ACTIVATIONS, ELEMENTS)
        settings.progress(f"{ACTIVATIONS} activations, {kind}")
        yield update_row(kind, activations, settings)
        settings.progress(f"search, {kind}")
        yield search_row(kind, activations, settings)


def _activations(kind: str, count: int, elements: int) -> list[Array]:
    random = np.random.default_rng(0)
    return [KINDS[kind](random.standard_normal(elements, np.float32), i) for i in range(count)]


def update_row(kind: str, activations: Sequence[Array], settings: Settings) -> Result:
    """A new histogram that sees all of `activations`. Raises QrtError where torch's has other counts."""
    case = f"histogram of {len(activations)} × {activations[0].size:,}, {kind}"

    def run() -> list[Array]:
        observer = _seen(activations)
        return [observer.histogram, observer.min_val, observer.max_val]

    return _row(case, run, lambda torch: _torch_update(torch, activations), settings.launches)


def search_row(kind: str, activations: Sequence[Array], settings: Settings) -> Result:
    """From a histogram to scale and zero point. Raises QrtError where torch's differ."""
    observer = _seen(activations)

    def run() -> list[Array]:
        qparams = observer.calculate_qparams()
        return [qparams.scale, qparams.zero_point]

    return _row(f"range search, {kind}", run, lambda torch: _torch_search(torch, activations), settings.rounds)


def _seen(activations: Sequence[Array]) -> HistogramObserver:
    observer = HistogramObserver()
    for x in activations:
        observer(x)
    return observer


def _row(case: str, run: Callable[[], list[Array]], peer: Callable[[Any], Callable[[], list[Array]]], rounds: int) -> Result:
    """`run` and torch's counterpart in turns, once they gave the same bits."""
    engines, notes = [Engine("qrt", version("qrt"), run)], []
    try:
        import torch
    except ImportError:
        notes.append("torch: not installed (pip install torch), so nothing stands beside qrt")
    else:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's observers announce that they move to another package
            theirs = peer(torch)
            for ours, other in zip(run(), theirs(), strict=True):
                if not np.array_equal(ours.reshape(-1), other.reshape(-1)):
                    raise QrtError(f"{case}: torch's result differs from qrt's: nothing was timed")
        engines.append(Engine("torch", torch.__version__, theirs))
    return Result(case, 1, [measure(timing) for timing in time_in_turns(engines, rounds)], notes=notes)


def _torch_seen(torch: Any, activations: Sequence[Array]) -> Any:
    observer = torch.ao.quantization.HistogramObserver()
    for x in activations:
        observer(torch.from_numpy(x))
    return observer


def _torch_update(torch: Any, activations: Sequence[Array]) -> Callable[[], list[Array]]:
    def run() -> list[Array]:
        observer = _torch_seen(torch, activations)
        return [tensor.numpy() for tensor in (observer.histogram, observer.min_val, observer.max_val)]

    return run


def _torch_search(torch: Any, activations: Sequence[Array]) -> Callable[[], list[Array]]:
    observer = _torch_seen(torch, activations)
    return lambda: [tensor.numpy() for tensor in observer.calculate_qparams()]
