"""Fake quantization: an array passes through codes and back, so that a float model feels what quantization will do to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qrt.core.dtypes import QDType, QScheme, per_channel_affine_float_qparams
from qrt.core.errors import QuantizationError
from qrt.core.numerics import nearest
from qrt.core.qparams import QParams
from qrt.observers._chooser import choose_qparams
from qrt.observers._histogram import fma
from qrt.observers.base import ObserverBase, UniformQuantizationObserverBase
from qrt.observers.minmax import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from qrt.observers.partial import Configurable
from qrt.observers.passive import FixedQParamsObserver

__all__ = [
    "FakeQuantize",
    "FakeQuantizeBase",
    "FixedQParamsFakeQuantize",
    "FusedMovingAvgObsFakeQuantize",
    "ObserverOrFakeQuantize",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
]

F32 = np.float32
PREFIX = "activation_post_process."


class FakeQuantizeBase(Configurable, ABC):
    """Base of every fake-quantize: two switches, one for the observer and one for the rounding. Write `forward` and `calculate_qparams`."""

    switch_dtype: type[np.integer[Any]] = np.uint8

    def __init__(self) -> None:
        self.fake_quant_enabled = np.ones(1, self.switch_dtype)
        self.observer_enabled = np.ones(1, self.switch_dtype)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """What `x` becomes."""
        return self.forward(x)

    @abstractmethod
    def forward(self, x: np.ndarray) -> np.ndarray:
        """Learn from `x` if the observer is on, and return it as it will be after quantization if that is on."""

    @abstractmethod
    def calculate_qparams(self) -> QParams:
        """Scale and zero point for what was seen."""

    @abstractmethod
    def state_dict(self, *, mergeable: bool = False) -> dict[str, np.ndarray]:
        """Switches, qparams and the observer's state, under torch's names."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over such a state."""

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Turn rounding on, or off."""
        self.fake_quant_enabled[0] = enabled

    def disable_fake_quant(self) -> None:
        """Turn rounding off: arrays pass unchanged."""
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Turn learning on, or off."""
        self.observer_enabled[0] = enabled

    def disable_observer(self) -> None:
        """Turn learning off: scale and zero point stay."""
        self.enable_observer(False)


ObserverOrFakeQuantize = ObserverBase | FakeQuantizeBase


