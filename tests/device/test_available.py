"""Whether CUDA is here: one answer, which says what is missing."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from qrt.core.errors import DeviceError
from qrt.jit import cuda


def pretend(patch: pytest.MonkeyPatch, packages: bool = True, init: int = 0, devices: int = 1) -> None:
    """A machine with or without the packages, whose driver gives these answers."""

    def count(pointer: Any) -> int:
        pointer._obj.value = devices
        return 0

    patch.setattr(cuda, "_version", lambda name: "1" if packages else None)
    patch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuInit=lambda flags: init, cuDeviceGetCount=count))


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, packages=False)
    with pytest.raises(DeviceError, match=r"numba-cuda, .* is not installed: pip install 'qrt\[cuda\]'"):
        cuda.refuse()


def test_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, init=100)
    with pytest.raises(DeviceError, match="cuInit gave 100"):
        cuda.refuse()

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(DeviceError, match=r"libcuda.so.1.* is not installed"):
        cuda.refuse()


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, devices=0)
    assert not cuda.available()
    with pytest.raises(DeviceError, match="finds no device"):
        cuda.refuse()


def test_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert cuda.available()
    with pytest.raises(DeviceError, match="nothing that runs a whole model"):
        cuda.refuse()
