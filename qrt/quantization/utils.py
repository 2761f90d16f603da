"""Small helpers that torch.ao.quantization has at its top level."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["MatchAllNode", "Pattern", "default_eval_fn", "get_combined_dict"]

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
