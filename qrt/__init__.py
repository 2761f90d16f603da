"""Quantized inference, in Python, at the speed of the hardware.

    model = qrt.load("model.onnx")
    int8 = qrt.quantize(model, calibration_data)
    outputs = qrt.InferenceSession(int8).run(None, {"x": x})

Names load on first use (PEP 562): `import qrt` costs no more than NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrt import observers, quantization
    from qrt.api import Model, compile, load
    from qrt.core.dtypes import (
        QDType,
        QScheme,
        per_channel_affine,
        per_channel_affine_float_qparams,
        per_channel_symmetric,
        per_tensor_affine,
        per_tensor_symmetric,
        qint8,
        qint16,
        qint32,
        qscheme,
        quint4x2,
        quint8,
        quint16,
    )
    from qrt.core.errors import (
        CalibrationError,
        DeviceError,
        InvalidInput,
        KernelCacheWarning,
        KernelError,
        ModelError,
        OutputError,
        QrtError,
        QrtWarning,
        QuantizationError,
        UnsupportedOp,
    )
    from qrt.core.qparams import QParams
    from qrt.core.qtensor import QTensor, dequantize, quantize_per_channel, quantize_per_tensor
    from qrt.options import (
        ExecutionMode,
        GraphOptimizationLevel,
        RunOptions,
        SessionOptions,
        get_all_providers,
        get_available_providers,
        get_device,
        set_default_logger_severity,
        set_default_logger_verbosity,
    )
    from qrt.quantization import QConfig, QConfigMapping, quantize, quantize_dynamic
    from qrt.session import InferenceSession, ModelMetadata, NodeArg

    __version__: str

__all__ = [
    "CalibrationError",
    "DeviceError",
    "ExecutionMode",
    "GraphOptimizationLevel",
    "InferenceSession",
    "InvalidInput",
    "KernelCacheWarning",
    "KernelError",
    "Model",
    "ModelError",
    "ModelMetadata",
    "NodeArg",
    "OutputError",
    "QConfig",
    "QConfigMapping",
    "QDType",
    "QParams",
    "QScheme",
    "QTensor",
    "QrtError",
    "QrtWarning",
    "QuantizationError",
    "RunOptions",
    "SessionOptions",
    "UnsupportedOp",
    "__version__",
    "compile",
    "dequantize",
    "get_all_providers",
    "get_available_providers",
    "get_device",
    "load",
    "observers",
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "per_channel_symmetric",
    "per_tensor_affine",
    "per_tensor_symmetric",
    "qint8",
    "qint16",
    "qint32",
    "qscheme",
    "quantization",
    "quantize",
    "quantize_dynamic",
    "quantize_per_channel",
    "quantize_per_tensor",
    "quint4x2",
    "quint8",
    "quint16",
    "set_default_logger_severity",
    "set_default_logger_verbosity",
]

# Where names come from: the modules that list them in their own __all__.
_HOMES = {
    "qrt.core.errors": (
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
    ),
    "qrt.core.dtypes": (
        "QDType",
        "QScheme",
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
    ),
    "qrt.core.qparams": ("QParams",),
    "qrt.core.qtensor": ("QTensor", "dequantize", "quantize_per_channel", "quantize_per_tensor"),
    "qrt.api": ("Model", "compile", "load"),
    "qrt.quantization": ("QConfig", "QConfigMapping", "quantize", "quantize_dynamic"),
    "qrt.session": ("InferenceSession", "ModelMetadata", "NodeArg"),
    "qrt.options": (
        "ExecutionMode",
        "GraphOptimizationLevel",
        "RunOptions",
        "SessionOptions",
        "get_all_providers",
        "get_available_providers",
        "get_device",
        "set_default_logger_severity",
        "set_default_logger_verbosity",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in ("observers", "quantization"):
        return import_module(f"qrt.{name}")
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("qrt")
    elif name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'qrt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