class FakeQuantize(FakeQuantizeBase):
    """An observer, and rounding with what it has learned so far.

    forward(x) = (clamp(rint(x · (1 / scale)) + zero_point, quant_min, quant_max) − zero_point) · scale, all float32; a float
    zero point is added before rounding. Where x is infinite, the bound of its sign; where NaN, the lower one.

    `observer`: makes the observer, from `observer_kwargs` and, if both are given, `quant_min` and `quant_max`.
    `is_dynamic`: see ObserverBase.
    """

    def __init__(
        self,
        observer: Callable[..., Any] = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        if quant_min is not None and quant_max is not None:
            observer_kwargs.update(quant_min=quant_min, quant_max=quant_max)
        made = observer(is_dynamic=is_dynamic, **observer_kwargs)
        if not isinstance(made, UniformQuantizationObserverBase | FixedQParamsObserver):
            raise QuantizationError(f"{type(self).__name__} needs an observer that gives qparams, not a {type(made).__name__}")
        self.activation_post_process: UniformQuantizationObserverBase | FixedQParamsObserver = made
        self.quant_min, self.quant_max = made.code_range
        self.is_dynamic: bool = made.is_dynamic
        self.dtype: QDType | np.dtype[Any] = made.dtype
        self.qscheme: QScheme = made.qscheme
        self.ch_axis = -1 if made.axis is None else made.axis
        self.is_per_channel = made.axis is not None
        self.scale = np.ones(1, F32)
        self.zero_point: np.ndarray = np.zeros(1, F32 if self.qscheme is per_channel_affine_float_qparams else np.int32)

    def calculate_qparams(self) -> QParams:
        """Scale and zero point by the observer. Raises CalibrationError if it saw nothing."""
        return self.activation_post_process.calculate_qparams()

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Learn from `x` (float32) and return it quantized and dequantized, as far as the switches say."""
        if self.observer_enabled[0] and np.size(x):
            self.activation_post_process(x)
            self._learn(x)
        return self._codes_and_back(x)[0] if self.fake_quant_enabled[0] else x

    def gradient_mask(self, x: np.ndarray) -> np.ndarray:
        """Where a gradient passes (bool, shape of `x`): straight through wherever the code is not clamped, and not elsewhere."""
        return self._codes_and_back(x)[1] if self.fake_quant_enabled[0] else np.ones(np.shape(x), bool)

    def state_dict(self, *, mergeable: bool = False) -> dict[str, np.ndarray]:
        own = {name: getattr(self, name).copy() for name in ("fake_quant_enabled", "observer_enabled", "scale", "zero_point")}
        return own | {PREFIX + key: value for key, value in self.activation_post_process.state_dict(mergeable=mergeable).items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over such a state, torch's included. Raises QuantizationError for the state of something else."""
        own = ("fake_quant_enabled", "observer_enabled", "scale", "zero_point")
        missing = [key for key in own if key not in state]
        unexpected = sorted(key for key in state if key not in own and not key.startswith(PREFIX))
        if missing or unexpected:
            raise QuantizationError(f"the state is not that of a {type(self).__name__}: missing {missing}, unexpected {unexpected}")
        arrays = {key: np.asarray(state[key]) for key in own}
        if arrays["scale"].shape != arrays["zero_point"].shape or arrays["scale"].ndim != 1:
            raise QuantizationError(f"the state's scale {arrays['scale'].shape} and zero point {arrays['zero_point'].shape} do not fit")
        self.activation_post_process.load_state_dict({k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)})
        for key, array in arrays.items():
            setattr(self, key, array.astype(getattr(self, key).dtype))

    def _learn(self, x: np.ndarray) -> None:
        """Renew scale and zero point after the observer saw `x`."""
        scale, zero_point = self.calculate_qparams()
        self.scale = np.atleast_1d(scale).copy()
        self.zero_point = np.atleast_1d(zero_point).astype(self.zero_point.dtype)

    def _codes_and_back(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The result, and where its code was not clamped."""
        x = np.asarray(x, F32)
        scale, zero_point = self.scale.astype(F32), self.zero_point
        if self.is_per_channel:
            if not -x.ndim <= self.ch_axis < x.ndim or x.shape[self.ch_axis] != scale.size:
                raise QuantizationError(f"{scale.size} scales along axis {self.ch_axis} do not fit an array of shape {x.shape}")
            along = [1] * x.ndim
            along[self.ch_axis] = -1
            scale, zero_point = scale.reshape(along), zero_point.reshape(along)
        with np.errstate(over="ignore", invalid="ignore"):
            inv = F32(1) / scale
            if zero_point.dtype.kind == "f":
                free = nearest(fma(x.astype(np.float64), inv.astype(np.float64), zero_point.astype(np.float64)))
                codes = np.clip(free, self.quant_min, self.quant_max)
                return ((codes - zero_point.astype(np.float64)) * scale).astype(F32), free == codes
            free = nearest(x * inv) + zero_point
            codes = np.clip(free, self.quant_min, self.quant_max)
            return np.asarray((codes - zero_point).astype(F32) * scale), free == codes


class FixedQParamsFakeQuantize(FakeQuantize):
    """Rounding with one scale and zero point that never change. `observer`: makes a FixedQParamsObserver."""

    def __init__(self, observer: Callable[..., Any]) -> None:
        super().__init__(observer=observer)
        if not isinstance(self.activation_post_process, FixedQParamsObserver):
            raise QuantizationError(
                f"FixedQParamsFakeQuantize needs a FixedQParamsObserver, not a {type(self.activation_post_process).__name__}"
            )
        self._learn(np.zeros(0, F32))

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        super().load_state_dict(state)
        self._learn(np.zeros(0, F32))


class FusedMovingAvgObsFakeQuantize(FakeQuantize):
    """FakeQuantize by a moving average, with the qparams of torch's fused operator: `choose_qparams`, whose symmetric scale
    reaches −128.

    As in torch, `calculate_qparams` answers by the observer's formula, so that a converted weight may have another scale than
    the trained one, and the observer's eps counts only there.
    """

    switch_dtype = np.int64

    def __init__(
        self, observer: Callable[..., Any] = MovingAverageMinMaxObserver, quant_min: int = 0, quant_max: int = 255, **observer_kwargs: Any
    ) -> None:
        super().__init__(observer, quant_min, quant_max, **observer_kwargs)
        if not isinstance(self.activation_post_process, MovingAverageMinMaxObserver | MovingAveragePerChannelMinMaxObserver):
            raise QuantizationError(f"the fused fake-quantize averages; it cannot use a {type(self.activation_post_process).__name__}")
        self._average: MovingAverageMinMaxObserver | MovingAveragePerChannelMinMaxObserver = self.activation_post_process

    def _learn(self, x: np.ndarray) -> None:
        low, high = np.atleast_1d(self._average.min_val), np.atleast_1d(self._average.max_val)
        codes = self._average.code_range
        scale, self.zero_point = choose_qparams(low, high, *codes, preserve_sparsity=self.qscheme.symmetric, single=True)
        self.scale = scale.astype(F32)


def enable_fake_quant(mod: Any) -> None:
    """Turn rounding on if `mod` is a fake-quantize; made for `module.apply(enable_fake_quant)`."""
    if isinstance(mod, FakeQuantizeBase):
        mod.enable_fake_quant()


def disable_fake_quant(mod: Any) -> None:
    """Turn rounding off, likewise."""
    if isinstance(mod, FakeQuantizeBase):
        mod.disable_fake_quant()


def enable_observer(mod: Any) -> None:
    """Resume learning, likewise."""
    if isinstance(mod, FakeQuantizeBase):
        mod.enable_observer()


def disable_observer(mod: Any) -> None:
    """Freeze what was learned, likewise."""
    if isinstance(mod, FakeQuantizeBase):
        mod.disable_observer()
