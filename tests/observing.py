"""Words for tests of observers: which learn, and how they are watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from qrt.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PercentileObserver,
    PerChannelMinMaxObserver,
    UniformQuantizationObserverBase,
)

# Those whose merged states are those of the whole stream, and those whose are within a bound.
EXACT: list[type[UniformQuantizationObserverBase]] = [MinMaxObserver, PerChannelMinMaxObserver, PercentileObserver, EntropyObserver]
AVERAGES: list[Callable[..., Any]] = [MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver]
LEARNING: list[Callable[..., Any]] = [*EXACT, *AVERAGES, HistogramObserver]


def watch(make: Callable[..., Any], arrays: Iterable[np.ndarray]) -> Any:
    """A new observer that has seen `arrays`."""
    observer = make()
    for array in arrays:
        observer(array)
    return observer


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether two states are equal, keys in order."""
    return list(a) == list(b) and all(np.array_equal(a[key], b[key]) for key in a)
