"""onnx_ir as `ir`, imported without SymPy, which takes more time and memory than all else that a model's first start imports.

onnx_ir brings SymPy in for arithmetic with symbolic dimensions, which qrt leaves alone. While onnx_ir is imported, stand-ins take the place
of SymPy and of the module that lists SymPy's functions; the first look at anything in one imports what it stands for, so that
whoever does such arithmetic finds it. If another version of onnx_ir lays this out otherwise, SymPy comes at once, and nothing else changes.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

__all__ = ["ir"]

_LATER = ("sympy", "onnx_ir._symbolic_shapes")


class _StandIn(ModuleType):
    """A module that is imported when it is first asked for something."""

    def __getattr__(self, name: str) -> object:
        _leave(self)
        return getattr(import_module(self.__name__), name)


def _leave(stand_in: ModuleType) -> None:
    """From here on, importing the module brings the module itself."""
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]


_stand_ins = [_StandIn(name) for name in _LATER if name not in sys.modules and "onnx_ir" not in sys.modules]
sys.modules.update({stand_in.__name__: stand_in for stand_in in _stand_ins})
try:
    import onnx_ir as ir
finally:
    for _stand_in in _stand_ins:
        _leave(_stand_in)
