"""onnx_ir as `ir`, imported without what it and onnx bring along and a model's start has no use for.

That takes more time than all else that a first start imports: SymPy (onnx_ir's arithmetic with symbolic dimensions), protobuf's text
formats and its implementation in Python, onnx's printers, parsers and tools, and what all of them handle files with. While onnx and
onnx_ir are imported, stand-ins take the places of these modules; the first look at anything in one imports what it stands for, so that
whoever needs it finds it. If another version lays this out otherwise, such a module comes at once, and nothing else changes.
"""

from __future__ import annotations

import importlib
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import ModuleType

__all__ = ["ir"]

_leaving = threading.Lock()
_METADATA = "importlib.metadata"
_LATER = (
    _METADATA,
    "calendar",
    "concurrent.futures",
    "google.protobuf.internal.python_message",
    "google.protobuf.json_format",
    "google.protobuf.text_format",
    "onnx.compose",
    "onnx.gen_proto",
    "onnx.parser",
    "onnx.printer",
    "onnx.utils",
    "onnx.version_converter",
    "onnx_ir._symbolic_shapes",
    "onnx_ir.schemas",
    "packaging.version",
    "shutil",
    "sympy",
    "tempfile",
    "uuid",
)


class _StandIn(ModuleType):
    """A module that is imported when it is first asked for something."""

    def __getattr__(self, name: str) -> object:
        _leave(self)
        return getattr(import_module(self.__name__), name)


class _Metadata(_StandIn):
    """That of importlib, which onnx asks for its own version and nothing else."""

    def version(self, name: str) -> str:
        """What the folder beside the package is named by (PyPA, "Recording installed projects"), or else what importlib finds."""
        package = sys.modules.get(name)
        beside = Path(package.__file__).parent.parent.glob(f"{name}-*.dist-info") if package is not None and package.__file__ else ()
        found = [folder.name[len(name) + 1 : -len(".dist-info")] for folder in beside]
        if len(found) != 1:
            _leave(self)
            return str(import_module(self.__name__).version(name))
        return found[0]


def _leave(stand_in: ModuleType) -> None:
    """From here on, importing the module brings the module itself."""
    with _leaving:  # else another thread could have put the module itself there in between
        if sys.modules.get(stand_in.__name__) is stand_in:
            del sys.modules[stand_in.__name__]


def _attach(stand_in: ModuleType) -> None:
    """Lets the package, if it is imported, have the module as an attribute, which importing it would have done."""
    package, _, name = stand_in.__name__.rpartition(".")
    if package in sys.modules and name not in vars(sys.modules[package]):
        setattr(sys.modules[package], name, stand_in)


_missing = [name for name in _LATER if name not in sys.modules and "onnx_ir" not in sys.modules]
_stand_ins = [(_Metadata if name == _METADATA else _StandIn)(name) for name in _missing]
sys.modules.update({stand_in.__name__: stand_in for stand_in in _stand_ins})
try:
    for _stand_in in _stand_ins:
        _attach(_stand_in)
    import onnx_ir as ir
finally:
    for _stand_in in _stand_ins:
        _attach(_stand_in)
        _leave(_stand_in)
        if isinstance(_stand_in, _Metadata) and vars(importlib).get("metadata") is _stand_in:
            del importlib.metadata  # nobody else is to import it from there
