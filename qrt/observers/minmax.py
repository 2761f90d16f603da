"""Observers of the extremes: running or averaged, per tensor or per channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from qrt.core.dtypes import QScheme, per_channel_affine
from qrt.core.errors import CalibrationError, QuantizationError
from qrt.observers.base import F32, UniformQuantizationObserverBase

__all__ = [
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannelMinMaxObserver",
]

UNKNOWN = -1  # how many updates there were, where a plain state does not tell


@dataclass(eq=False)
class _Channels:
    """The channel axis, for a class whose constructor takes it before the options of its other base."""

    ch_axis: int = 0


@dataclass(eq=False)
class Averaging:
    """The averaging constant, likewise, and the average itself: m ← m + c · (current − m), in float32."""

    averaging_constant: float = 0.01

    def _check_constant(self, is_dynamic: bool) -> None:
        if not 0 < self.averaging_constant <= 1:
            raise QuantizationError(f"averaging_constant must be in (0, 1], not {self.averaging_constant}")
        if is_dynamic and self.averaging_constant != 1:
            raise QuantizationError(f"is_dynamic forgets what came before: averaging_constant must be 1, not {self.averaging_constant}")
        self._updates = 0
        self._first = np.zeros(2, F32)

    def _average(self, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # calculate_qparams reports a range that is not finite
            return np.asarray(old + F32(self.averaging_constant) * (new - old))

    def _note(self, lows: np.ndarray, highs: np.ndarray) -> None:
        """Count one update, and keep the first: its weight in the average is what `merge` has to correct."""
        if self._updates == 0:
            self._first = np.stack([lows, highs])
        if self._updates != UNKNOWN:
            self._updates += 1

    def _average_state(self, mergeable: bool) -> dict[str, np.ndarray]:
        if not mergeable:
            return {}
        return {"updates": np.array(self._updates, np.int64), "first": self._first.copy()}

    def _load_average(self, state: Mapping[str, np.ndarray]) -> None:
        if "updates" in state and "first" in state:
            self._updates, self._first = int(state["updates"]), state["first"].astype(F32)
        else:
            self._updates = 0 if np.isinf(state["min_val"]).all() else UNKNOWN

    def _merge_average(self, extremes: np.ndarray, later: np.ndarray, other: Averaging, where: str) -> np.ndarray:
        """The average of both streams, (2, …): the later one began with its own first value where ours should have stood."""
        if other._updates == UNKNOWN:
            raise QuantizationError(
                f"{where}: a moving average loaded from a plain state cannot be merged: save state_dict(mergeable=True)"
            )
        kept = (1 - self.averaging_constant) ** other._updates
        if self._updates != UNKNOWN:
            self._updates += other._updates
        return np.asarray(later + kept * (extremes.astype(np.float64) - other._first), F32)


@dataclass(eq=False)
class MinMaxObserver(UniformQuantizationObserverBase):
    """Smallest and largest value of all that was seen. Merging is exact."""

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        self._min = np.asarray(np.minimum(self._min, low))
        self._max = np.asarray(np.maximum(self._max, high))


@dataclass(eq=False)
class MovingAverageMinMaxObserver(MinMaxObserver, Averaging):
    """Exponential moving average of each array's extremes: m ← m + c · (current − m), in float32.

    `averaging_constant` is c, 0 < c ≤ 1; the first array sets m. Merging is exact but for the rounding of float32 updates: after n arrays,
    (n + 3) · 2⁻²² of the largest magnitude at most.
    """

    _may_cross = True  # by rounding, where a narrow range follows a wide one

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_constant(self.is_dynamic)

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        lows, highs = np.asarray(low), np.asarray(high)
        self._min = self._average(self._min, lows) if self._seen else lows
        self._max = self._average(self._max, highs) if self._seen else highs
        self._note(lows, highs)

    def _counts(self, mergeable: bool) -> dict[str, np.ndarray]:
        return self._average_state(mergeable)

    def _load_counts(self, state: Mapping[str, np.ndarray]) -> None:
        self._load_average(state)

    def _merge(self, other: Self) -> None:
        mine, later = np.stack([self._min, self._max]), np.stack([other._min, other._max])
        self._min, self._max = self._merge_average(mine, later, other, self._where)


@dataclass(eq=False)
class PerChannelMinMaxObserver(UniformQuantizationObserverBase, _Channels):
    """Smallest and largest value of each index of axis `ch_axis` (negative counts from the last). Merging is exact."""

    qscheme: QScheme = per_channel_affine

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_dynamic:
            raise QuantizationError(f"{type(self).__name__} cannot be dynamic: use a per-tensor observer")
        self._min = self._max = np.zeros(0, F32)

    @property
    def axis(self) -> int | None:
        return self.ch_axis

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        lows, highs = self._channel_extremes(x)
        self._min = np.minimum(self._min, lows) if self._seen else lows
        self._max = np.maximum(self._max, highs) if self._seen else highs

    def _channel_extremes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value of each channel of `x`, float32 (C,)."""
        if not -x.ndim <= self.ch_axis < x.ndim:
            raise CalibrationError(f"{self._where}: an array of shape {x.shape} has no axis {self.ch_axis}")
        axis = self.ch_axis % x.ndim
        if self._seen and self._min.shape != (x.shape[axis],):
            raise CalibrationError(f"{self._where}: axis {self.ch_axis} had {self._min.size} channels and now has {x.shape[axis]}")
        others = tuple(i for i in range(x.ndim) if i != axis)
        return x.min(axis=others), x.max(axis=others)


@dataclass(eq=False)
class MovingAveragePerChannelMinMaxObserver(PerChannelMinMaxObserver, Averaging):
    """MovingAverageMinMaxObserver for each index of axis `ch_axis`."""

    _may_cross = True  # by rounding, where a narrow range follows a wide one

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_constant(self.is_dynamic)

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        lows, highs = self._channel_extremes(x)
        self._min = self._average(self._min, lows) if self._seen else lows
        self._max = self._average(self._max, highs) if self._seen else highs
        self._note(lows, highs)

    def _counts(self, mergeable: bool) -> dict[str, np.ndarray]:
        return self._average_state(mergeable)

    def _load_counts(self, state: Mapping[str, np.ndarray]) -> None:
        self._load_average(state)

    def _merge(self, other: Self) -> None:
        mine, later = np.stack([self._min, self._max]), np.stack([other._min, other._max])
        self._min, self._max = self._merge_average(mine, later, other, self._where)
