"""Streams and cases on which observers of blocks and fake quantization are compared with recorded answers.

Like observer_streams.py, only the uniform numbers of NumPy's frozen legacy generator and exact arithmetic are used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SEEDS = range(16)
SHAPE = (4, 6, 8)

KINDS: tuple[Callable[[np.random.RandomState, int], np.ndarray], ...] = (
    lambda rng, i: rng.random_sample(SHAPE) * 6 - 3,
    lambda rng, i: rng.random_sample(SHAPE) * (i + 1) - 0.25,
    lambda rng, i: (rng.random_sample(SHAPE) - 0.5) / (rng.random_sample(SHAPE) + 1e-3),
    lambda rng, i: rng.random_sample(SHAPE) / (i + 1) + 2,
    lambda rng, i: -1.5 - rng.random_sample(SHAPE),
    lambda rng, i: np.zeros(SHAPE),
    lambda rng, i: np.full(SHAPE, np.floor(rng.random_sample() * 7) - 3),
    lambda rng, i: np.ldexp(rng.random_sample(SHAPE) - 0.5, -140),
    lambda rng, i: np.ldexp(rng.random_sample(SHAPE) - 0.5, 120),
    lambda rng, i: np.maximum(rng.random_sample(SHAPE) - 0.5, 0),
)


def affine_stream(seed: int) -> list[np.ndarray]:
    """Stream number `seed`: one to five float32 arrays of SHAPE, an empty one among the first."""
    rng = np.random.RandomState(1000 + seed)
    arrays = [KINDS[seed % len(KINDS)](rng, i).astype(np.float32) for i in range(1 + seed % 5)]
    return [np.zeros((0, *SHAPE[1:]), np.float32), *arrays] if seed % 3 == 0 else arrays


GRANULARITIES: dict[str, tuple[object, ...]] = {
    "PerTensor": (),
    "PerAxis": (1,),
    "PerGroup": (4,),
    "PerRow": (),
    "PerToken": (),
    "PerBlock": ((3, 2),),
}
"""Class name and its arguments."""

MAPPINGS: dict[str, dict[str, object]] = {
    "uint8": {"mapping": "ASYMMETRIC", "dtype": "uint8"},
    "int8": {"mapping": "ASYMMETRIC", "dtype": "int8"},
    "int8 custom": {"mapping": "ASYMMETRIC", "dtype": "int8", "quant_min": -127, "quant_max": 100, "eps": 2.0**-12},
    "int16": {"mapping": "ASYMMETRIC", "dtype": "int16"},
    "no zero point": {"mapping": "ASYMMETRIC", "dtype": "int8", "domain": "NONE"},
    "float zero point": {
        "mapping": "ASYMMETRIC",
        "dtype": "uint8",
        "quant_min": 0,
        "quant_max": 15,
        "preserve_zero": False,
        "domain": "FLOAT",
        "eps": 1e-6,
    },
    "symmetric": {"mapping": "SYMMETRIC", "dtype": "int8"},
    "symmetric narrow": {"mapping": "SYMMETRIC", "dtype": "int8", "quant_min": -127, "quant_max": 127, "eps": 2.0**-12},
    "symmetric unsigned": {"mapping": "SYMMETRIC", "dtype": "uint8"},
    "symmetric int4": {"mapping": "SYMMETRIC", "dtype": "int8", "quant_min": -8, "quant_max": 7},
    "unclipped": {"mapping": "SYMMETRIC_NO_CLIPPING_ERR", "dtype": "int8"},
    "unclipped int4": {"mapping": "SYMMETRIC_NO_CLIPPING_ERR", "dtype": "int8", "quant_min": -8, "quant_max": 7},
    "unclipped unsigned": {"mapping": "SYMMETRIC_NO_CLIPPING_ERR", "dtype": "uint8"},
}
"""Mapping type, dtype and domain by name; other options as they are."""

AVERAGES = (None, 0.01, 0.3)
"""The averaging constants; None for the observer of extremes."""

FAKE_QUANTIZED = 220
LEVELS = ((0, 255), (-128, 127), (0, 127), (-127, 127), (0, 15), (-32768, 32767))


def fake_quantized(seed: int, channels: int | None, floating: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """x (float32, full of ties, 5 × 40), scales and zero points of one or `channels` channels, first code and last."""
    rng = np.random.RandomState(5000 + seed)
    qmin, qmax = LEVELS[seed % len(LEVELS)]
    n = channels or 1
    scale = np.ldexp(rng.random_sample(n) + 0.5, (rng.random_sample(n) * 24).astype(np.int64) - 16).astype(np.float32)
    if seed % 4 == 0:
        scale = np.ldexp(np.float32(1), (rng.random_sample(n) * 10).astype(np.int64) - 8).astype(np.float32)
    zero_point = np.floor(qmin + rng.random_sample(n) * (qmax - qmin + 1))
    halves = np.floor((rng.random_sample((5, 40)) * 1.5 - 0.25) * 2 * (qmax - qmin)) / 2 + (qmin - np.floor(zero_point[0]))
    x = (halves * (scale if channels is None else scale[:, None])).astype(np.float32)
    x[:, ::3] += (rng.random_sample((5, 14)) * scale[0]).astype(np.float32)
    if channels is None and seed % 5 == 0:
        x[0, :5] = [np.inf, -np.inf, np.nan, 1e30, -1e30]
    if floating:
        zero_point = zero_point + np.floor(rng.random_sample(n) * 16) / 16
    return x, scale, zero_point.astype(np.float32 if floating else np.int32), qmin, qmax
