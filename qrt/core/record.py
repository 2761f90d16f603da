"""Records: frozen dataclasses that take a quarter of the time to define.

`dataclass(frozen=True)` compiles six methods for each class, and so the classes of a first start took longer than reading its model. Of a
record, `__init__` alone is compiled; the others are the same functions for every class. All else that `dataclasses` does works on records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform, overload

__all__ = ["record"]

_T = TypeVar("_T")


@overload
def record(cls: type[_T], /) -> type[_T]: ...
@overload
def record(*, eq: bool) -> Callable[[type[_T]], type[_T]]: ...
@dataclass_transform(frozen_default=True)
def record(cls: type[_T] | None = None, /, *, eq: bool = True) -> type[_T] | Callable[[type[_T]], type[_T]]:
    """A class of typed fields that are set once. `eq`: whether records of equal fields are equal, and hash alike; else each is itself only.

    A record may derive from another, but no dataclass from a record.
    """

    def define(cls: type[_T]) -> type[_T]:
        methods = {"__repr__": _repr, "__setattr__": _set, "__delattr__": _delete}
        made = dataclass(repr=False, eq=False)(cls)
        for name, method in (methods | _comparing(made) if eq else methods).items():
            if name not in vars(cls):
                setattr(made, name, method)
        return made

    return define if cls is None else define(cls)


def _comparing(cls: type[Any]) -> dict[str, Callable[..., Any]]:
    names = [field.name for field in fields(cls) if field.compare]
    values: Callable[[object], object] = attrgetter(*names) if names else lambda _: ()

    def equal(self: object, other: object) -> bool:
        return bool(values(self) == values(other)) if type(other) is type(self) else NotImplemented

    return {"__eq__": equal, "__hash__": lambda self: hash(values(self))}


def _repr(self: Any) -> str:
    shown = [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _set(self: Any, name: str, value: object) -> None:
    held = vars(self)
    if name in held or name not in self.__dataclass_fields__:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")
    held[name] = value


def _delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
