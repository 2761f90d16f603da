"""Observers of blocks: one scale for each block of an array, of any granularity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np

from qrt.core.dtypes import QDType
from qrt.core.errors import CalibrationError, QuantizationError
from qrt.core.numerics import round_clamp
from qrt.observers.granularity import Granularity, MappingType, TorchAODType, ZeroPointDomain, get_block_size
from qrt.observers.minmax import Averaging
from qrt.observers.partial import Configurable

__all__ = ["AffineQuantizedMinMaxObserver", "AffineQuantizedMovingAverageMinMaxObserver", "AffineQuantizedObserverBase"]

F32 = np.float32
EPS = float(np.finfo(F32).eps)


class AffineQuantizedObserverBase(Configurable, ABC):
    """Base of observers of blocks; write `forward` and `calculate_qparams`.

    `target_dtype`: what the codes will be. `granularity`: which elements share a scale. `quant_min`, `quant_max`: first and last
    code, by default the dtype's. `eps`: the smallest scale. `scale_dtype`, `zero_point_dtype`: NumPy dtypes, float32 and int32
    (float32 in the domain FLOAT) by default. `preserve_zero`: whether 0 has a code; the domain FLOAT is without.
    `zero_point_domain`: see ZeroPointDomain.
    Raises QuantizationError for options that contradict each other.
    """

    def __init__(
        self,
        mapping_type: MappingType,
        target_dtype: QDType | TorchAODType,
        granularity: Granularity,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float | None = None,
        scale_dtype: Any = None,
        zero_point_dtype: Any = None,
        preserve_zero: bool = True,
        zero_point_domain: ZeroPointDomain = ZeroPointDomain.INT,
    ) -> None:
        least, most = _code_range(target_dtype)
        self.quant_min = least if quant_min is None else quant_min
        self.quant_max = most if quant_max is None else quant_max
        if not least <= self.quant_min < self.quant_max <= most:
            raise QuantizationError(f"codes {self.quant_min}..{self.quant_max} are not a range inside {target_dtype!r} ({least}..{most})")
        if preserve_zero == (zero_point_domain is ZeroPointDomain.FLOAT):
            raise QuantizationError(f"preserve_zero={preserve_zero} and {zero_point_domain} contradict each other")
        if mapping_type is not MappingType.ASYMMETRIC and not preserve_zero:
            raise QuantizationError(f"{mapping_type} preserves zero")
        self.mapping_type, self.target_dtype, self.granularity = mapping_type, target_dtype, granularity
        self.eps = EPS if eps is None else eps
        self.preserve_zero, self.zero_point_domain = preserve_zero, zero_point_domain
        floats = zero_point_domain is ZeroPointDomain.FLOAT
        self.scale_dtype = np.dtype(F32 if scale_dtype is None else scale_dtype)
        self.zero_point_dtype = np.dtype((F32 if floats else np.int32) if zero_point_dtype is None else zero_point_dtype)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Observe `array` and return it."""
        return self.forward(array)

    @abstractmethod
    def forward(self, array: np.ndarray) -> np.ndarray:
        """Learn from `array` and return it unchanged."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and zero point of each block; the latter None in the domain NONE."""


