"""Observers of the extremes: running or averaged, per tensor or per channel."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qrt.core.dtypes import QScheme, per_channel_affine
from qrt.core.errors import CalibrationError, QuantizationError
from qrt.observers.base import F32, Observer

__all__ = [
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannelMinMaxObserver",
]


@dataclass(eq=False)
class MinMaxObserver(Observer):
    """Smallest and largest value of all that was seen."""

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        self._min = np.minimum(self._min, low)
        self._max = np.maximum(self._max, high)


@dataclass(eq=False)
class MovingAverageMinMaxObserver(Observer):
    """Exponential moving average of each array's extremes: m ← m + c · (current − m), in float32.

    `averaging_constant` is c, 0 < c ≤ 1; the first array sets m.
    """

    averaging_constant: float = field(default=0.01, kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_constant(self.averaging_constant)

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        self._min = _average(self._min, np.asarray(low), self.averaging_constant) if self._seen else np.asarray(low)
        self._max = _average(self._max, np.asarray(high), self.averaging_constant) if self._seen else np.asarray(high)


@dataclass(eq=False)
class PerChannelMinMaxObserver(Observer):
    """Smallest and largest value of each index of axis `ch_axis` (negative counts from the last)."""

    ch_axis: int = field(default=0, kw_only=False)
    qscheme: QScheme = field(default=per_channel_affine, kw_only=True)

    @property
    def axis(self) -> int | None:
        return self.ch_axis

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        lows, highs = self._channel_extremes(x)
        self._min = np.minimum(self._min, lows)
        self._max = np.maximum(self._max, highs)

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
class MovingAveragePerChannelMinMaxObserver(PerChannelMinMaxObserver):
    """MovingAverageMinMaxObserver for each index of axis `ch_axis`."""

    averaging_constant: float = field(default=0.01, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_constant(self.averaging_constant)

    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        lows, highs = self._channel_extremes(x)
        self._min = _average(self._min, lows, self.averaging_constant) if self._seen else lows
        self._max = _average(self._max, highs, self.averaging_constant) if self._seen else highs


def _check_constant(averaging_constant: float) -> None:
    if not 0 < averaging_constant <= 1:
        raise QuantizationError(f"averaging_constant must be in (0, 1], not {averaging_constant}")


def _average(old: np.ndarray, new: np.ndarray, averaging_constant: float) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # calculate_qparams reports a range that is not finite
        return np.asarray(old + F32(averaging_constant) * (new - old))
