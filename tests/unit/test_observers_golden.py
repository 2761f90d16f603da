"""Observers against the recorded answers of torch.ao.quantization 2.13.0 (tools/make_golden_observers.py)."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from observer_streams import CONFIGS, KINDS, STREAMS, stream

import qrt.observers
from qrt.core import dtypes
from qrt.observers import HistogramObserver, UniformQuantizationObserverBase

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "observers.npz")


def make(config: str) -> UniformQuantizationObserverBase:
    options = {k: getattr(dtypes, v) if k in ("dtype", "qscheme") else v for k, v in CONFIGS[config].items()}
    observer: UniformQuantizationObserverBase = getattr(qrt.observers, config.split()[0])(**options)
    return observer


@pytest.mark.parametrize("config", CONFIGS)
def test_qparams_equal_torch(config: str) -> None:
    wrong = []
    for seed in range(STREAMS):
        observer = make(config)
        for array in stream(seed):
            assert observer(array) is array
        qparams = observer.calculate_qparams()
        scale, zero_point = GOLDEN[f"{config}/scale"][seed], GOLDEN[f"{config}/zero_point"][seed]
        if not (np.array_equal(np.atleast_1d(qparams.scale), scale) and np.array_equal(np.atleast_1d(qparams.zero_point), zero_point)):
            wrong.append((seed, list(KINDS)[seed % len(KINDS)], qparams, scale, zero_point))
        if (
            isinstance(observer, HistogramObserver)
            and zlib.crc32(observer.histogram.tobytes()) != GOLDEN[f"{config}/histogram_crc32"][seed]
        ):
            wrong.append((seed, list(KINDS)[seed % len(KINDS)], "histogram"))
    assert not wrong
