"""Places where nothing can be written: an OutputError before the work or after it, never half a file, and what was there stays."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import ASSETS, digits
from graphs import images, make

import qrt
from qrt.cli.app import run
from qrt.core import files

DIGITS = ASSETS / "digits.onnx"
MODEL = make("(float[2,3] x) => (float[2,4] y) { y = MatMul(x, w) }", w=images(3, 4))

# A folder of the test and the end of a name → a path.
PLACES: dict[str, Callable[[Path, str], Path]] = {
    "a folder that is not there": lambda folder, end: folder / "absent" / f"out{end}",
    "a folder": lambda folder, end: made(folder / f"out{end}", Path.mkdir),
    "a file for a folder": lambda folder, end: made(folder / "file", Path.touch) / f"out{end}",
    "a pipe": lambda folder, end: made(folder / f"out{end}", os.mkfifo),
    "a link to a pipe": lambda folder, end: made(folder / f"out{end}", lambda p: p.symlink_to(made(folder / "pipe", os.mkfifo))),
    "a link to a device": lambda folder, end: made(folder / f"out{end}", lambda p: p.symlink_to("/dev/null")),
    "a link to itself": lambda folder, end: made(folder / f"out{end}", lambda p: p.symlink_to(p)),
    "a name that is too long": lambda folder, end: folder / ("x" * 300 + end),
    "a file system that takes nothing": lambda folder, end: Path(f"/proc/out{end}"),
}


def made(path: Path, make: Callable[[Path], object]) -> Path:
    make(path)
    return path


def profiled(path: Path) -> None:
    options = qrt.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(path)
    session = qrt.InferenceSession(MODEL, sess_options=options, num_threads=1)
    session.run(None, {"x": images(2, 3)})
    session.end_profiling()


CALLS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "save": (".onnx", lambda path: qrt.load(MODEL).save(path)),
    "save compiled": (".qrt", lambda path: qrt.load(MODEL).save(path)),
    "compile": (".qrt", lambda path: qrt.compile(qrt.load(MODEL), path, num_threads=1)),
}


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What is there: each entry's kind, and what files hold."""
    return {
        str(path): (stat.S_IFMT(path.lstat().st_mode), path.read_bytes() if path.is_file() else b"") for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_a_place_that_takes_no_file(place: str, call: str, tmp_path: Path) -> None:
    end, write = CALLS[call]
    path = PLACES[place](tmp_path, end)
    before, device = tree(tmp_path), os.stat("/dev/null").st_mode
    with pytest.raises(qrt.OutputError, match="cannot write"):
        write(path)
    assert tree(tmp_path) == before
    assert os.stat("/dev/null").st_mode == device


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("call", CALLS)
def test_a_folder_that_may_not_be_written_to(call: str, tmp_path: Path) -> None:
    end, write = CALLS[call]
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(qrt.OutputError, match="cannot write"):
            write(tmp_path / f"out{end}")
    finally:
        tmp_path.chmod(0o700)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("there", [True, False])
def test_a_disk_that_takes_no_more(call: str, there: bool, tmp_path: Path) -> None:
    end, write = CALLS[call]
    write(tmp_path / f"first{end}")  # all kernels are in the cache now: what follows writes this file alone
    path = tmp_path / f"out{end}"
    if there:
        path.write_bytes(b"what was there")
    before = tree(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(qrt.OutputError, match="too large"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(tmp_path) == before


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".onnx")
    qrt.load(MODEL).save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"what was there")
    before = tree(tmp_path)

    def interrupted(part: Path) -> None:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(tmp_path / "out", interrupted)
    assert tree(tmp_path) == before


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"what was there")
    with path.open("rb") as reader:  # who reads the old file goes on reading it
        qrt.load(MODEL).save(path)
        assert reader.read() == b"what was there"
    assert qrt.load(path).outputs[0].shape == (2, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_a_profile_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(qrt.OutputError, match="cannot write"):
        profiled(tmp_path / "absent" / "profile")
    assert tree(tmp_path) == {}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    image = digits()["calibration"][0][:8]
    np.savez(folder / "calib.npz", image=image)
    np.save(folder / "x.npy", image[:1])
    return folder


COMMANDS: dict[str, Callable[[Path, Path], list[Any]]] = {
    "quantize": lambda s, out: ["quantize", DIGITS, "-o", out, "--data", s / "calib.npz"],
    "quantize --dynamic": lambda s, out: ["quantize", DIGITS, "-o", out, "--dynamic"],
    "run": lambda s, out: ["run", DIGITS, "--input", f"image={s / 'x.npy'}", "-o", out],
    "compile": lambda s, out: ["compile", DIGITS, "-o", out, "--shape", "image=1,1,8,8"],
    "compare": lambda s, out: ["compare", DIGITS, DIGITS, "--data", s / "calib.npz", "--plot", out],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_cannot_write(place: str, command: str, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = PLACES[place](tmp_path, {"compile": ".qrt", "compare": ".png"}.get(command, ".x"))
    before, device = tree(tmp_path), os.stat("/dev/null").st_mode
    assert run([str(argument) for argument in COMMANDS[command](samples, path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qrt: error: cannot write ")
    assert err.count("\n") == 1
    assert tree(tmp_path) == before
    assert os.stat("/dev/null").st_mode == device
