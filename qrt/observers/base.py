"""Observer: a tap that sees arrays, learns their range and turns it into QParams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from qrt.core.dtypes import QDType, QScheme, per_tensor_affine, quint8
from qrt.core.errors import CalibrationError, QuantizationError
from qrt.core.qparams import QParams
from qrt.observers._qparams import calculate_qparams, quant_range

__all__ = ["EPS", "F32", "Observer"]

F32 = np.float32
EPS = float(np.finfo(F32).eps)  # 2⁻²³, the smallest scale unless the user asks for another


@dataclass(kw_only=True, eq=False)
class Observer(ABC):
    """Base of every observer. Call it with arrays; ask `calculate_qparams` when all have been seen.

    The options mean what they mean in torch.ao.quantization:
    `dtype`, `qscheme`: what the codes will be. `reduce_range`: use one bit less. `quant_min`, `quant_max`: a custom range
    of codes, both ends included. `eps`: the smallest scale. `site`: where the observer sits, for error messages.

    Whatever the data, the state of one observer has a fixed size. Raises QuantizationError for options that contradict
    each other.
    """

    dtype: QDType = quint8
    qscheme: QScheme = per_tensor_affine
    reduce_range: bool = False
    quant_min: int | None = None
    quant_max: int | None = None
    eps: float = EPS
    site: str = ""

    def __post_init__(self) -> None:
        if self.qscheme.per_channel != (self.axis is not None):
            raise QuantizationError(f"{type(self).__name__} cannot give {self.qscheme!r} qparams")
        if not 0 < self.eps < np.inf:
            raise QuantizationError(f"eps must be a positive number, not {self.eps}")
        self._qmin, self._qmax = quant_range(self.dtype, self.qscheme, self.reduce_range, self.quant_min, self.quant_max)
        self._seen = False
        self._min: np.ndarray = np.array(np.inf, F32)
        self._max: np.ndarray = np.array(-np.inf, F32)

    @property
    def axis(self) -> int | None:
        """The channel axis; None for one range per tensor."""
        return None

    @property
    def min_val(self) -> np.ndarray:
        """Smallest value learned, float32 of shape () or (C,); +inf before the first call."""
        return self._min

    @property
    def max_val(self) -> np.ndarray:
        """Largest value learned, float32 of shape () or (C,); −inf before the first call."""
        return self._max

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Observe `array` (float32, any shape; empty arrays teach nothing) and return it unchanged.

        Raises CalibrationError if it holds NaN or infinity.
        """
        x = np.asarray(array)
        if x.dtype.kind not in "fiub":
            raise CalibrationError(f"{self._where}: cannot observe values of dtype {x.dtype}")
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(x, F32)
        if x.size:
            low, high = x.min(), x.max()
            # NaN passes through min and max, so these two numbers tell of any value that is not finite.
            if not (np.isfinite(low) and np.isfinite(high)):
                kind = "NaN" if np.isnan(low) else "infinity"
                raise CalibrationError(f"{self._where}: saw {kind}; remove the sample or mend the model before this site")
            self._update(x, low, high)
            self._seen = True
        return array

    def calculate_qparams(self) -> QParams:
        """Scale and zero point for what was seen. Raises CalibrationError if nothing was."""
        if not self._seen:
            raise CalibrationError(f"{self._where}: saw no data; give calibration data that reaches it")
        low, high = self._range()
        return calculate_qparams(
            low,
            high,
            dtype=self.dtype,
            qscheme=self.qscheme,
            qmin=self._qmin,
            qmax=self._qmax,
            custom=self.quant_min is not None,
            eps=self.eps,
            axis=self.axis,
            site=self._where,
        )

    @property
    def _where(self) -> str:
        return self.site or type(self).__name__

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """The range to quantize: what was learned, unless the observer clips it."""
        return self._min, self._max

    @abstractmethod
    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        """Learn from `x`: float32, contiguous, not empty, finite, with smallest value `low` and largest `high`."""
