"""A kernel cache that was damaged, tampered with or cannot be written costs a compilation, never a wrong kernel."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from kernels.native import call

from qrt.core.errors import KernelCacheWarning, KernelError
from qrt.jit import Kernel, cache, record_dtype
from qrt.jit.compile import object_code
from qrt.jit.host import host_target
from qrt.jit.load import address
from qrt.ops.gemm.product import COPY

TARGET = host_target()
CODE = bytes(range(256)) * 20


class Compiler:
    """Stands for the compiler; counts how often it is asked."""

    def __init__(self, code: bytes = CODE) -> None:
        self.code, self.calls = code, 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.code


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of one kernel in a cache of its own, written."""
    monkeypatch.setenv("QRT_CACHE_DIR", str(tmp_path / "cache"))
    compiler = Compiler()
    assert cache.fetch(COPY, TARGET, compiler) == CODE
    assert compiler.calls == 1
    (found,) = (tmp_path / "cache" / "kernels").iterdir()  # nothing temporary stays
    return found


def assert_compiled_again(entry: Path) -> None:
    again = Compiler()
    assert cache.fetch(COPY, TARGET, again) == CODE
    assert again.calls == 1
    third = Compiler()
    assert cache.fetch(COPY, TARGET, third) == CODE  # the entry was repaired
    assert third.calls == 0
    assert [p.name for p in entry.parent.iterdir()] == [entry.name]


def test_an_entry_is_read_back_and_is_its_owner_s_alone(entry: Path) -> None:
    again = Compiler(b"other")
    assert cache.fetch(COPY, TARGET, again) == CODE
    assert again.calls == 0
    assert entry.stat().st_mode & 0o777 == 0o600
    assert entry.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("length", [0, 1, 7, 8, 20, 39, 40, 41, 1000])
def test_truncated(entry: Path, length: int) -> None:
    entry.write_bytes(entry.read_bytes()[:length])
    assert_compiled_again(entry)


@pytest.mark.parametrize("position", [0, 7, 8, 39, 40, 41, 500, -1])
def test_a_flipped_bit(entry: Path, position: int) -> None:
    data = bytearray(entry.read_bytes())
    data[position] ^= 4
    entry.write_bytes(data)
    assert_compiled_again(entry)


@pytest.mark.parametrize("data", [b"\x7fELF" + CODE, os.urandom(500), b"QRTOBJ02" * 200])
def test_something_else(entry: Path, data: bytes) -> None:
    entry.write_bytes(data)
    assert_compiled_again(entry)


def test_longer_than_it_was(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes() + b"\0")
    assert_compiled_again(entry)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_entry_that_others_can_write_is_refused(entry: Path, mode: int) -> None:
    entry.chmod(mode)
    assert_compiled_again(entry)
    assert entry.stat().st_mode & 0o777 == 0o600


def test_somebody_else_s_entry_is_refused(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    compiler = Compiler()
    cache.fetch(COPY, TARGET, compiler)
    assert compiler.calls == 1


def test_another_file_of_this_user_s_under_the_name(entry: Path) -> None:
    """Whoever can write to the folder can rename what lies there."""
    other = Kernel("copy_other__generic", COPY.record, COPY.source)
    assert cache.fetch(other, TARGET, Compiler(b"other")) == b"other"
    (entry.parent / cache.key(other, TARGET)).replace(entry)
    assert_compiled_again(entry)


def test_a_link_to_a_good_file(entry: Path) -> None:
    aside = entry.replace(entry.parent.parent / "aside")
    entry.symlink_to(aside)
    assert_compiled_again(entry)
    assert not entry.is_symlink()


def test_a_pipe_is_not_waited_for(entry: Path) -> None:
    entry.unlink()
    os.mkfifo(entry)
    assert_compiled_again(entry)


def test_a_dangling_link(entry: Path) -> None:
    entry.unlink()
    entry.symlink_to(entry.parent / "nowhere")
    assert_compiled_again(entry)
    assert not entry.is_symlink()


def test_a_folder_where_the_entry_should_be(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()
    compiler = Compiler()
    with pytest.warns(KernelCacheWarning, match="QRT_CACHE_DIR"):
        assert cache.fetch(COPY, TARGET, compiler) == CODE
    assert [p.name for p in entry.parent.iterdir()] == [entry.name]  # no temporary file is left behind


def test_a_full_disk(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry.unlink()

    def replace(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.warns(KernelCacheWarning, match="No space left"):
        assert cache.fetch(COPY, TARGET, Compiler()) == CODE
    assert list(entry.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_a_warning_and_the_kernel_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("QRT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    kernel = Kernel("copy_unwritable__generic", COPY.record, COPY.source)  # a name of its own: not loaded yet
    x, y = np.arange(100, dtype=np.uint8), np.zeros(100, np.uint8)
    with pytest.warns(KernelCacheWarning, match="cannot keep compiled kernels"):
        call(kernel, TARGET, x=x, y=y, n=100)
    np.testing.assert_array_equal(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        address(kernel, TARGET)  # loaded: neither compiled nor warned about again


def test_a_damaged_entry_of_a_real_kernel_runs_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRT_CACHE_DIR", str(tmp_path))
    kernel = Kernel("copy_damaged__generic", COPY.record, COPY.source)
    path = tmp_path / "kernels" / cache.key(kernel, TARGET)
    path.parent.mkdir()
    path.write_bytes(b"QRTOBJ02" + bytes(3000))
    path.chmod(0o600)
    x, y = np.arange(100, dtype=np.uint8), np.zeros(100, np.uint8)
    call(kernel, TARGET, x=x, y=y, n=100)
    np.testing.assert_array_equal(x, y)
    assert path.read_bytes()[40:] == object_code(kernel, TARGET)


def test_another_kernel_s_object_has_no_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRT_CACHE_DIR", str(tmp_path))
    kernel = Kernel("copy_swapped__generic", COPY.record, COPY.source)
    other = Kernel("copy_other__generic", COPY.record, COPY.source)
    cache.fetch(kernel, TARGET, lambda: object_code(other, TARGET))
    with pytest.raises(KernelError, match="no entry point"):
        address(kernel, TARGET)


def test_a_kernel_that_needs_a_stranger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRT_CACHE_DIR", str(tmp_path))
    kernel = Kernel("foreign__generic", record_dtype(("n", "i8")), "kernels.cpu_simd:foreign")
    with pytest.raises(KernelError, match="stranger"):
        address(kernel, TARGET)
    assert not list(tmp_path.rglob("*.o"))
