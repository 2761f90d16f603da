"""Observers: taps that see arrays during calibration, learn their range and give QParams."""

from __future__ import annotations

from qrt.observers.base import Observer
from qrt.observers.entropy import EntropyObserver
from qrt.observers.histogram import HistogramObserver
from qrt.observers.minmax import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from qrt.observers.percentile import PercentileObserver

__all__ = [
    "OBSERVERS",
    "EntropyObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "Observer",
    "PerChannelMinMaxObserver",
    "PercentileObserver",
]

# The per-tensor observers of activations, by the name the command line gives them.
OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "moving": MovingAverageMinMaxObserver,
    "histogram": HistogramObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
}
