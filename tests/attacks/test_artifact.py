"""Compiled models that are damaged, or made to look sound: a typed error or a right result, never a crash, and no code that this user
has not sealed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled import edit_words, feeds, network, rewritten
from hypothesis import given
from hypothesis import strategies as st

import qrt
from qrt.artifact import CompiledModel, read_compiled
from qrt.core.digest import digest_of
from qrt.core.errors import ModelError, QrtError
from qrt.core.sections import MAGIC, SEAL_BYTES, pack, read
from qrt.jit.host import host_target
from qrt.seal import is_sealed, seal

TARGET = host_target()
Change = Callable[[dict[str, Any], list[bytes]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file."""
    path = tmp_path_factory.mktemp("whole") / "m.qrt"
    qrt.compile(network(), path, {"x": (3, 8), "z": (3, 16)}, num_threads=2)
    return path.read_bytes()


@pytest.fixture
def path(whole: bytes, tmp_path: Path, plans: Path) -> Path:
    """The sound file in a place of its own, of which no plans were kept."""
    path = tmp_path / "m.qrt"
    path.write_bytes(whole)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def wanted() -> list[bytes]:
    return [y.tobytes() for y in qrt.InferenceSession(network().SerializeToString()).run(None, feeds())]


# ---- the file as a file


def test_truncated_and_too_long(path: Path, whole: bytes) -> None:
    for length in [*range(0, 200, 7), *range(200, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"m\.qrt is damaged.*compile"):
            qrt.InferenceSession(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ModelError, match="digest"):
        qrt.InferenceSession(path)


@given(st.data())
def test_a_flipped_bit(whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.qrt"
    damaged = bytearray(whole)
    seal = range(len(MAGIC) + 32, len(MAGIC) + 32 + SEAL_BYTES)
    damaged[data.draw(st.integers(0, len(whole) - 1).filter(lambda at: at not in seal))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    with pytest.raises(ModelError, match="damaged"):
        qrt.InferenceSession(path)


def test_another_version(path: Path, whole: bytes) -> None:
    path.write_bytes(b"QRTMDL99" + whole[8:])
    with pytest.raises(ModelError, match="another version"):
        qrt.InferenceSession(path)


def sealed(body: bytes) -> bytes:
    """A file with this after the digest, which fits."""
    return MAGIC + bytes.fromhex(digest_of([body])) + bytes(SEAL_BYTES) + body


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"sections": []}',
        b'{"sections": 3, "content": {}}',
        b'{"sections": [[0]], "content": {}}',
        b'{"sections": [[0, 1e3]], "content": {}}',
        b'{"sections": [[-64, 8]], "content": {}}',
        b'{"sections": [[1, 8]], "content": {}}',
        b'{"sections": [[0, -1]], "content": {}}',
        b'{"sections": [[0, 99999999999999999999999]], "content": {}}',
        b'{"sections": [[true, 8]], "content": {}}',
        b'{"sections": [], "content": []}',
        b'{"sections": [], "content": {"threads": 1, "target": 3}}',
        b'{"sections": [], "content": {"threads": 0, "target": 3, "model": 0}}',
        b'{"sections": [], "content": {"threads": 1, "target": 3, "model": -1}}',
        b'{"sections": [[0, 8]], "content": {"threads": ' + b"9" * 5000 + b', "model": 0}}',
    ],
)
def test_a_header_that_says_nothing_sound(path: Path, header: bytes) -> None:
    path.write_bytes(sealed(len(header).to_bytes(8, "little") + header + bytes(256)))
    with pytest.raises(ModelError, match="damaged"):
        qrt.InferenceSession(path)


