"""Observers, which see arrays during calibration, learn their range and give QParams; and fake quantization with what they learned."""
# ruff: noqa: F403 - each module lists its public names in its __all__, and nowhere else are they listed

from __future__ import annotations

from typing import TYPE_CHECKING

from qrt.observers import (
    affine,
    base,
    entropy,
    fake_quantize,
    granularity,
    histogram,
    minmax,
    partial,
    passive,
    percentile,
    presets,
    state,
)
from qrt.observers.affine import *
from qrt.observers.base import *
from qrt.observers.entropy import *
from qrt.observers.fake_quantize import *
from qrt.observers.granularity import *
from qrt.observers.histogram import *
from qrt.observers.minmax import *
from qrt.observers.partial import *
from qrt.observers.passive import *
from qrt.observers.percentile import *
from qrt.observers.presets import *
from qrt.observers.state import *

# The per-tensor observers of activations, by the name the command line gives them.
OBSERVERS: dict[str, type[base.UniformQuantizationObserverBase]] = {
    "minmax": minmax.MinMaxObserver,
    "moving": minmax.MovingAverageMinMaxObserver,
    "histogram": histogram.HistogramObserver,
    "percentile": percentile.PercentileObserver,
    "entropy": entropy.EntropyObserver,
}

if not TYPE_CHECKING:  # mypy follows the imports, but no computed list
    __all__ = [
        "OBSERVERS",
        *affine.__all__,
        *base.__all__,
        *entropy.__all__,
        *fake_quantize.__all__,
        *granularity.__all__,
        *histogram.__all__,
        *minmax.__all__,
        *partial.__all__,
        *passive.__all__,
        *percentile.__all__,
        *presets.__all__,
        *state.__all__,
    ]
