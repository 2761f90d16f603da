"""`qrt tune`: what is measured, kept, believed when it is read, and what it can change: speed, never a result."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import cnn
import numpy as np
import pytest

import qrt
from qrt.artifact import CompiledModel
from qrt.cli.app import run
from qrt.core.errors import InvalidInput, KernelCacheWarning, KernelError, OutputError
from qrt.jit import host_target, tuned
from qrt.ops.op import Array
from qrt.report import tune
from qrt.report.tune import Tuned, tune_model
from qrt.runtime.plan import Plan

# The rung that every machine has, and its tile of four rows and one vector, which the chooser takes for none of the shapes below.
TARGET = host_target("generic")
WANTED = "4x1"
SHAPES = {"x": cnn.X.shape}


@pytest.fixture(autouse=True)
def folder(cache: Path) -> Path:
    """The folder of choices of a cache where nothing was measured."""
    return cache / "tuned"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for which all kernels but those of the wanted tile are slow."""

    def cycles(plan: Plan, inputs: list[Array]) -> dict[str, int]:
        fast = {node for node, kernel in zip(plan.names, plan.kernels, strict=True) if "_4x4_" in kernel}
        return {node: 1000 if node in fast else 3000 for node in plan.names}

    monkeypatch.setattr(tune, "_cycles", cycles)


@pytest.fixture(scope="module")
def model() -> qrt.Model:
    return qrt.quantize(qrt.load(cnn.proto()), cnn.BATCHES)


def session_of(source: qrt.Model | Path) -> qrt.InferenceSession:
    return qrt.InferenceSession(source, num_threads=1, target="generic")


def tiles(session: qrt.InferenceSession) -> set[str]:
    """The tiles of the matrix products that the session's one plan walks, as its kernels name them."""
    (whole,) = session._executable.wholes.values()  # type: ignore[union-attr]
    return {name.split("_")[3] for name in whole.plan.kernels if name.startswith("gemm_")}


def result(session: qrt.InferenceSession) -> bytes:
    return session.run(None, {"x": cnn.X})[0].tobytes()


def test_what_was_fastest_is_taken_and_gives_the_same_bits(model: qrt.Model, fake: None, folder: Path) -> None:
    before = session_of(model)
    expected = result(before)
    assert tiles(before) != {"4x4"}
    found = tune_model(model, SHAPES, 1, "generic", rounds=2)
    assert found
    for shape in found:
        assert (shape.fastest, len(shape.ways)) == (WANTED, 3)
        assert shape.microseconds.keys() == set(shape.ways)
        assert shape.before != WANTED
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text()) == {"format": 1, "choices": {shape.shape: WANTED for shape in found}}
    after = session_of(model)
    assert result(after) == expected
    assert tiles(after) == {"4x4"}
    assert [(shape.before, shape.fastest) for shape in tune_model(model, SHAPES, 1, "generic", rounds=1)] == [(WANTED, WANTED)] * len(found)


def test_the_real_clock(model: qrt.Model) -> None:
    done: list[tuple[int, int]] = []
    found = tune_model(model, SHAPES, 1, "generic", 3, lambda *at: done.append(at))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert all(value > 0 for shape in found for value in shape.microseconds.values())
    assert all(shape.gain >= 1 for shape in found)
    assert {node for shape in found for node in shape.nodes} == {"stem.conv", "block.conv", "head.conv", "fc"}


def test_little_is_no_gain() -> None:
    shape = Tuned("s", "a", ["a", "b"], ["n"], {"a": 100.0, "b": 99.5})
    assert (shape.fastest, shape.gain) == ("a", 1.0)
    shape.microseconds["b"] = 50.0
    assert (shape.fastest, shape.gain) == ("b", 2.0)


def test_kept_and_compiled_plans_from_before_are_not_used(model: qrt.Model, fake: None, tmp_path: Path) -> None:
    path, compiled = tmp_path / "m.onnx", tmp_path / "m.qrt"
    model.save(path)

    def compile_() -> None:
        qrt.compile(model, compiled, {"x": cnn.X.shape}, num_threads=1, target="generic")

    def planned(file: Path) -> bool:
        session = session_of(file)
        assert result(session) == expected
        return isinstance(session._executable, CompiledModel)

    expected = result(session_of(model))
    compile_()
    assert [planned(path), planned(path), planned(compiled)] == [False, True, True]
    tune_model(model, SHAPES, 1, "generic", rounds=1)
    assert [planned(path), planned(path), planned(compiled)] == [False, True, False]
    assert tiles(session_of(path)) == {"4x4"}
    compile_()
    assert planned(compiled)
    assert tiles(session_of(compiled)) == {"4x4"}


SHAPE = "u8 1x1x4x4x4x1 run 1 lines 1 threads 1"


def choose() -> str:
    return tuned.choose(tune.FAMILY, TARGET, "node", SHAPE, ["2x2", "4x1"], "2x2")


