"""Compiled models: what is written runs as the ONNX model does, starts without the compiler, and goes back to the model where it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from compiled import feeds, network
from data import ASSETS, RESNET20_QDQ, cifar10, digits, needs_data, normalised
from graphs import make

import qrt
from qrt.artifact import CompiledModel
from qrt.core.sections import read
from qrt.graph import Model
from qrt.jit.host import host_target

DIGITS = ASSETS / "digits.onnx"
OWN_LINKER = sys.platform.startswith("linux") and host_target().arch == "x86_64"


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network in int8, compiled for batches of 1 and 5 and two threads, beside its ONNX file."""
    folder = tmp_path_factory.mktemp("int8")
    model = qrt.quantize(qrt.load(DIGITS), [image[None] for image in digits()["calibration"][0]], progress=False)
    model.save(folder / "m.onnx")
    qrt.compile(model, folder / "m.qrt", [{"image": (1, 1, 8, 8)}, {"image": (5, 1, 8, 8)}], num_threads=2)
    return folder / "m.qrt"


def equal(left: qrt.InferenceSession, right: qrt.InferenceSession, given: dict[str, np.ndarray]) -> bool:
    return [y.tobytes() for y in left.run(None, given)] == [y.tobytes() for y in right.run(None, given)]


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_a_compiled_model_gives_the_same_bytes(int8: Path, threads: int | None, plans: Path) -> None:
    ours, plain = qrt.InferenceSession(int8, num_threads=threads), qrt.InferenceSession(int8.with_suffix(".onnx"), num_threads=threads)
    assert isinstance(ours._executable, CompiledModel) == (threads != 1)  # planned for two
    again = qrt.InferenceSession(int8, num_threads=threads)  # the plans for one thread were kept
    assert isinstance(again._executable, CompiledModel)
    assert plans.exists() == (threads == 1)
    for n in (1, 5, 3):  # 3: planned when it is met
        assert equal(ours, plain, {"image": digits()["test"][0][:n]})
        assert equal(again, plain, {"image": digits()["test"][0][:n]})


@pytest.mark.parametrize("threads", [1, 2])
def test_a_float_model_of_two_inputs_and_outputs(tmp_path: Path, threads: int) -> None:
    shapes = [{"x": (n, 8), "z": (n, 16)} for n in (1, 3, 7)]
    qrt.compile(network(), tmp_path / "m.qrt", shapes, num_threads=threads)
    ours, plain = qrt.InferenceSession(tmp_path / "m.qrt"), qrt.InferenceSession(network())
    assert isinstance(ours._executable, CompiledModel)
    assert all(equal(ours, plain, feeds(n)) for n in (1, 3, 7, 2, 0))
    (h,) = ours.run(["h"], feeds())
    np.testing.assert_array_equal(h, plain.run(["h"], feeds())[0])


@needs_data("ort-quantized", "cifar10-data")
def test_a_network_of_fixed_shape_is_compiled_by_save(tmp_path: Path) -> None:
    qrt.compile(RESNET20_QDQ, tmp_path / "m.qrt", {qrt.load(RESNET20_QDQ).inputs[0].name: (1, 3, 32, 32)})
    image = normalised(cifar10(0)[0][:1])
    ours, plain = qrt.InferenceSession(tmp_path / "m.qrt"), qrt.InferenceSession(RESNET20_QDQ)
    assert equal(ours, plain, {ours.get_inputs()[0].name: image})


