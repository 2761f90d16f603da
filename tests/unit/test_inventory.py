"""Someone who knows torch.ao.quantization finds its names and parameters here."""

from __future__ import annotations

import inspect
from functools import reduce
from importlib import import_module
from typing import Any

import pytest
from inventory import INVENTORY

OWED = [(home, name, wanted) for homes in INVENTORY.values() for home, names in homes.items() for name, wanted in names.items()]


@pytest.mark.parametrize(("home", "name", "wanted"), OWED)
def test_name_and_parameters(home: str, name: str, wanted: str | None) -> None:
    package, *classes = home.split(":")
    found: Any = reduce(getattr, [*classes, name], import_module(package))
    if wanted is None:
        return
    names = [p for p in inspect.signature(found).parameters if p != "self"]
    owed = [word for word in wanted.split(", ") if word]
    assert [n for n in names if n in owed] == owed, f"{home}.{name} lacks a parameter, or has another order"
    assert inspect.getdoc(found)


def test_whole_groups() -> None:
    assert {group: sum(map(len, homes.values())) for group, homes in INVENTORY.items()} == {
        "observers": 32,
        "fake-quantize": 24,
        "tensor & dtypes": 11,
        "tensor methods": 27,
        "granularity/affine observers": 12,
        "qconfig": 20,
        "qconfig mapping": 3,
        "backend config": 5,
        "custom config": 4,
        "fx graph mode": 8,
        "pt2e quantizers": 13,
        "jit mode": 9,
        "numeric debugger": 6,
    }
