"""How far two quantized outputs are apart, in codes."""

from __future__ import annotations

import numpy as np

__all__ = ["assert_same_codes", "steps_apart"]


def steps_apart(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How many codes two outputs differ by. Float outputs count in 1/255 of their range, as 8-bit codes of them would."""
    if theirs.dtype.kind != "f":
        return np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
    return np.abs(ours - theirs) * (255 / float(np.ptp(theirs)))


def assert_same_codes(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Never more than 1 apart, at least 99.9 % equal."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    apart = steps_apart(ours, theirs)
    assert apart.max() <= 1.001, f"{apart.max()} codes apart"
    assert (apart < 0.5).mean() >= 0.999, f"{(apart < 0.5).mean():.4%} equal"