def test_save_compiles_a_model_of_fixed_shapes(tmp_path: Path) -> None:
    proto = make("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    qrt.load(proto).save(tmp_path / "m.qrt")
    x = np.float32([[1, -2, 3], [-4, 5, -6]])
    np.testing.assert_array_equal(qrt.InferenceSession(tmp_path / "m.qrt").run(None, {"x": x})[0], np.maximum(x, 0))
    with pytest.raises(qrt.InvalidInput, match=r"input 'x' is .*say for which shape"):
        qrt.load(network()).save(tmp_path / "free.qrt")
    assert not (tmp_path / "free.qrt").exists()


def test_the_face_is_that_of_the_model(int8: Path) -> None:
    ours, plain = qrt.InferenceSession(int8), qrt.InferenceSession(int8.with_suffix(".onnx"))
    assert ours.get_inputs() == plain.get_inputs()
    assert ours.get_outputs() == plain.get_outputs()
    assert ours.get_modelmeta() == plain.get_modelmeta()
    with pytest.raises(qrt.InvalidInput, match=r"axis 1 must be 1, not 2"):
        ours.run(None, {"image": np.zeros((1, 2, 8, 8), np.float32)})
    with pytest.raises(qrt.InvalidInput, match="no input is called"):
        ours.run(None, {"x": np.zeros((1, 1, 8, 8), np.float32)})


def test_a_profile_of_a_compiled_model(int8: Path, tmp_path: Path) -> None:
    options = qrt.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "p")
    session = qrt.InferenceSession(int8, options)
    session.run(None, {"image": digits()["test"][0][:1]})
    events = json.loads(Path(session.end_profiling()).read_text())["traceEvents"]
    assert events
    assert all(event["dur"] >= 0 and event["name"] and event["args"]["kernel"] for event in events)


PROGRAM = """
import json, sys
import numpy as np
import qrt
session = qrt.InferenceSession(sys.argv[1])
y, = session.run(None, {"image": np.load(sys.argv[2])})
heavy = {"numba", "llvmlite.binding", "onnx", "onnx_ir", "google.protobuf"}
print(json.dumps({"modules": sorted(heavy & set(sys.modules)), "y": y.tobytes().hex()}))
"""


def start(path: Path, image: Path, **environment: str) -> dict[str, object]:
    """What a new process sees."""
    command = [sys.executable, "-I", "-W", "error", "-c", PROGRAM, str(path), str(image)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_start_brings_neither_the_compiler_nor_onnx(int8: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", digits()["test"][0][:5])
    wanted = qrt.InferenceSession(int8.with_suffix(".onnx")).run(None, {"image": digits()["test"][0][:5]})[0].tobytes().hex()
    light = {"modules": [] if OWN_LINKER else ["llvmlite.binding"], "y": wanted}
    # All code is in the file, so that not even the kernel cache is asked.
    elsewhere = {"QRT_CACHE_DIR": str(tmp_path / "cache")}
    assert start(int8, tmp_path / "x.npy", **elsewhere) == light
    assert not (tmp_path / "cache").exists()
    # Without the key that it was sealed with, and for another target, it is made again from its model, and kept.
    for other in ({"QRT_KEY_FILE": str(tmp_path / "key")}, {"QRT_TARGET": "generic"}):
        first, second = (start(int8, tmp_path / "x.npy", **elsewhere, **other) for _ in range(2))
        assert first == {"modules": ["google.protobuf", "llvmlite.binding", "numba", "onnx", "onnx_ir"], "y": wanted}
        assert second == light


def test_weights_are_mapped_and_shared_by_plans(int8: Path) -> None:
    file = read(int8)
    plans = file.content["plans"]
    assert len(plans) == 2
    both = set(plans[0]["constants"]) & set(plans[1]["constants"])
    assert sum(file[i].nbytes for i in both) > 0.8 * sum(file[i].nbytes for i in plans[0]["constants"])
    for index in range(len(file)):
        base = file[index]
        assert not base.flags.writeable
        assert base.ctypes.data % 64 == 0
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap)


def test_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        qrt.compile(network(), tmp_path / f"{name}.qrt", {"x": (3, 8), "z": (3, 16)}, num_threads=2)
    assert (tmp_path / "a.qrt").read_bytes() == (tmp_path / "b.qrt").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.qrt", "b.qrt"]


def test_a_lower_target(tmp_path: Path) -> None:
    qrt.compile(network(), tmp_path / "m.qrt", {"x": (3, 8), "z": (3, 16)}, target="generic")
    ours = qrt.InferenceSession(tmp_path / "m.qrt", target="generic")
    assert isinstance(ours._executable, CompiledModel)
    assert equal(ours, qrt.InferenceSession(network(), target="generic"), feeds())
    with pytest.raises(qrt.InvalidInput, match="unknown target"):
        qrt.InferenceSession(tmp_path / "m.qrt", target="abacus")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"w": (3, 8)}, "no input is called 'w'; there are 'x', 'z'"),
        ({"x": (3, 8)}, r"input 'z' is \(N, 16\)"),
        ({"x": (3, -8), "z": (3, 16)}, r"input 'x' is \(3, -8\)"),
        ({"x": (3, 8.5), "z": (3, 16)}, r"input 'x' is \(3, 8.5\)"),
        ({"x": (3, 8), "z": (4, 16)}, "'N', 4 here and 3 in 'x'"),
        ({"x": (3, 9), "z": (3, 16)}, "axis 1 must be 8"),
        ([{"x": (3, 8), "z": (3, 16)}] * 2, "each one once"),
        ([{"x": (n, 8), "z": (n, 16)} for n in range(65)], "64 at most"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, shapes: object, message: str) -> None:
    with pytest.raises(qrt.InvalidInput, match=message):
        qrt.compile(network(), tmp_path / "m.qrt", shapes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (make("(float[3] x) => (float[3] y, float[3] x2) { y = Relu(x) x2 = Identity(x) }"), None),
        (make("(float[3] x) => (float[3] y) { y = Mod <fmod = 1> (x, x) z = Bernoulli(x) }"), None),
        (make("(float[3] x) => (float[3] y) { y = Bernoulli <seed = 1.0> (x) }"), "runs in Python"),
        (make("(float[6] x, int64[2] s) => (float[A,B] y) { y = Reshape(x, s) }"), "shapes depend on what 's' holds"),
        (make("(float8e4m3fn[3] x) => (float[3] y) { y = Cast <to = 1> (x) }"), "cannot be compiled"),
    ],
)
def test_models_that_cannot_be_compiled(tmp_path: Path, model: onnx.ModelProto, message: str | None) -> None:
    if message is None:
        qrt.compile(model, tmp_path / "m.qrt")
        assert isinstance(qrt.InferenceSession(tmp_path / "m.qrt")._executable, CompiledModel)
        return
    with pytest.raises(qrt.UnsupportedOp, match=message):
        qrt.compile(model, tmp_path / "m.qrt")
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    fixed = make("(float[3] x) => (float[3] y) { y = Relu(x) }")
    with pytest.raises(qrt.InvalidInput, match=r"does not end in \.qrt"):
        qrt.compile(fixed, tmp_path / "m.onnx")
    with pytest.raises(qrt.OutputError, match="no folder"):
        qrt.compile(fixed, tmp_path / "none" / "m.qrt")
    with pytest.raises(qrt.InvalidInput, match="num_threads"):
        qrt.compile(fixed, tmp_path / "m.qrt", num_threads=0)
    with pytest.raises(qrt.InvalidInput, match="unknown target"):
        qrt.compile(fixed, tmp_path / "m.qrt", target="abacus")
    assert list(tmp_path.iterdir()) == []
    assert Model.savers.keys() == {".qrt"}


