"""Quantized dtypes and qschemes: the vocabulary people know from torch, over NumPy storage."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np

from qrt.core.record import record

__all__ = [
    "QDType",
    "QScheme",
    "dtype_of",
    "is_float",
    "is_number",
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "per_channel_symmetric",
    "per_tensor_affine",
    "per_tensor_symmetric",
    "qint8",
    "qint16",
    "qint32",
    "qscheme",
    "quint4x2",
    "quint8",
    "quint16",
]


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype of arrays called `name`; NumPy has bfloat16 from ml_dtypes. Raises TypeError."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # here, because hardly any model needs it

    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of it hold floats, bfloat16 included, which is none of NumPy's own."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def is_number(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of it hold numbers or bools."""
    return dtype.kind in "biu" or is_float(dtype)


@record
class QDType:
    """A quantized dtype: its name, its NumPy storage and the range of its codes (both ends included)."""

    name: str
    storage: np.dtype
    qmin: int
    qmax: int

    @property
    def signed(self) -> bool:
        """Whether codes may be negative."""
        return self.qmin < 0

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return (self.qmax - self.qmin).bit_length()

    def __repr__(self) -> str:
        return f"qrt.{self.name}"


quint8 = QDType("quint8", np.dtype(np.uint8), 0, 255)
qint8 = QDType("qint8", np.dtype(np.int8), -128, 127)
quint16 = QDType("quint16", np.dtype(np.uint16), 0, 65535)
qint16 = QDType("qint16", np.dtype(np.int16), -32768, 32767)
qint32 = QDType("qint32", np.dtype(np.int32), -(2**31), 2**31 - 1)
quint4x2 = QDType("quint4x2", np.dtype(np.uint8), 0, 15)


class QScheme(Enum):
    """How real values map to codes: one or many scales, with or without a free zero point."""

    per_tensor_affine = "per_tensor_affine"
    per_tensor_symmetric = "per_tensor_symmetric"
    per_channel_affine = "per_channel_affine"
    per_channel_symmetric = "per_channel_symmetric"
    per_channel_affine_float_qparams = "per_channel_affine_float_qparams"

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is fixed at the middle of the code range."""
        return self in (QScheme.per_tensor_symmetric, QScheme.per_channel_symmetric)

    @property
    def per_channel(self) -> bool:
        """Whether there is one scale per index of an axis."""
        return self not in (QScheme.per_tensor_affine, QScheme.per_tensor_symmetric)

    def __repr__(self) -> str:
        return f"qrt.{self.name}"


qscheme = QScheme
per_tensor_affine = QScheme.per_tensor_affine
per_tensor_symmetric = QScheme.per_tensor_symmetric
per_channel_affine = QScheme.per_channel_affine
per_channel_symmetric = QScheme.per_channel_symmetric
per_channel_affine_float_qparams = QScheme.per_channel_affine_float_qparams
