"""Plans of ONNX files kept between processes: found again, never stale, bounded, private, and not needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from compiled import feeds, network
from graphs import make
from onnx import external_data_helper

import qrt
from qrt.artifact import CompiledModel


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def outputs(path: Path, n: int = 3) -> tuple[list[bytes], bool]:
    """What a new session gives, and whether it started from plans."""
    session = qrt.InferenceSession(path, num_threads=1)
    return [array.tobytes() for array in session.run(None, feeds(n))], isinstance(session._executable, CompiledModel)


def test_a_second_session_starts_from_the_plan_of_the_first(path: Path, plans: Path) -> None:
    first, planned = outputs(path)
    assert not planned
    assert outputs(path) == (first, True)
    (file,) = plans.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert plans.stat().st_mode & 0o077 == 0
    a, b = (qrt.InferenceSession(path, num_threads=1) for _ in range(2))
    assert (a.get_inputs(), a.get_outputs(), a.get_modelmeta()) == (b.get_inputs(), b.get_outputs(), b.get_modelmeta())
    assert a.get_inputs()[0].shape == ["N", 8]


PROGRAM = """
import json, sys
import numpy as np
import qrt
x = np.ones((2, 8), np.float32)
y = qrt.InferenceSession(sys.argv[1]).run(None, {"x": x, "z": np.ones((2, 16), np.float32)})
heavy = {"numba", "onnx", "onnx_ir", "google.protobuf"}
print(json.dumps([sorted(heavy & set(sys.modules)), [a.tobytes().hex() for a in y]]))
"""


def test_a_second_process_does_without_onnx(path: Path, plans: Path) -> None:
    found = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-I", "-W", "error", "-c", PROGRAM, path], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert "onnx" in found[0][0]
    assert found[1] == [[], found[0][1]]


def test_another_file_of_that_name_is_another_model(path: Path, plans: Path) -> None:
    before, _ = outputs(path)
    model = network()
    model.graph.node[0].op_type, model.graph.node[0].name = "Gemm", "first"
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones(16, np.float32), "b"))
    onnx.save(model, path)
    after, planned = outputs(path)
    assert not planned
    assert after != before
    assert outputs(path) == (after, True)


def test_a_file_that_changes_between_start_and_run_is_not_kept(path: Path, plans: Path) -> None:
    session = qrt.InferenceSession(path, num_threads=1)
    path.write_bytes(b"another")
    session.run(None, feeds())
    assert list(plans.glob("*")) == []


def test_other_shapes_work_and_take_their_turn(path: Path, plans: Path) -> None:
    outputs(path, 3)
    wanted = {n: qrt.InferenceSession(network(), num_threads=1).run(None, feeds(n)) for n in (2, 3, 5)}
    session = qrt.InferenceSession(path, num_threads=1)
    for n in (5, 3, 5, 2):
        for a, b in zip(session.run(None, feeds(n)), wanted[n], strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(list(plans.iterdir())) == 1
    session = qrt.InferenceSession(path, num_threads=1)
    assert [shapes[0] for shapes in session._executable.wholes] == [(5, 8)]  # type: ignore[union-attr]
    path.unlink()  # the session holds what the name stood for
    np.testing.assert_array_equal(session.run(None, feeds(2))[0], wanted[2][0])


@pytest.mark.parametrize("content", [b"", b"another", None])
def test_new_shapes_are_refused_where_the_model_was_written_over(path: Path, plans: Path, content: bytes | None) -> None:
    wanted, _ = outputs(path, 3)
    session = qrt.InferenceSession(path, num_threads=1)
    path.write_bytes(content if content is not None else path.read_bytes()[::-1])
    assert [array.tobytes() for array in session.run(None, feeds(3))] == wanted
    with pytest.raises(qrt.ModelError, match=r"m\.onnx was written over.*make a new session"):
        session.run(None, feeds(2))


@pytest.mark.parametrize("back", [False, True])
def test_a_file_that_was_old_and_changes_before_the_run_is_not_kept(path: Path, plans: Path, back: bool) -> None:
    """Where its times tell of a change, they are asked, and not its bytes."""
    time.sleep(0.05)
    session = qrt.InferenceSession(path, num_threads=1)
    content = path.read_bytes()
    path.write_bytes(content if back else b"another")
    session.run(None, feeds())
    assert not plans.exists()
    path.write_bytes(content)
    assert not outputs(path)[1]
    assert outputs(path)[1]


def test_threads_and_targets_have_plans_of_their_own(path: Path, plans: Path) -> None:
    for threads, target in ((1, None), (2, None), (1, "generic")):
        qrt.InferenceSession(path, num_threads=threads, target=target).run(None, feeds())
    assert len(list(plans.iterdir())) == len({(1, qrt.jit.host_target().isa), (2, qrt.jit.host_target().isa), (1, "generic")})


def test_nothing_is_kept_where_nothing_is_to_be(path: Path, plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (path.read_bytes(), qrt.load(path), onnx.load(path)):
        qrt.InferenceSession(source, num_threads=1).run(None, feeds())
    monkeypatch.setenv("QRT_PLAN_CACHE_MB", "0")
    assert outputs(path) == outputs(path)
    assert not plans.exists()
    monkeypatch.setenv("QRT_PLAN_CACHE_MB", "many")
    with pytest.raises(qrt.InvalidInput, match="QRT_PLAN_CACHE_MB is 'many'"):
        qrt.InferenceSession(path)


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{i}.onnx" for i in range(4)]
    for i, path in enumerate(paths):
        weight = np.full((8, 125_000), i, np.float32)  # 4 MB, and as much packed
        onnx.save(make("(float[1,8] x) => (float[1,125000] y) { y = MatMul(x, w) }", w=weight), path)

    def start(path: Path) -> bool:
        session = qrt.InferenceSession(path, num_threads=1)
        session.run(None, {"x": np.ones((1, 8), np.float32)})
        return isinstance(session._executable, CompiledModel)

    monkeypatch.setenv("QRT_PLAN_CACHE_MB", "10")
    assert [start(path) for path in paths[:2]] == [False, False]
    for age, file in enumerate(sorted(plans.iterdir(), key=lambda file: file.stat().st_mtime_ns)):
        os.utime(file, (1000 + age, 1000 + age))
    assert start(paths[0])  # used now: the other one is older
    assert not start(paths[2])
    assert sum(file.stat().st_size for file in plans.iterdir()) <= 10e6
    assert [start(paths[0]), start(paths[2])] == [True, True]
    assert not start(paths[1])
    monkeypatch.setenv("QRT_PLAN_CACHE_MB", "3")
    assert not start(paths[3])
    assert not start(paths[3])  # larger than all that may be kept


def test_weights_in_other_files_are_not_kept(tmp_path: Path, plans: Path) -> None:
    model = network()
    external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, tmp_path / "e.onnx")
    assert not outputs(tmp_path / "e.onnx")[1]
    assert not outputs(tmp_path / "e.onnx")[1]
    assert not plans.exists()


def test_a_model_with_a_node_in_python_is_not_kept(tmp_path: Path, plans: Path) -> None:
    onnx.save(make("(float[N,N] x) => (float y) { d = Det(x) y = Neg(d) }"), tmp_path / "p.onnx")
    session = qrt.InferenceSession(tmp_path / "p.onnx", num_threads=1)
    assert session.run(None, {"x": np.eye(2, dtype=np.float32)}) == [-1]
    assert list(session._executable.why.values()) == ["no kernel for this operator"]  # type: ignore[union-attr]
    assert not plans.exists()


@pytest.mark.parametrize("damage", [b"", b"QRTMDL04 and no more", None])
def test_a_damaged_plan_is_made_again(path: Path, plans: Path, damage: bytes | None) -> None:
    wanted, _ = outputs(path)
    (file,) = plans.iterdir()
    file.write_bytes(damage if damage is not None else file.read_bytes()[:-100])
    assert outputs(path) == (wanted, False)
    assert outputs(path) == (wanted, True)


def test_a_plan_that_others_can_write_is_not_used(path: Path, plans: Path) -> None:
    wanted, _ = outputs(path)
    (file,) = plans.iterdir()
    file.chmod(0o666)
    assert outputs(path) == (wanted, False)


@pytest.mark.parametrize("way", ["renamed", "linked", "linked, of the right name"])
def test_another_file_of_this_user_s_is_no_plan(path: Path, tmp_path: Path, plans: Path, way: str) -> None:
    """Whoever can write to the folder can put any of them there."""
    outputs(path)
    (first,) = plans.iterdir()
    other = network()
    other.graph.node[0].name = "another"
    onnx.save(other, path)
    wanted, _ = outputs(path)
    (second,) = set(plans.iterdir()) - {first}
    if way == "renamed":
        first.replace(second)
    else:
        aside = (first if way == "linked" else second).replace(tmp_path / "aside")
        second.unlink(missing_ok=True)
        second.symlink_to(aside)
    assert outputs(path) == (wanted, False)
    assert outputs(path) == (wanted, True)
    assert not second.is_symlink()


def test_a_folder_that_cannot_be_written_costs_nothing(path: Path, plans: Path) -> None:
    plans.write_text("a file where the folder should be")
    wanted, planned = outputs(path)
    assert not planned
    assert outputs(path) == (wanted, False)


@pytest.fixture(params=["closed", "of no one", "below a file"])
def no_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that this process may not look into, or none, as the user has no home."""
    if request.param == "of no one":
        for name in ("QRT_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
        return
    folder = tmp_path / "cache"
    monkeypatch.setenv("QRT_CACHE_DIR", str(folder))
    if request.param == "below a file":
        folder.write_bytes(b"")
        return
    plain = os.stat

    def stat(path: object, *args: object, **how: object) -> os.stat_result:
        """As the system answers those who are not root."""
        if str(path).startswith(f"{folder}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *args, **how)  # type: ignore[call-overload, no-any-return]

    folder.mkdir(mode=0)
    monkeypatch.setattr(os, "stat", stat)


@pytest.mark.filterwarnings("ignore::qrt.core.errors.KernelCacheWarning")
def test_a_cache_that_is_closed_costs_nothing_but_time(path: Path, no_cache: None) -> None:
    wanted = [array.tobytes() for array in qrt.InferenceSession(network(), num_threads=1).run(None, feeds())]
    qrt.compile(network(), path.with_suffix(".qrt"), {"x": (3, 8), "z": (3, 16)}, num_threads=2)
    for file in (path, path.with_suffix(".qrt")):  # the second one has no plans for one thread
        assert outputs(file) == (wanted, False)


def test_files_that_vanish_while_others_are_counted(path: Path, plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may throw one away, or give it its name, between the two looks at it."""
    qrt.compile(network(), path.with_suffix(".qrt"), {"x": (3, 8), "z": (3, 16)}, num_threads=2)
    plain = Path.glob
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [folder / ".gone.part.qrt", *plain(folder, pattern)])
    monkeypatch.setenv("QRT_PLAN_CACHE_MB", "1")
    for file in (path, path.with_suffix(".qrt")):
        wanted, planned = outputs(file)
        assert not planned
        assert outputs(file) == (wanted, True)
