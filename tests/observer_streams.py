"""The streams of arrays on which observers are compared with recorded answers.

Only the uniform numbers of NumPy's frozen legacy generator and exact arithmetic are used, so that every machine makes the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STREAMS = 210  # usual ones, which every observer can learn from
HOSTILE = 90  # behind these, ADVERSARIAL ones


def _bell(rng: np.random.RandomState, n: int) -> np.ndarray:
    return rng.random_sample((6, n)).sum(axis=0) - 3.0


def _cauchy_like(rng: np.random.RandomState, n: int) -> np.ndarray:
    return (rng.random_sample(n) - 0.5) / (rng.random_sample(n) + 1e-3)


KINDS: dict[str, Callable[[np.random.RandomState, int, int], np.ndarray]] = {
    "bell": lambda rng, n, i: _bell(rng, n),
    "relu": lambda rng, n, i: np.maximum(_bell(rng, n), 0),
    "heavy": lambda rng, n, i: _cauchy_like(rng, n),
    "growing": lambda rng, n, i: _bell(rng, n) * (i + 1),
    "shrinking": lambda rng, n, i: _bell(rng, n) / (i + 1),
    "outlier": lambda rng, n, i: np.where(np.arange(n) == n // 2, 40.0 * (i % 2), _bell(rng, n)),
    "constant": lambda rng, n, i: np.full(n, np.floor(rng.random_sample() * 7) - 3),
    "constant first": lambda rng, n, i: np.full(n, 0.75) if i == 0 else _bell(rng, n),
    "zero": lambda rng, n, i: np.zeros(n),
    "tiny": lambda rng, n, i: _bell(rng, n) * 2.0**-40,
    "large": lambda rng, n, i: _bell(rng, n) * 2.0**20,
    "negative": lambda rng, n, i: -1.5 - rng.random_sample(n),
    "far": lambda rng, n, i: 1000.0 + rng.random_sample(n),
    "steps": lambda rng, n, i: np.floor(rng.random_sample(n) * 9) / 4 - 1,
}


ADVERSARIAL: dict[str, Callable[[np.random.RandomState, int, int], np.ndarray]] = {
    "denormal": lambda rng, n, i: _bell(rng, n) * 2.0**-140,
    "vast": lambda rng, n, i: _bell(rng, n) * 2.0**38,
    "huge": lambda rng, n, i: _bell(rng, n) * 2.0**124,
    "widening": lambda rng, n, i: _bell(rng, n) * 100.0**i,
    "narrowing": lambda rng, n, i: _bell(rng, n) / 1000.0**i,
    "empty between": lambda rng, n, i: _bell(rng, n)[: 0 if i % 2 else n],
    "sides in turn": lambda rng, n, i: (rng.random_sample(n) + i) * (1 if i % 2 else -1),
    "one ulp": lambda rng, n, i: 1 + np.floor(rng.random_sample(n) * 2) * 2.0**-23,
    "infinite": lambda rng, n, i: np.where(np.arange(n) % 7 == 3, np.inf * (1 if i % 2 else -1), _bell(rng, n)),
}


def kind(seed: int) -> str:
    """What stream number `seed` is called."""
    kinds = list(KINDS) if seed < STREAMS else list(ADVERSARIAL)
    return kinds[(seed if seed < STREAMS else seed - STREAMS) % len(kinds)]


def comparable(histogram: bool) -> list[int]:
    """The streams for which an observer has to equal torch. Only a histogram leaves infinities out; the others refuse them."""
    return [seed for seed in range(STREAMS + HOSTILE) if histogram or kind(seed) != "infinite"]


def stream(seed: int) -> list[np.ndarray]:
    """Stream number `seed`: one to six float32 arrays of shape (3, n)."""
    rng = np.random.RandomState(seed)
    make = (KINDS | ADVERSARIAL)[kind(seed)]
    kinds, number = (len(KINDS), seed) if seed < STREAMS else (len(ADVERSARIAL), seed - STREAMS)
    arrays = []
    for i in range(1 + number // kinds % 6):
        n = int(2 + rng.random_sample() * 600)
        arrays.append(make(rng, 3 * n, i).astype(np.float32).reshape(3, -1))
    return arrays


CONFIGS: dict[str, dict[str, object]] = {
    "MinMaxObserver": {},
    "MinMaxObserver qint8": {"dtype": "qint8"},
    "MinMaxObserver symmetric": {"dtype": "qint8", "qscheme": "per_tensor_symmetric"},
    "MinMaxObserver unsigned symmetric": {"qscheme": "per_tensor_symmetric"},
    "MinMaxObserver reduced": {"reduce_range": True},
    "MinMaxObserver custom": {"quant_min": 0, "quant_max": 100, "qscheme": "per_tensor_symmetric"},
    "MinMaxObserver custom reduced": {"dtype": "qint8", "quant_min": -127, "quant_max": 127, "reduce_range": True, "eps": 2.0**-12},
    "MinMaxObserver int16": {"dtype": "qint16"},
    "MovingAverageMinMaxObserver": {"averaging_constant": 0.01},
    "MovingAverageMinMaxObserver fast": {"averaging_constant": 0.3, "dtype": "qint8"},
    "PerChannelMinMaxObserver": {"ch_axis": 0},
    "PerChannelMinMaxObserver symmetric": {"ch_axis": 0, "dtype": "qint8", "qscheme": "per_channel_symmetric"},
    "MovingAveragePerChannelMinMaxObserver": {"ch_axis": 0, "dtype": "qint8", "qscheme": "per_channel_symmetric"},
    "HistogramObserver": {},
    "HistogramObserver symmetric": {"dtype": "qint8", "qscheme": "per_tensor_symmetric"},
    "HistogramObserver reduced": {"reduce_range": True},
    "HistogramObserver signed": {"dtype": "qint8", "reduce_range": False, "eps": 2.0**-12},
    "MinMaxObserver narrow": {"dtype": "qint8", "qscheme": "per_tensor_symmetric", "quant_min": -127, "quant_max": 127},
    "PerChannelMinMaxObserver narrow": {"dtype": "qint8", "qscheme": "per_channel_symmetric", "quant_min": -127, "quant_max": 127},
}
"""Class name, then a word to tell configurations apart; keywords of the constructor, dtypes and qschemes by name."""

PRESETS = (
    "default_observer",
    "default_histogram_observer",
    "default_weight_observer",
    "weight_observer_range_neg_127_to_127",
    "default_per_channel_weight_observer",
    "per_channel_weight_observer_range_neg_127_to_127",
    "default_float_qparams_observer",
    "default_float_qparams_observer_4bit",
    "default_fixed_qparams_range_0to1_observer",
    "default_fixed_qparams_range_neg1to1_observer",
)
"""Presets of observers that give qparams."""

FAKE_QUANTS = (
    "default_fake_quant",
    "default_weight_fake_quant",
    "default_dynamic_fake_quant",
    "default_per_channel_weight_fake_quant",
    "default_embedding_fake_quant",
    "default_embedding_fake_quant_4bit",
    "default_histogram_fake_quant",
    "default_fixed_qparams_range_0to1_fake_quant",
    "default_fixed_qparams_range_neg1to1_fake_quant",
    "default_fused_act_fake_quant",
    "default_fused_wt_fake_quant",
    "default_fused_per_channel_wt_fake_quant",
    "fused_wt_fake_quant_range_neg_127_to_127",
    "fused_per_channel_wt_fake_quant_range_neg_127_to_127",
)
"""Presets of fake-quantizes."""

FAKE_CONFIGS: dict[str, dict[str, object]] = {
    "FakeQuantize reduced": {"quant_min": 0, "quant_max": 255, "reduce_range": True},
    "FakeQuantize full": {"quant_min": 0, "quant_max": 255, "reduce_range": False},
    "FusedMovingAvgObsFakeQuantize reduced": {"quant_min": 0, "quant_max": 255, "reduce_range": True},
    "FusedMovingAvgObsFakeQuantize full": {"quant_min": 0, "quant_max": 255, "reduce_range": False},
    "FusedMovingAvgObsFakeQuantize signed": {
        "quant_min": -128,
        "quant_max": 127,
        "dtype": "qint8",
        "reduce_range": False,
        "eps": 2.0**-12,
    },
}
"""What the QConfigs for training make beside presets: class name and a word; keywords beside `observer`, a moving average."""

CHOOSERS = {"quint8": (0, 255, False), "reduced": (0, 127, False), "qint8": (-128, 127, False), "symmetric": (-128, 127, True)}
"""First code, last code, whether zero stays in the middle."""


def chooser_ranges() -> tuple[np.ndarray, np.ndarray]:
    """1500 smallest and largest values, float32, of all magnitudes, denormal ones included, with one sign or two; 100 are opposites."""
    rng = np.random.RandomState(7)
    magnitude = np.ldexp(rng.random_sample((2, 1500)), (rng.random_sample((2, 1500)) * 180).astype(np.int64) - 149)
    sign = np.where(rng.random_sample((2, 1500)) < 0.6, [[-1.0], [1.0]], [[1.0], [-1.0]])
    ends = (magnitude * sign * (rng.random_sample((2, 1500)) < 0.95)).astype(np.float32)
    ends[1, :100] = -ends[0, :100]
    return ends.min(axis=0), ends.max(axis=0)


QTENSORS = {
    "quint8": ("quint8", False, False),
    "qint8": ("qint8", False, False),
    "qint32": ("qint32", False, False),
    "quint8 channels": ("quint8", True, False),
    "qint8 channels": ("qint8", True, False),
    "quint8 float channels": ("quint8", True, True),
    "quint4x2 float channels": ("quint4x2", True, True),
}
"""Dtype, whether it has channels, whether their zero points are floats."""


def channel_qparams(x: np.ndarray, dtype: str, floating: bool) -> tuple[np.ndarray, np.ndarray]:
    """A scale (float64, no float32 among them) and zero point for each row of `x`; not every value has a code."""
    middle = {"quint8": 101, "qint8": -7, "qint32": 12345, "quint4x2": 6}[dtype]
    levels = {"quint4x2": 12.0}.get(dtype, 200.0)
    scales = (np.abs(x).max(axis=1).astype(np.float64) + 0.1) / levels
    zero_points = np.full(len(x), middle, np.int64) + np.arange(len(x))
    if floating:
        return scales.astype(np.float32), (zero_points + 0.3).astype(np.float32)
    return scales, zero_points
