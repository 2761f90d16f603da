"""Observers against the recorded answers of torch.ao.quantization 2.13.0 (tools/make_golden_observers.py)."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from observer_streams import CONFIGS, comparable, kind, stream
from qconfigs import observer_of

from qrt.observers import HistogramObserver

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "observers.npz")


@pytest.mark.filterwarnings("ignore:.*saw infinity")
@pytest.mark.parametrize("config", CONFIGS)
def test_qparams_equal_torch(config: str) -> None:
    wrong = []
    for seed in comparable(config.startswith("Histogram")):
        observer = observer_of(config)
        for array in stream(seed):
            assert observer(array) is array
        qparams = observer.calculate_qparams()
        scale, zero_point = GOLDEN[f"{config}/scale"][seed], GOLDEN[f"{config}/zero_point"][seed]
        if not (np.array_equal(np.atleast_1d(qparams.scale), scale) and np.array_equal(np.atleast_1d(qparams.zero_point), zero_point)):
            wrong.append((seed, kind(seed), qparams, scale, zero_point))
        if (
            isinstance(observer, HistogramObserver)
            and zlib.crc32(observer.histogram.tobytes()) != GOLDEN[f"{config}/histogram_crc32"][seed]
        ):
            wrong.append((seed, kind(seed), "histogram"))
    assert not wrong
