"""The kernel cache between processes: what a key depends on, warm starts, and two processes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qrt.core.target import TARGETS
from qrt.jit import Kernel, cache, record_dtype
from qrt.jit.host import host_target
from qrt.ops.gemm.product import COPY

TARGET = host_target()
OWN_LINKER = sys.platform.startswith("linux") and TARGET.arch == "x86_64"

# Runs a product on two threads; tells which modules came along and what came out.
PROGRAM = """
import json, sys
import numpy as np
from qrt.jit.host import host_target
from qrt.ops.gemm import Codes, Dense, Weights
from qrt.ops.op import Spec
from qrt.ops.program import Program
from qrt.runtime.plan import Packs, build
program = Program()
x = np.arange(64 * 24, dtype=np.int64).reshape(64, 24).astype(np.uint8)
program.inputs = [program.value(Spec(x.shape, x.dtype))]
w = (np.arange(24 * 40, dtype=np.int64) * 7).astype(np.int8).reshape(1, 1, 24, 40)
program.outputs = list(program.call(Dense(Weights(w), Codes(np.float32([1e-3]), 128)), program.inputs, "dense"))
y, = build(program, host_target(), 2, Packs()).run([x])
brought = {name: name in sys.modules for name in ("numba", "llvmlite.binding", "onnx")}
print(json.dumps({**brought, "y": y.tobytes().hex(), "isa": host_target().isa}))
"""


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "QRT_CACHE_DIR": str(folder), **environment}
    return subprocess.Popen(
        [sys.executable, "-I", "-W", "error", "-c", PROGRAM], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found: dict[str, object] = json.loads(out)
    return found


def test_processes_that_compile_at_once_and_a_warm_one_that_does_not(tmp_path: Path) -> None:
    both = [start(tmp_path), start(tmp_path)]
    first, second = (finish(process) for process in both)
    assert first["y"] == second["y"]
    files = sorted(p.name for p in (tmp_path / "kernels").iterdir())
    assert all(name.endswith(".o") for name in files)  # no temporary file stays
    assert len(files) == len({name.partition("-")[0] for name in files})
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "kernels").iterdir()}

    warm = finish(start(tmp_path))
    assert warm == {**first, "numba": False, "llvmlite.binding": not OWN_LINKER, "onnx": False}
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "kernels").iterdir()} == times

    forced = finish(start(tmp_path, QRT_TARGET="generic"))
    assert (forced["isa"], forced["y"]) == ("generic", first["y"])


def test_a_key_depends_on_what_the_code_depends_on() -> None:
    kernel = Kernel("copy__generic", COPY.record, COPY.source, (1, "a"))
    others = [
        replace(kernel, name="copy2__generic"),
        replace(kernel, params=(2, "a")),
        replace(kernel, source="qrt.ops.gemm.cpu_pack:pack_float"),
        replace(kernel, source="qrt.ops.movement.cpu:copy"),
        replace(kernel, record=record_dtype(("x", "i8"), ("y", "i8"), ("m", "i8"))),
        replace(kernel, record=record_dtype(("x", "i8"), ("y", "i8"), ("n", "i4"))),
    ]
    keys = [cache.key(k, TARGET) for k in (kernel, *others)]
    assert len(set(keys)) == len(keys)
    assert cache.key(kernel, TARGET) == cache.key(replace(kernel), TARGET)
    assert len({cache.key(kernel, target) for target in TARGETS}) == len(TARGETS)


def test_a_key_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "cache_key_probe"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "cpu.py").write_text("def f(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kernel = Kernel("probe__generic", COPY.record, "cache_key_probe.cpu:f")

    def key() -> str:
        cache.source_digest.cache_clear()
        cache._digest_of.cache_clear()
        return cache.key(kernel, TARGET)

    before = key()
    assert key() == before
    (package / "cpu.py").write_text("def f(): return 2\n")
    changed = key()
    (package / "cpu_more.py").write_text("x = 1\n")  # what cpu.py may import
    assert len({before, changed, key()}) == 3


def test_a_key_follows_the_families_that_a_source_imports_from(tmp_path: Path) -> None:
    imports = {"conv": "from qrt.ops.gemm.cpu_micro import Micro", "gemm": "from qrt.ops.movement import cpu", "movement": "", "pool": ""}
    for family, line in imports.items():
        (tmp_path / family).mkdir()
        (tmp_path / family / "cpu.py").write_text(f"import numpy\n{line}\n")

    def digest(family: str) -> bytes:
        cache._digest_of.cache_clear()
        return cache._digest_of(str(tmp_path / family), "cpu*.py")

    before = {family: digest(family) for family in imports}
    (tmp_path / "movement" / "cpu.py").write_text("x = 1\n")
    assert [family for family in imports if digest(family) != before[family]] == ["conv", "gemm", "movement"]
    cache._digest_of.cache_clear()


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRT_CACHE_DIR", str(tmp_path / "a"))
    assert cache.cache_dir() == tmp_path / "a"
    monkeypatch.delenv("QRT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache.cache_dir() == tmp_path / "b" / "qrt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / ".cache" / "qrt"


def test_addresses_are_loaded_once() -> None:
    from qrt.jit.load import address

    assert address(COPY, TARGET) == address(replace(COPY), TARGET)
