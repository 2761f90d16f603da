"""QParams: the scale(s) and zero point(s) that tie codes to real values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qrt.core.dtypes import QDType
from qrt.core.errors import QuantizationError
from qrt.core.record import record

__all__ = ["QParams"]

# The least and the largest float32 that are positive and finite.
_LEAST, _MOST = 2.0**-149, (2 - 2.0**-23) * 2.0**127


def _between(array: np.ndarray, low: float, high: float) -> bool:
    """Whether all elements lie in low … high. One alone is compared in Python, which takes a tenth of the time."""
    if array.ndim == 0:
        return bool(low <= array.item() <= high)
    return bool(((array >= low) & (array <= high)).all())


@record(eq=False)
class QParams:
    """real = scale · (code − zero_point). Unpacks as `scale, zero_point = qparams`.

    `scale`: float32, shape () per tensor or (C,) per channel; finite and > 0.
    `zero_point`: int32 of the same shape, inside the code range of `dtype`; or float32 per channel, anywhere, as
    embeddings have it.
    `axis`: the channel axis, None per tensor; negative counts from the last.
    Raises QuantizationError where one of these does not hold.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    dtype: QDType
    axis: int | None = None

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale)
        if scale.dtype != np.float32:
            with np.errstate(over="ignore"):
                scale = scale.astype(np.float32)
        zero_point = np.asarray(self.zero_point)
        if scale.ndim > 1 or scale.shape != zero_point.shape or (scale.ndim == 1) != (self.axis is not None):
            raise QuantizationError(
                f"scale {scale.shape} and zero point {zero_point.shape} do not fit axis {self.axis}: give two scalars and "
                "no axis, or two vectors of one length and an axis"
            )
        if not _between(scale, _LEAST, _MOST):
            raise QuantizationError(f"scale {scale} is not finite and positive")
        if zero_point.dtype.kind == "f" and self.axis is not None:
            if not np.isfinite(zero_point).all():
                raise QuantizationError(f"zero point {zero_point} is not finite")
            object.__setattr__(self, "scale", scale)
            object.__setattr__(self, "zero_point", zero_point.astype(np.float32))
            return
        if zero_point.dtype.kind not in "iu":
            raise QuantizationError(f"zero point {zero_point} has dtype {zero_point.dtype}: give integers")
        if not _between(zero_point, self.dtype.qmin, self.dtype.qmax):
            raise QuantizationError(f"zero point {zero_point} is outside {self.dtype!r} ({self.dtype.qmin}..{self.dtype.qmax})")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point.astype(np.int32))

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.scale, self.zero_point))

    def along(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point shaped to broadcast over an array of `shape`.

        Raises QuantizationError if that has no such axis, or another number of channels on it.
        """
        if self.axis is None:
            return self.scale, self.zero_point
        if not -len(shape) <= self.axis < len(shape) or shape[self.axis] != self.scale.size:
            raise QuantizationError(f"{self.scale.size} scales along axis {self.axis} do not fit an array of shape {shape}")
        broadcast = [1] * len(shape)
        broadcast[self.axis] = -1
        return self.scale.reshape(broadcast), self.zero_point.reshape(broadcast)