class AffineQuantizedMinMaxObserver(AffineQuantizedObserverBase):
    """Smallest and largest value of each block. Merging is exact.

    `min_val`, `max_val`: float32, an extent for each axis that has several blocks, or blocks of one element; None before the first call.
    """

    min_val: np.ndarray | None = None
    max_val: np.ndarray | None = None

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Learn from `array` (float32; empty arrays teach nothing) and return it.

        Raises CalibrationError for NaN, infinity or other blocks than before.
        """
        if not np.size(array):
            return array
        low, high = self._block_extremes(np.asarray(array, F32))
        if self.min_val is None or self.max_val is None:
            self._first_update(low, high)
        elif low.shape != self.min_val.shape:
            raise CalibrationError(f"{type(self).__name__}: blocks were {self.min_val.shape} and now are {low.shape}")
        else:
            self._update(self.min_val, self.max_val, low, high)
        return array

    def calculate_qparams(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and zero point of each block, in the shape of `min_val`. Raises CalibrationError if nothing was seen.

        The formulas are those of torchao's `choose_qparams_affine`.
        """
        if self.min_val is None or self.max_val is None:
            raise CalibrationError(f"{type(self).__name__}: saw no data; give calibration data that reaches it")
        low, high, qmin, qmax = self.min_val, self.max_val, self.quant_min, self.quant_max
        if self.preserve_zero:
            low, high = np.minimum(low, F32(0)), np.maximum(high, F32(0))
        if self.mapping_type is MappingType.SYMMETRIC:
            scale = np.maximum(-low, high) / F32((qmax - qmin) / 2)
        elif self.mapping_type is MappingType.SYMMETRIC_NO_CLIPPING_ERR:
            with np.errstate(divide="ignore", invalid="ignore"):  # unsigned codes have no lower side
                of_low, of_high = low / F32(qmin), high / F32(qmax)
            scale = np.where(of_low > of_high, of_low, of_high)
        else:
            scale = (high - low) / F32(qmax - qmin)
        scale = np.maximum(scale, F32(self.eps))
        zero_point = self._zero_point(low, scale)
        return scale.astype(self.scale_dtype), None if zero_point is None else zero_point.astype(self.zero_point_dtype)

    def merge(self, other: Self) -> None:
        """Learn what `other` has learned. Raises QuantizationError if that is of another kind or has other options or blocks."""
        if type(other) is not type(self) or self._options() != other._options():
            raise QuantizationError(f"a {type(self).__name__} merges only one of its kind and options")
        if other.min_val is None or other.max_val is None:
            return
        if self.min_val is None or self.max_val is None:
            self.__dict__.update(other.__dict__)
        elif self.min_val.shape != other.min_val.shape:
            raise QuantizationError(f"cannot merge blocks {other.min_val.shape} into {self.min_val.shape}")
        else:
            self._merge(np.stack([self.min_val, self.max_val]), np.stack([other.min_val, other.max_val]), other)

    def _zero_point(self, low: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
        qmin, qmax = self.quant_min, self.quant_max
        if self.zero_point_domain is ZeroPointDomain.NONE:
            return None
        if self.zero_point_domain is ZeroPointDomain.FLOAT:
            return np.asarray(low + scale * F32((qmax + qmin + 1) / 2))
        if self.mapping_type is MappingType.ASYMMETRIC:
            return round_clamp(-(low / scale), np.asarray(qmin), qmin, qmax)
        return np.full(scale.shape, int((qmax + qmin + 1) / 2))

    def _block_extremes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape: list[int] = []
        axes: list[int] = []
        for extent, block in zip(x.shape, get_block_size(x.shape, self.granularity), strict=True):
            if block not in (1, extent):
                shape.append(extent // block)
            if block != 1:
                axes.append(len(shape))
            shape.append(block if block != 1 else extent)
        if not np.isfinite(x).all():
            raise CalibrationError(f"{type(self).__name__}: saw NaN or infinity; remove the sample")
        blocks = x.reshape(shape)
        return np.asarray(blocks.min(axis=tuple(axes))), np.asarray(blocks.max(axis=tuple(axes)))

    def _first_update(self, low: np.ndarray, high: np.ndarray) -> None:
        self.min_val, self.max_val = low, high

    def _update(self, old_low: np.ndarray, old_high: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        self.min_val, self.max_val = np.minimum(old_low, low), np.maximum(old_high, high)

    def _merge(self, mine: np.ndarray, theirs: np.ndarray, other: Self) -> None:
        self._update(mine[0], mine[1], theirs[0], theirs[1])

    def _options(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("min_val", "max_val", "_updates", "_first")}


class AffineQuantizedMovingAverageMinMaxObserver(AffineQuantizedMinMaxObserver, Averaging):
    """The moving average of each block's extremes, as MovingAverageMinMaxObserver has it, merging included.

    `averaging_constant`: 0 < c ≤ 1. `is_dynamic`: whether qparams are computed anew for each array; then c must be 1.
    """

    def __init__(
        self,
        mapping_type: MappingType,
        target_dtype: QDType | TorchAODType,
        granularity: Granularity,
        averaging_constant: float = 0.01,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float | None = None,
        is_dynamic: bool = False,
        **options: Any,
    ) -> None:
        AffineQuantizedMinMaxObserver.__init__(self, mapping_type, target_dtype, granularity, quant_min, quant_max, eps, **options)
        self.averaging_constant, self.is_dynamic = averaging_constant, is_dynamic
        self._check_constant(is_dynamic)

    def _first_update(self, low: np.ndarray, high: np.ndarray) -> None:
        super()._first_update(low, high)
        self._note(low, high)

    def _update(self, old_low: np.ndarray, old_high: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        self.min_val, self.max_val = self._average(old_low, low), self._average(old_high, high)
        self._note(low, high)

    def _merge(self, mine: np.ndarray, theirs: np.ndarray, other: Self) -> None:
        self.min_val, self.max_val = self._merge_average(mine, theirs, other, type(self).__name__)


def _code_range(dtype: QDType | TorchAODType) -> tuple[int, int]:
    if isinstance(dtype, QDType):
        return dtype.qmin, dtype.qmax
    return -(2 ** (dtype.value - 1)), 2 ** (dtype.value - 1) - 1
