"""The one error tree of qrt.

    QrtError
    ├── ModelError            a model or checkpoint file that cannot be read, is malformed or ill-typed
    │   └── UnsupportedOp     an operator, attribute or dtype that qrt cannot run
    ├── InvalidInput          a feed or argument: unknown name, wrong dtype, rank, shape or value
    ├── QuantizationError     a quantization request that cannot be carried out
    │   └── CalibrationError  calibration data that is empty, not finite or never seen
    ├── KernelError           a kernel that cannot be compiled or loaded
    ├── DeviceError           a GPU that is asked for and cannot be used
    └── OutputError           a result that cannot be written

Every message says what is wrong, where (file, node, tensor) and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "DeviceError",
    "InvalidInput",
    "KernelCacheWarning",
    "KernelError",
    "ModelError",
    "OutputError",
    "QrtError",
    "QrtWarning",
    "QuantizationError",
    "UnsupportedOp",
]


class QrtError(Exception):
    """Base of every error qrt raises on purpose."""


class ModelError(QrtError, ValueError):
    """A model or checkpoint that cannot be read, is malformed, or is ill-typed."""


class UnsupportedOp(ModelError):
    """An operator, attribute or dtype that qrt cannot run."""


class InvalidInput(QrtError, ValueError):
    """A feed or argument with an unknown name, wrong dtype, rank, shape or value."""


class QuantizationError(QrtError, ValueError):
    """A quantization request that cannot be carried out."""


class CalibrationError(QuantizationError):
    """Calibration data that is empty, not finite, or that never reached an observer."""


class KernelError(QrtError, RuntimeError):
    """A kernel that cannot be compiled or loaded on this machine."""


class DeviceError(QrtError, RuntimeError):
    """A GPU that was asked for and cannot be used: no device, no driver, or a package that is not installed."""


class OutputError(QrtError, OSError):
    """A result that cannot be written."""


class QrtWarning(UserWarning):
    """Base of every warning qrt gives."""


class KernelCacheWarning(QrtWarning):
    """The kernel cache cannot be used; kernels are compiled in memory instead."""
