"""The small helpers of qrt.quantization."""

from __future__ import annotations

from typing import Any

import pytest

from qrt.core.errors import InvalidInput
from qrt.quantization import MatchAllNode, default_eval_fn, get_combined_dict, get_fuser_method_new

CONV, BN, RELU = "Conv", "BatchNormalization", "Relu"


def test_default_eval_fn_calls_with_inputs_alone() -> None:
    seen: list[Any] = []
    default_eval_fn(seen.append, [("x", 0), ["y", 1], "z"])
    assert seen == ["x", "y", "z"]


def test_get_combined_dict_changes_neither() -> None:
    first, second = {"a": 1, "b": 2}, {"b": 3}
    assert get_combined_dict(first, second) == {"a": 1, "b": 3}
    assert (first, second) == ({"a": 1, "b": 2}, {"b": 3})


def test_a_fuser_is_found_for_the_pattern_or_a_looser_one() -> None:
    exact = (RELU, (BN, CONV))
    mapping = {exact: "exact", (RELU, (MatchAllNode, CONV)): "loose", (RELU, (BN, MatchAllNode)): "tail", (RELU, MatchAllNode): "pair"}
    assert get_fuser_method_new(exact, mapping) == "exact"
    assert get_fuser_method_new((RELU, ("LayerNormalization", CONV)), mapping) == "loose"
    assert get_fuser_method_new((RELU, (BN, "Gemm")), mapping) == "tail"
    assert get_fuser_method_new((RELU, "Gemm"), mapping) == "pair"
    with pytest.raises(InvalidInput, match=r"no fuser method for .*Gelu"):
        get_fuser_method_new(("Gelu", CONV), mapping)
