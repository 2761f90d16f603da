"""Quantization of whole models: static (with calibration data) and dynamic; and the configuration that torch.ao.quantization knows.

What needs the graph is loaded when it is first used.
"""
# ruff: noqa: F403 - each module lists its public names in its __all__; here stand only those that are loaded late

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qrt import observers
from qrt.observers import *
from qrt.quantization import backend_config, custom_config, qconfig, qconfig_mapping
from qrt.quantization.backend_config import *
from qrt.quantization.custom_config import *
from qrt.quantization.qconfig import *
from qrt.quantization.qconfig_mapping import *

if TYPE_CHECKING:
    from qrt.quantization.static import *

# Module → the names that are loaded from it when they are first used.
_LATE = {
    "static": ("quantize", "quantize_dynamic"),
}
_HOME_OF = {name: home for home, names in _LATE.items() for name in names}

if not TYPE_CHECKING:  # mypy follows the imports, but no computed list; and it shall tell of names that are not there
    __all__ = [
        *observers.__all__,
        *qconfig.__all__,
        *qconfig_mapping.__all__,
        *backend_config.__all__,
        *custom_config.__all__,
        *_HOME_OF,
    ]

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return __all__
