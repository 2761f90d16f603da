"""Observers that learn nothing: qparams that are fixed or follow from others, markers for what a rule does, and a recorder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from qrt.core.dtypes import QDType, QScheme, per_tensor_affine, quint8
from qrt.core.errors import QuantizationError
from qrt.core.qparams import QParams
from qrt.observers.base import EPS, ObserverBase

__all__ = [
    "FixedQParamsObserver",
    "NoopObserver",
    "PlaceholderObserver",
    "RecordingObserver",
    "ReuseInputObserver",
    "_DerivedObserverOrFakeQuantize",
]

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)


class _Passive(ObserverBase):
    """Sees nothing and knows no qparams."""

    why = "it only marks what to do"

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Return `array`."""
        return array

    def calculate_qparams(self) -> QParams:
        """Raises QuantizationError: there are none."""
        raise QuantizationError(f"{self._where}: a {type(self).__name__} has no qparams: {self.why}")


class FixedQParamsObserver(_Passive):
    """One scale and zero point, known beforehand: of an operator whose range is known, such as Sigmoid."""

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: QDType = quint8,
        qscheme: QScheme = per_tensor_affine,
        quant_min: int = 0,
        quant_max: int = 255,
        is_dynamic: bool = False,
    ) -> None:
        if is_dynamic:
            raise QuantizationError("FixedQParamsObserver cannot be dynamic: its qparams are fixed")
        if qscheme.per_channel:
            raise QuantizationError(f"FixedQParamsObserver cannot give {qscheme!r} qparams")
        super().__init__(dtype)
        self.qscheme, self.quant_min, self.quant_max = qscheme, quant_min, quant_max
        self._qparams = QParams(np.asarray(scale, np.float32), np.asarray(zero_point), dtype)

    @property
    def code_range(self) -> tuple[int, int]:
        """First and last code."""
        return self.quant_min, self.quant_max

    def calculate_qparams(self) -> QParams:
        """The scale and zero point given to the constructor."""
        return self._qparams

    def state_dict(self, *, mergeable: bool = False) -> dict[str, np.ndarray]:
        return {"scale": self._qparams.scale.reshape(1).copy(), "zero_point": self._qparams.zero_point.reshape(1).copy()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        super().load_state_dict(state)
        scale, zero_point = np.asarray(state["scale"]), np.asarray(state["zero_point"])
        if scale.size != 1 or zero_point.size != 1:
            raise QuantizationError(
                f"{self._where}: the state holds {scale.size} scales and {zero_point.size} zero points, not one of each"
            )
        self._qparams = QParams(scale.reshape(()), zero_point.reshape(()), self._qparams.dtype)

    def _options(self) -> dict[str, Any]:
        codes = {"qscheme": self.qscheme, "quant_min": self.quant_min, "quant_max": self.quant_max}
        return {**super()._options(), **codes, "scale": float(self._qparams.scale), "zero_point": int(self._qparams.zero_point)}


class PlaceholderObserver(_Passive):
    """Only says what an array becomes: a float dtype, or codes whose qparams are computed in each run (`is_dynamic`).

    `custom_op_name`: the operator to convert with, for tools that ask. `compute_dtype`: deprecated, give `is_dynamic`.
    """

    why = "it marks a value that is quantized in each run, or not at all"

    def __init__(
        self,
        dtype: QDType | np.dtype[Any] = FLOAT32,
        custom_op_name: str = "",
        compute_dtype: QDType | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: QScheme | None = None,
        eps: float | None = None,
        is_dynamic: bool = False,
    ) -> None:
        if compute_dtype is not None:
            warnings.warn("compute_dtype is deprecated: give is_dynamic=True", DeprecationWarning, stacklevel=2)
        super().__init__(dtype, is_dynamic or compute_dtype is not None)
        self.custom_op = custom_op_name
        self.quant_min, self.quant_max = quant_min, quant_max
        self.qscheme = per_tensor_affine if qscheme is None else qscheme
        self.eps = EPS if eps is None else eps


class NoopObserver(_Passive):
    """Only says what dtype an array has; its node is left as it is."""

    why = "it marks a value that is not quantized"

    def __init__(self, dtype: QDType | np.dtype[Any] = FLOAT16, custom_op_name: str = "") -> None:
        super().__init__(dtype)
        self.custom_op = custom_op_name


class ReuseInputObserver(_Passive):
    """Says that an output has the qparams of its node's input, as after a Reshape."""

    why = "its value has those of the input of its node"

    def __init__(self) -> None:
        super().__init__(quint8)


class RecordingObserver(_Passive):
    """Keeps a copy of every array in `tensor_val`, for debugging."""

    why = "it records arrays"

    def __init__(self, dtype: QDType = quint8) -> None:
        super().__init__(dtype)
        self.tensor_val: list[np.ndarray] = []

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Append a copy of `array` and return it."""
        self.tensor_val.append(np.array(array))
        return array

    def get_tensor_value(self) -> list[np.ndarray]:
        """The arrays seen, in order."""
        return self.tensor_val

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.tensor_val.extend(other.tensor_val)


class _DerivedObserverOrFakeQuantize(_Passive):
    """Qparams that follow from those of others, as a bias's scale from its input's and its weight's.

    `derive_qparams_fn` gets `obs_or_fqs` and returns scale and zero point: of shape () or (1,), or (C,) along `ch_axis`,
    which a per-channel `qscheme` needs.
    """

    def __init__(
        self,
        dtype: QDType,
        obs_or_fqs: Sequence[Any],
        derive_qparams_fn: Callable[[Sequence[Any]], tuple[np.ndarray, np.ndarray]],
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: QScheme | None = None,
        ch_axis: int | None = None,
    ) -> None:
        super().__init__(dtype)
        self._codes = dtype
        if qscheme is not None and qscheme.per_channel and ch_axis is None:
            raise QuantizationError(f"{qscheme!r} needs a ch_axis")
        self.obs_or_fqs, self.derive_qparams_fn = obs_or_fqs, derive_qparams_fn
        self.quant_min, self.quant_max, self.qscheme, self.ch_axis = quant_min, quant_max, qscheme, ch_axis

    @property
    def axis(self) -> int | None:
        return self.ch_axis if self.qscheme is not None and self.qscheme.per_channel else None

    def calculate_qparams(self) -> QParams:
        """What `derive_qparams_fn` makes of the others. Raises QuantizationError if that does not fit."""
        scale, zero_point = (np.asarray(part) for part in self.derive_qparams_fn(self.obs_or_fqs))
        if self.axis is None and scale.shape == zero_point.shape == (1,):
            scale, zero_point = scale.reshape(()), zero_point.reshape(())
        return QParams(scale, zero_point, self._codes, self.axis)