def test_a_choice_is_taken_only_if_it_is_among_the_ways() -> None:
    assert choose() == "2x2"
    tuned.store(tune.FAMILY, TARGET, {SHAPE: "4x1", "another": "9x9"})
    assert choose() == "4x1"
    tuned.store(tune.FAMILY, TARGET, {SHAPE: "9x9"})
    assert choose() == "2x2"
    assert tuned.choices(tune.FAMILY, TARGET) == {SHAPE: "9x9", "another": "9x9"}
    assert tuned.choices(tune.FAMILY, host_target()) == ({} if host_target() != TARGET else {SHAPE: "9x9", "another": "9x9"})


def test_it_is_read_once_a_process(folder: Path) -> None:
    path = tuned.store(tune.FAMILY, TARGET, {SHAPE: "4x1"})
    assert choose() == "4x1"
    path.write_text("")
    assert choose() == "4x1"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "another format"),
        (b'{"format": 2, "choices": {}}', "another format"),
        (b'{"format": 1, "choices": ["4x1"]}', "another format"),
        (b'{"format": 1, "choices": {"a": 4}}', "a choice is none"),
        (b" " * (tuned.MAX_BYTES + 1), "more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_none_is_ignored(content: bytes, reason: str) -> None:
    path = tuned.store(tune.FAMILY, TARGET, {SHAPE: "4x1"})
    path.write_bytes(content)
    with pytest.warns(KernelCacheWarning, match=f"is ignored, as .*{reason}.*run `qrt tune` again, or delete it"):
        assert choose() == "2x2"
    assert choose() == "2x2"  # told once
    with pytest.warns(KernelCacheWarning):
        tuned.store(tune.FAMILY, TARGET, {SHAPE: "4x1"})
    assert choose() == "4x1"


@pytest.mark.skipif(os.name != "posix", reason="needs modes of files")
def test_a_file_that_others_can_write_is_ignored() -> None:
    path = tuned.store(tune.FAMILY, TARGET, {SHAPE: "4x1"})
    path.chmod(0o622)
    with pytest.warns(KernelCacheWarning, match="others can write to it"):
        assert choose() == "2x2"


def test_whoever_measures_answers_in_one_thread_alone() -> None:
    other: list[str] = []
    with tuned.asking(lambda node, shape, ways, usual: ways[-1]):
        thread = threading.Thread(target=lambda: other.append(choose()))
        thread.start()
        thread.join()
        assert (choose(), other) == ("4x1", ["2x2"])
    assert choose() == "2x2"


def test_state_changes_with_what_was_measured() -> None:
    states = [tuned.state(TARGET)]
    for way in ("4x1", "2x2"):
        tuned.store(tune.FAMILY, TARGET, {SHAPE: way})
        states.append(tuned.state(TARGET))
    assert states[0] == ""
    assert len(set(states)) == 3


def test_a_folder_that_cannot_be_made_is_told_of(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(OutputError, match="set QRT_CACHE_DIR"):
        tuned.store(tune.FAMILY, TARGET, {SHAPE: "4x1"})


def test_kernels_that_disagree_are_not_chosen_among(model: qrt.Model, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    real, seen = Plan.run, []

    def run_differently(plan: Plan, *given: object) -> list[Array]:
        seen.append(plan)
        return [array + np.float32(len({id(p) for p in seen})) for array in real(plan, *given)]  # type: ignore[arg-type]

    monkeypatch.setattr(Plan, "run", run_differently)
    with pytest.raises(KernelError, match="different results"):
        tune_model(model, SHAPES, 1, "generic")
    assert not folder.exists()


def test_a_gpu_is_not_tuned(model: qrt.Model) -> None:
    with pytest.raises(InvalidInput, match="cuda"):
        tune_model(model, target="cuda")


def test_the_command(model: qrt.Model, fake: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    model.save(path)
    assert run(["tune", str(path), "--shape", "x=4,3,8,8", "--threads", "1", "--target", "generic", "--rounds", "2"]) == 0
    text = capsys.readouterr().out
    assert "m.onnx, 1 thread, generic" in text
    assert f"{WANTED}" in text
    assert "3.00×" in text
    assert "from now on" in text
    assert run(["tune", str(path), "--shape", "x=4,3,8,8", "--threads", "1", "--target", "generic", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {shape["fastest"] for shape in data["shapes"]} == {WANTED}
    assert data["before_us"] == data["after_us"] > 0
    assert run(["tune", str(path), "--shape", "x=4,3,8,8", "--shape", "x=1,3,8,8"]) == 1
    assert run(["tune", str(tmp_path / "none.onnx")]) == 1
    assert run(["tune", str(path), "--shape", "z=1,3,8,8"]) == 1
    assert run(["tune", str(path), "--shape", "x=1,4,8,8"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [part in line for part, line in zip(["twice", "none.onnx", "'z'", "cannot be [1, 4, 8, 8]"], errors, strict=True)] == [True] * 4
