"""Small helpers that torch.ao.quantization has at its top level."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any, TypeVar

from qrt.core.errors import InvalidInput

__all__ = ["MatchAllNode", "Pattern", "default_eval_fn", "get_combined_dict", "get_fuser_method_new"]

Key = TypeVar("Key")
Value = TypeVar("Value")


class MatchAllNode:
    """Stands in a Pattern for any node at all."""


# An operator (a type, a function or an ONNX operator's name), or operators nested as (last, (one before, first)).
Pattern = type[Any] | Callable[..., Any] | str | tuple["Pattern", ...]


def default_eval_fn(model: Callable[[Any], object], calib_data: Iterable[Any]) -> None:
    """Calls `model` with the input of every pair (input, target) of `calib_data`, or with what is no pair as it is: a calibration loop."""
    for sample in calib_data:
        model(sample[0] if isinstance(sample, tuple | list) and len(sample) == 2 else sample)


def get_combined_dict(default_dict: dict[Key, Value], additional_dict: dict[Key, Value]) -> dict[Key, Value]:
    """A new dict of both, in which `additional_dict` wins."""
    return {**default_dict, **additional_dict}


def get_fuser_method_new(op_pattern: Any, fuser_method_mapping: Mapping[Any, Value]) -> Value:
    """What `fuser_method_mapping` has for a pattern, or for the pattern with MatchAllNode in the place of some operators, the last first.

    Raises InvalidInput if there is nothing.
    """
    for pattern in _loosened(op_pattern):
        if pattern in fuser_method_mapping:
            return fuser_method_mapping[pattern]
    raise InvalidInput(f"there is no fuser method for {op_pattern!r}, nor for it with MatchAllNode: add one to the mapping")


def _loosened(pattern: Any) -> Iterator[Any]:
    """The pattern, then with MatchAllNode for the last operator, for the one before it, for both …"""
    if isinstance(pattern, tuple | list):
        yield from product(*(list(_loosened(part)) for part in pattern))
    else:
        yield from (pattern, MatchAllNode)