@pytest.mark.parametrize("threads", [2.0, np.int64(2), True, "2", 0, -1], ids=repr)
def test_numbers_of_threads_that_are_none(threads: object, tmp_path: Path, plans: Path) -> None:
    """Of a compiled model, and of a model whose plan was kept."""
    qrt.compile(network(), tmp_path / "m.qrt", {"x": (3, 8), "z": (3, 16)}, num_threads=2)
    onnx.save(network(), tmp_path / "m.onnx")
    qrt.InferenceSession(tmp_path / "m.onnx", num_threads=2).run(None, feeds())
    for name in ("m.qrt", "m.onnx"):
        with pytest.raises(qrt.InvalidInput, match="num_threads"):
            qrt.InferenceSession(tmp_path / name, num_threads=threads)


def test_plans_are_not_made_again_where_they_could_not_be_kept(tmp_path: Path, plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qrt.compile(network(), tmp_path / "m.qrt", {"x": (3, 8), "z": (3, 16)}, num_threads=2)
    plain = qrt.InferenceSession(network().SerializeToString())
    monkeypatch.setattr("qrt.kept.plan_all", lambda *_: pytest.fail("planned for nothing"))
    monkeypatch.setenv("QRT_PLAN_CACHE_MB", "0")
    assert equal(qrt.InferenceSession(tmp_path / "m.qrt", num_threads=1), plain, feeds())
    assert not plans.exists()
    monkeypatch.delenv("QRT_PLAN_CACHE_MB")
    plans.write_text("a file where the folder should be")
    assert equal(qrt.InferenceSession(tmp_path / "m.qrt", num_threads=1), plain, feeds())
