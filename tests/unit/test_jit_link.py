"""Objects into memory: our linker beside LLVM's, on sound and on damaged objects; what the host can run, asked of Linux and of LLVM."""

from __future__ import annotations

import platform
import random
import sys

import numpy as np
import pytest
from data import ASSETS, digits
from graphs import make

import qrt
from qrt.core.target import TARGETS
from qrt.jit import Kernel, cache, elf, host, host_target, load
from qrt.jit.compile import object_code
from qrt.ops.gemm.product import COPY
from qrt.runtime.kernels import EXECUTOR

OURS = sys.platform.startswith("linux") and platform.machine() == "x86_64"
ours = pytest.mark.skipif(not OURS, reason="LLVM links here")


def code_of(kernel: Kernel) -> bytes:
    target = host_target()
    return cache.fetch(kernel, target, lambda: object_code(kernel, target))


def outputs() -> list[bytes]:
    """Of a network of products, tables and constants, and of functions of the C library."""
    network = qrt.InferenceSession(ASSETS / "digits.onnx", num_threads=1)
    functions = make("(float[3, 50] x) => (float[3, 50] y) { y = Tan(x) }")
    x = np.linspace(-3, 3, 150, dtype=np.float32).reshape(3, 50)
    found = network.run(None, {"image": digits()["test"][0][:3]}) + qrt.InferenceSession(functions, num_threads=1).run(None, {"x": x})
    np.testing.assert_allclose(found[-1], np.tan(x), rtol=1e-5)
    return [array.tobytes() for array in found]


@ours
def test_both_linkers_make_the_same_of_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = outputs()
    monkeypatch.setattr(load, "_addresses", {})
    monkeypatch.setattr(elf, "link", lambda code, symbol: None)
    assert outputs() == wanted
    assert len(load._addresses) > 3


@ours
def test_an_object_that_is_not_there_or_not_whole_is_left_to_llvm() -> None:
    code = code_of(EXECUTOR)
    assert elf.link(code, f"qrt_{EXECUTOR.name}") is not None
    assert elf.link(code, "qrt_other") is None
    assert elf.link(b"", "qrt_other") is None
    assert elf.link(b"MZ" + code, f"qrt_{EXECUTOR.name}") is None
    for length in range(0, len(code), 13):
        elf.link(code[:length], f"qrt_{EXECUTOR.name}")  # whatever it says, it says so


@ours
def test_damaged_objects_raise_nothing() -> None:
    code, rng = code_of(EXECUTOR), random.Random(0)
    for _ in range(500):
        broken = bytearray(code)
        for _ in range(rng.randint(1, 8)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        found = elf.link(bytes(broken), f"qrt_{EXECUTOR.name}")
        assert found is None or found > 0


def test_another_machines_object_is_left_to_llvm() -> None:
    foreign = next(target for target in TARGETS if target.arch != host_target().arch and target.isa == "generic")
    assert elf.link(object_code(COPY, foreign), f"qrt_{COPY.name}") is None


@ours
def test_linux_and_llvm_agree_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {name for target in TARGETS if target.arch == "x86_64" for name in target.needs}
    assert host._linux_features() == host._llvm_features() & needed
    monkeypatch.setattr(host, "_linux_features", lambda: None)
    host._host_features.cache_clear()
    assert host_target() == host_target(host_target().isa)
