"""Quantization of whole models: static (with calibration data) and dynamic. Names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrt.quantization.dynamic import quantize_dynamic
    from qrt.quantization.qconfig import (
        QConfig,
        QConfigMapping,
        default_per_channel_weight_observer,
        default_qconfig,
        default_weight_observer,
    )
    from qrt.quantization.static import quantize

__all__ = [
    "QConfig",
    "QConfigMapping",
    "default_per_channel_weight_observer",
    "default_qconfig",
    "default_weight_observer",
    "quantize",
    "quantize_dynamic",
]

_MODULES = {"quantize": "static", "quantize_dynamic": "dynamic"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'qconfig')}"), name)
