"""Whether CUDA is here: one answer, which says what is missing."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from data import ASSETS

import qrt
from qrt.jit import cuda, host_target, wants_cuda

DIGITS = ASSETS / "digits.onnx"


def pretend(patch: pytest.MonkeyPatch, packages: bool = True, init: int = 0, devices: int = 1, version: int = 13000) -> None:
    """A machine with or without the packages, whose driver gives these answers."""

    def give(number: int) -> Callable[[Any], int]:
        def call(pointer: Any) -> int:
            pointer._obj.value = number
            return 0

        return call

    patch.setattr(cuda, "_version", lambda name: "1" if packages else None)
    answers = {"cuInit": lambda flags: init, "cuDeviceGetCount": give(devices), "cuDriverGetVersion": give(version)}
    driver(patch, lambda: SimpleNamespace(**answers))


def driver(patch: pytest.MonkeyPatch, give: Callable[[], Any]) -> None:
    """Lets `give` make NVIDIA's driver; other libraries are what they are."""
    real = ctypes.CDLL
    patch.setattr(ctypes, "CDLL", lambda name, *how: give() if name == "libcuda.so.1" else real(name, *how))


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, packages=False)
    for asked in (
        {"target": "cuda"},
        {"providers": ["CUDAExecutionProvider"]},
        {"providers": [("CUDAExecutionProvider", {"device_id": 0})]},
    ):
        with pytest.raises(
            qrt.DeviceError, match=r"'cuda' cannot be used: numba, numba-cuda, .* is not installed: pip install 'qrt\[cuda\]'"
        ):
            qrt.InferenceSession(DIGITS, **asked)  # type: ignore[arg-type]


def test_packages_of_two_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr(cuda, "_version", lambda name: "13.4.1" if name == "nvidia-nvvm" else "13.0.88")
    with pytest.raises(qrt.DeviceError, match=r"nvidia-nvvm is of CUDA 13\.4 and nvidia-nvjitlink of 13\.0: pip install 'qrt\[cuda\]'"):
        qrt.InferenceSession(DIGITS, target="cuda")


def test_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, init=100)
    with pytest.raises(qrt.DeviceError, match="cuInit gave 100"):
        qrt.InferenceSession(DIGITS, target="cuda")
    pretend(monkeypatch, init=3)
    with pytest.raises(qrt.DeviceError, match="a process that was forked from one that used CUDA"):
        qrt.InferenceSession(DIGITS, target="cuda")
    pretend(monkeypatch, version=12090)
    with pytest.raises(qrt.DeviceError, match=r"driver is for CUDA 12\.9, .*: install one of 580 or later"):
        qrt.InferenceSession(DIGITS, target="cuda")

    def absent() -> None:
        raise OSError("libcuda.so.1")

    driver(monkeypatch, absent)
    with pytest.raises(qrt.DeviceError, match=r"libcuda.so.1.* is not installed: install a driver for CUDA 13"):
        qrt.InferenceSession(DIGITS, target="cuda")


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, devices=0)
    assert not cuda.available()
    with pytest.raises(qrt.DeviceError, match="finds no device: see nvidia-smi"):
        qrt.InferenceSession(DIGITS, target="cuda")


def test_what_is_said_to_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert cuda.available()
    assert qrt.get_available_providers() == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert qrt.get_device() == "GPU"
    pretend(monkeypatch, devices=0)
    assert qrt.get_available_providers() == ["CPUExecutionProvider"]
    assert qrt.get_device() == "CPU"


def test_the_target_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a GPU, the CPU runs what it is best at; what was compiled for it is refused."""
    pretend(monkeypatch, packages=False)
    monkeypatch.setenv("QRT_TARGET", "cuda")
    assert wants_cuda()
    assert not wants_cuda("generic")
    assert host_target().arch == host_target("generic").arch
    with pytest.raises(qrt.DeviceError):
        qrt.InferenceSession(DIGITS)
    with pytest.raises(qrt.InvalidInput, match="leave out the target 'cuda'"):
        qrt.compile(DIGITS, "x.qrt")
    assert qrt.InferenceSession(DIGITS, target="generic").get_providers() == ["CPUExecutionProvider"]


def test_importing_touches_nothing_of_cuda() -> None:
    """Not even a session on the CPU does, wherever the driver is installed."""
    program = f"""
import ctypes, sys
real = ctypes.CDLL
class Watched(real):
    def __init__(self, name, *args, **kwargs):
        assert "cuda" not in str(name), name
        super().__init__(name, *args, **kwargs)
ctypes.CDLL = Watched
import qrt
qrt.InferenceSession({str(DIGITS)!r}).close()
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("cuda", "numba_cuda") or name in ("qrt.jit.driver", "qrt.jit.cuda")))
"""
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
