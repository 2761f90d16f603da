"""PartialWrapper: a constructor with some of its arguments given beforehand, as presets and qconfigs hold it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["PartialWrapper"]


class PartialWrapper:
    """Makes objects: `p` is called with the arguments at hand, and with what each of `callable_args` returns at that moment.

    An argument given in the call itself wins.
    """

    def __init__(self, p: partial[Any], callable_args: dict[str, Callable[[], Any]] | None = None) -> None:
        self.p = p
        self.callable_args = callable_args or {}

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        late = {name: make() for name, make in self.callable_args.items() if name not in keywords}
        return self.p(*args, **late, **keywords)

    def __repr__(self) -> str:
        return f"{self.p!r}{self.callable_args or ''}"

    def with_args(self, **kwargs: Any) -> PartialWrapper:
        """The same with further arguments, or other values of those already there."""
        return PartialWrapper(partial(self.p, **kwargs), self.callable_args)

    def with_callable_args(self, **kwargs: Callable[[], Any]) -> PartialWrapper:
        """The same with arguments that are computed anew for each object."""
        return PartialWrapper(self.p, {**self.callable_args, **kwargs})


class Configurable:
    """Gives a class `with_args` and `with_callable_args`."""

    @classmethod
    def with_args(cls, **kwargs: Any) -> PartialWrapper:
        """A constructor of this class with these arguments: `MinMaxObserver.with_args(dtype=qrt.qint8)()`."""
        return PartialWrapper(partial(cls, **kwargs))

    @classmethod
    def with_callable_args(cls, **kwargs: Callable[[], Any]) -> PartialWrapper:
        """A constructor of this class that calls each of these for an argument, each time it makes an object."""
        return PartialWrapper(partial(cls), kwargs)
