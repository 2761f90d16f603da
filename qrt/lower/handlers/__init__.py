"""ONNX spelling → typed ops: one file a family, each with a literal table; HANDLERS is their union."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from qrt.lower.lowering import Handler

__all__ = ["HANDLERS"]

_Key = tuple[str, str]
# The families that most models need first.
_FAMILIES = ("convolution", "gemm", "quantized", "spatial", "movement", "elementwise", "indexing", "resize", "reduction", "recurrent")


class _Union(Mapping[_Key, Handler]):
    """Families are imported, in order, until one has the operator that is asked for: importing all takes longer than planning a model."""

    def __init__(self) -> None:
        self._found: dict[_Key, Handler] = {}

    def __getitem__(self, key: _Key) -> Handler:
        for family in _FAMILIES:
            if key in self._found:
                break
            self._found.update(import_module(f"{__name__}.{family}").HANDLERS)
        return self._found[key]

    def _all(self) -> dict[_Key, Handler]:
        return {key: handler for family in _FAMILIES for key, handler in import_module(f"{__name__}.{family}").HANDLERS.items()}

    def __iter__(self) -> Iterator[_Key]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


HANDLERS: Mapping[_Key, Handler] = _Union()