@pytest.mark.parametrize("length", [10**3, 2**32, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file(path: Path, length: int) -> None:
    path.write_bytes(sealed(length.to_bytes(8, "little") + bytes(500)))
    with pytest.raises(ModelError, match="header"):
        qrt.InferenceSession(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        qrt.InferenceSession(tmp_path / "none.qrt")
    (tmp_path / "folder.qrt").mkdir()
    with pytest.raises(ModelError, match="not a file"):
        qrt.InferenceSession(tmp_path / "folder.qrt")
    os.mkfifo(tmp_path / "pipe.qrt")
    with pytest.raises(ModelError, match="not a file"):
        qrt.InferenceSession(tmp_path / "pipe.qrt")


def test_the_model_inside_is_hostile_input_too(path: Path) -> None:
    def change(content: dict[str, Any], sections: list[bytes]) -> None:
        sections[content["model"]] = b"no model"

    rewritten(path, change)
    with pytest.raises(ModelError, match="no ONNX file"):
        qrt.InferenceSession(path)


# ---- plans that this user has not sealed


@pytest.mark.parametrize("bit", [0, 100, 255])
def test_a_flipped_bit_of_the_seal(path: Path, whole: bytes, bit: int, wanted: list[bytes]) -> None:
    damaged = bytearray(whole)
    damaged[len(MAGIC) + 32 + bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    session = qrt.InferenceSession(path)
    assert not isinstance(session._executable, CompiledModel)
    assert [y.tobytes() for y in session.run(None, feeds())] == wanted


def test_the_seal_of_another_key_or_version_is_none(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read(path)
    assert is_sealed(file.digest, file.seal)
    assert not is_sealed(file.digest[::-1], file.seal)
    with monkeypatch.context() as patch:
        patch.setattr("qrt.seal.own_digest", lambda: b"other code")
        assert not is_sealed(file.digest, file.seal)
    monkeypatch.setenv("QRT_KEY_FILE", str(tmp_path / "another"))
    assert not is_sealed(file.digest, file.seal)  # there is none
    assert not is_sealed(file.digest, bytes(SEAL_BYTES))
    assert seal(file.digest) != file.seal
    assert is_sealed(file.digest, seal(file.digest))
    assert (tmp_path / "another").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("mode", "sound"), [(0o600, True), (0o400, True), (0o640, True), (0o620, False), (0o604, False), (0o602, False)])
def test_a_key_that_others_know_seals_nothing(path: Path, key: Path, mode: int, sound: bool) -> None:
    file = read(path)
    key.chmod(mode)
    try:
        assert is_sealed(file.digest, file.seal) == sound
        with contextlib.nullcontext() if sound else pytest.raises(qrt.OutputError, match="mend its rights"):
            seal(file.digest)
    finally:
        key.chmod(0o600)


def test_a_key_that_is_replaced_while_it_is_looked_at_seals_nothing(path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read(path)
    sound, plain = key.stat(), Path.stat
    key.chmod(0o644)
    try:
        # What was asked of the name before it is opened says nothing of what is read.
        monkeypatch.setattr(Path, "stat", lambda self, **how: sound if self == key else plain(self, **how))
        assert not is_sealed(file.digest, file.seal)
    finally:
        key.chmod(0o600)


def test_a_named_pipe_is_no_key(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    monkeypatch.setenv("QRT_KEY_FILE", str(tmp_path / "pipe"))
    file = read(path)
    assert not is_sealed(file.digest, file.seal)


@pytest.mark.parametrize(("umask", "mode"), [(0, 0o644), (0o002, 0o644), (0o077, 0o600)])
def test_nobody_else_can_write_a_file_while_it_is_made(tmp_path: Path, umask: int, mode: int) -> None:
    """Who had it open for that before its rights are cut could change code under the map later."""
    seen = []

    def look(digest: str) -> bytes:
        seen.append((tmp_path / "m.qrt").stat().st_mode & 0o777)
        return bytes(SEAL_BYTES)

    before = os.umask(umask)
    try:
        pack({}, []).write(tmp_path / "m.qrt", look)
    finally:
        os.umask(before)
    assert seen == [mode]


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_a_key_that_is_none_is_not_written_over(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "key"
    place.write_bytes(content)
    place.chmod(0o600)
    monkeypatch.setenv("QRT_KEY_FILE", str(place))
    with pytest.raises(qrt.OutputError, match="is no key"):
        qrt.compile(network(), tmp_path / "m.qrt", {"x": (3, 8), "z": (3, 16)})
    assert place.read_bytes() == content
    assert not (tmp_path / "m.qrt").exists()
    monkeypatch.setenv("QRT_KEY_FILE", str(place / "below"))
    with pytest.raises(qrt.OutputError, match=r"cannot make the key.*QRT_KEY_FILE"):
        qrt.compile(network(), tmp_path / "m.qrt", {"x": (3, 8), "z": (3, 16)})


def test_processes_that_make_the_key_at_once_have_one(tmp_path: Path) -> None:
    program = "import qrt.seal; print(qrt.seal.require_key().hex())"
    environment = {**os.environ, "QRT_KEY_FILE": str(tmp_path / "new" / "key")}
    started = [subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate()[0] for process in started}) == 1
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["key"]


def test_a_plan_made_to_look_sound_is_not_run(path: Path, wanted: list[bytes]) -> None:
    """Records hold numbers that no check can judge, so whoever writes them must be trusted: here, nobody is."""

    def change(content: dict[str, Any], sections: list[bytes]) -> None:
        index = content["plans"][0]["records"]
        sections[index] = bytes(np.random.default_rng(0).integers(0, 256, len(sections[index]), np.uint8))

    file = rewritten(path, change)
    read_compiled(file, TARGET)  # nothing to complain of
    session = qrt.InferenceSession(path, num_threads=2)
    assert not isinstance(session._executable, CompiledModel)
    assert [y.tobytes() for y in session.run(None, feeds())] == wanted


def test_other_weights_under_the_plan_are_not_used(path: Path, wanted: list[bytes]) -> None:
    def change(content: dict[str, Any], sections: list[bytes]) -> None:
        for index in content["plans"][0]["constants"]:
            sections[index] = bytes(len(sections[index]))

    rewritten(path, change)
    assert [y.tobytes() for y in qrt.InferenceSession(path, num_threads=2).run(None, feeds())] == wanted


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_gives_no_plan(path: Path, mode: int, wanted: list[bytes]) -> None:
    assert isinstance(qrt.InferenceSession(path)._executable, CompiledModel)
    path.chmod(mode)
    session = qrt.InferenceSession(path)
    assert not isinstance(session._executable, CompiledModel)
    assert [y.tobytes() for y in session.run(None, feeds())] == wanted


def test_somebody_else_s_file_gives_no_plan(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert read(path).private == (owner == 0)  # root's files are the system's


def test_plans_of_a_compiled_model_are_none_of_an_onnx_file_with_its_bytes(path: Path, whole: bytes, tmp_path: Path, plans: Path) -> None:
    """A file could be made that reads as ONNX and, behind a prefix, as a compiled model of something else."""
    qrt.InferenceSession(path, num_threads=1)
    assert len(list(plans.iterdir())) == 1
    (tmp_path / "m.onnx").write_bytes(whole[len(MAGIC) + 32 + SEAL_BYTES :])
    with pytest.raises(ModelError, match="no ONNX file"):
        qrt.InferenceSession(tmp_path / "m.onnx", num_threads=1)


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 16.0 GiB"), OSError(28, "No space left on device"), ModelError("no")])
def test_plans_that_cannot_be_made_again_are_no_reason_not_to_start(
    path: Path, plans: Path, wanted: list[bytes], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes in a stranger's file may ask for anything."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("qrt.kept.plan_all", fail)
    assert [y.tobytes() for y in qrt.InferenceSession(path, num_threads=1).run(None, feeds())] == wanted


# ---- plans that are not whole


def plan_of(content: dict[str, Any]) -> dict[str, Any]:
    plan: dict[str, Any] = content["plans"][0]
    return plan


CHANGES: dict[str, Change] = {
    "a constant that is not there": lambda c, s: plan_of(c)["constants"].append(len(s)),
    "a constant before the first": lambda c, s: plan_of(c)["constants"].append(-1),
    "fewer constants": lambda c, s: plan_of(c).update(constants=[]),
    "no slab": lambda c, s: plan_of(c).pop("arena"),
    "a negative slab": lambda c, s: plan_of(c).update(arena=-1),
    "a huge slab": lambda c, s: plan_of(c).update(arena=1 << 62),
    "no threads": lambda c, s: plan_of(c).update(threads=0),
    "more names than steps": lambda c, s: plan_of(c)["names"].append("x"),
    "a name that is none": lambda c, s: plan_of(c)["names"].__setitem__(0, 3),
    "a rule of a step without": lambda c, s: plan_of(c)["rules"].append([0, "x"]),
    "no rules": lambda c, s: plan_of(c).pop("rules"),
    "a table that is cut off": lambda c, s: s.__setitem__(plan_of(c)["table"], s[plan_of(c)["table"]][:-8]),
    "fewer steps": lambda c, s: s.__setitem__(plan_of(c)["table"], s[plan_of(c)["table"]][:-32]),
    "more steps": lambda c, s: s.__setitem__(plan_of(c)["table"], s[plan_of(c)["table"]] * 2),
    "a kernel that is not there": lambda c, s: edit_words(s, plan_of(c)["table"], 0, 0, 99),
    "a kernel before the first": lambda c, s: edit_words(s, plan_of(c)["table"], 0, 0, -1),
    "a record past the end": lambda c, s: edit_words(s, plan_of(c)["table"], 0, 1, 1 << 40),
    "a record before the start": lambda c, s: edit_words(s, plan_of(c)["table"], 0, 1, -64),
    "a record between two": lambda c, s: edit_words(s, plan_of(c)["table"], 0, 1, 8),
    "too many sharers": lambda c, s: edit_words(s, plan_of(c)["table"], 0, 2, 3),
    "no sharers": lambda c, s: edit_words(s, plan_of(c)["table"], 0, 2, 0),
    "half a meeting": lambda c, s: edit_words(s, plan_of(c)["table"], 0, 3, 2),
    "no records": lambda c, s: s.__setitem__(plan_of(c)["records"], b""),
    "a base that is none": lambda c, s: edit_words(s, plan_of(c)["relocations"], 0, 0, 4),
    "a buffer that is not there": lambda c, s: edit_words(s, plan_of(c)["relocations"], 0, 1, 50),
    "a word outside of the records": lambda c, s: edit_words(s, plan_of(c)["relocations"], 0, 2, 1 << 30),
    "a word before the records": lambda c, s: edit_words(s, plan_of(c)["relocations"], 0, 2, -1),
    "past the buffer": lambda c, s: edit_words(s, plan_of(c)["relocations"], 0, 3, 1 << 40),
    "before the buffer": lambda c, s: edit_words(s, plan_of(c)["relocations"], 0, 3, -8),
    "an output of another dtype": lambda c, s: plan_of(c)["outputs"].__setitem__(0, ["object", [3]]),
    "an output of negative shape": lambda c, s: plan_of(c)["outputs"].__setitem__(0, ["float32", [-3, 3]]),
    "a huge output": lambda c, s: plan_of(c)["outputs"].__setitem__(0, ["float32", [1 << 40, 1 << 40]]),
    "no outputs": lambda c, s: plan_of(c).update(gives=[]),
    "an output that is not there": lambda c, s: plan_of(c).update(gives=[0, 2]),
    "an input that is not there": lambda c, s: plan_of(c).update(reads=["x", "w"]),
    "an input too few": lambda c, s: plan_of(c).update(reads=["x"]),
    "other feeds": lambda c, s: plan_of(c)["feeds"].__setitem__(0, ["int8", [3, 8]]),
    "a smaller feed": lambda c, s: plan_of(c)["feeds"].__setitem__(1, ["float32", [3, 1]]),
    "a bigger batch": lambda c, s: plan_of(c)["feeds"].__setitem__(1, ["float32", [9, 16]]),
    "no feeds": lambda c, s: plan_of(c).update(feeds=[]),
    "another interface": lambda c, s: c["interface"]["feeds"].pop(),
    "an interface of objects": lambda c, s: c["interface"]["feeds"][0].__setitem__(1, "object"),
    "an interface twice": lambda c, s: c["interface"]["feeds"].__setitem__(1, c["interface"]["feeds"][0]),
    "a shape that is none": lambda c, s: c["interface"]["inputs"][0].__setitem__(1, {}),
    "metadata that is none": lambda c, s: c["interface"]["metadata"].update(version="1"),
    "metadata of another kind": lambda c, s: c["interface"]["metadata"].update(secret=1),
    "a kernel of somebody else": lambda c, s: plan_of(c)["kernels"][0].__setitem__(1, "os:system"),
    "a kernel beside qrt's": lambda c, s: plan_of(c)["kernels"][0].__setitem__(1, "qrt.ops.cpu.os:system"),
    "a kernel with a list": lambda c, s: plan_of(c)["kernels"][0].__setitem__(2, [["rm"]]),
    "a record of objects": lambda c, s: plan_of(c)["kernels"][0].__setitem__(3, [["x", "O"]]),
    "a kernel without a name": lambda c, s: plan_of(c)["kernels"][0].__setitem__(0, "x"),
    "a kernel for another machine": lambda c, s: plan_of(c)["kernels"][0].__setitem__(0, "x__neon_dot"),
    "object code that is not there": lambda c, s: plan_of(c)["kernels"][0].__setitem__(-1, len(s)),
    "object code that is none": lambda c, s: plan_of(c)["kernels"][0].__setitem__(-1, c["model"]),
    "object code that is cut off": lambda c, s: s.__setitem__(c["runtime"][0], s[c["runtime"][0]][:-1]),
    "no runtime": lambda c, s: c["runtime"].pop(),
    "a kernel too short": lambda c, s: plan_of(c)["kernels"][0].pop(),
    "no plans": lambda c, s: c.update(plans=None),
    "a plan that is none": lambda c, s: c["plans"].append(3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_plan_that_is_not_whole(path: Path, change: Change, wanted: list[bytes]) -> None:
    """Even of a file that is trusted, this is an error; one that is not comes down to its model."""
    file = rewritten(path, change)
    with pytest.raises(QrtError) as found:
        read_compiled(file, TARGET)
    assert isinstance(found.value, ModelError | qrt.KernelError)
    session = qrt.InferenceSession(path, num_threads=2)
    assert not isinstance(session._executable, CompiledModel)
    assert [y.tobytes() for y in session.run(None, feeds())] == wanted


@given(st.data())
def test_any_number_of_the_header_may_be_any_other(whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Read or refused; no other error."""
    path = tmp_path_factory.getbasetemp() / "numbers.qrt"
    path.write_bytes(whole)
    file = read(path)
    numbers = [match for match in _numbers(file.content) if match[0] is not file.content["interface"]["metadata"]]
    holder, key = numbers[data.draw(st.integers(0, len(numbers) - 1))]
    others = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([None, "", "x", []]))
    holder[key] = data.draw(others)
    sections = [file[i].tobytes() for i in range(len(file))]
    pack(json.loads(json.dumps(file.content)), sections).write(path)
    with contextlib.suppress(ModelError, qrt.KernelError):
        interface, plans = read_compiled(read(path), TARGET)
        assert [value.name for value in interface.feeds] == ["x", "z"]
        assert all(len(plan.plan.outputs) == 2 for plan in plans.values())


def _numbers(data: Any) -> list[tuple[Any, Any]]:
    """Where numbers stand in plain data: their container and key. Parameters of kernels are left out: each costs a compilation."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    found = []
    for key, value in items:
        if isinstance(value, int):
            found.append((data, key))
        elif key != "kernels":
            found += _numbers(value)
    return found


def test_threads_that_open_one_file_at_once(path: Path, wanted: list[bytes]) -> None:
    results: list[list[bytes]] = []

    def work() -> None:
        results.append([y.tobytes() for y in qrt.InferenceSession(path).run(None, feeds())])

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [wanted] * 4
