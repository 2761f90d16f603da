"""The command line: what each command does, its JSON, and how failures end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from data import ASSETS, REPOSITORY, digits
from graphs import make

import qrt
from qrt.cli.app import app, run
from qrt.quantization.never_slower import Times

DIGITS = str(ASSETS / "digits.onnx")
COMMANDS = ("quantize", "compile", "run", "bench", "inspect", "compare", "tune", "demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples, and a model quantized on them."""
    folder = tmp_path_factory.mktemp("cli")
    np.savez(folder / "calibration.npz", image=digits()["calibration"][0])
    np.savez(folder / "test.npz", image=digits()["test"][0][:50])
    np.save(folder / "x.npy", digits()["test"][0][:3])
    assert run(["quantize", DIGITS, "-o", str(folder / "int8.onnx"), "--data", str(folder / "calibration.npz")]) == 0
    return folder


class Ran:
    """A command that ran: its status, and what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        capsys.readouterr()
        self.status = run([str(argument) for argument in arguments])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        """What --json printed: one line, strict JSON."""
        assert self.status == 0, self.err
        assert self.out.count("\n") == 1

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    def check_failed(self, message: str, status: int = 1) -> None:
        """It failed with one line on standard error and nothing on standard output."""
        assert self.status == status
        assert self.out == ""
        assert self.err.count("\n") == 1
        assert self.err.startswith("qrt: error: ")
        assert message in self.err


def test_an_input_given_twice(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    pair = f"image={folder / 'x.npy'}"
    Ran(capsys, "run", DIGITS, "--input", pair, "--input", pair).check_failed("--input names one input twice")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    listed = Ran(capsys, "--help")
    assert listed.status == 0
    assert all(f"  {name} " in listed.out for name in COMMANDS)
    assert [command.name for command in app.registered_commands] == list(COMMANDS)
    for name in COMMANDS:
        shown = Ran(capsys, name, "--help")
        assert shown.status == 0
        assert "--json" in shown.out
    assert Ran(capsys, "--version").out == f"qrt {qrt.__version__}\n"


@pytest.mark.parametrize("observer", ["minmax", "moving", "histogram", "percentile", "entropy"])
def test_quantize_with_every_observer(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, observer: str) -> None:
    output = tmp_path / "q.onnx"
    found = Ran(capsys, "quantize", DIGITS, "-o", output, "--data", folder / "calibration.npz", "--observer", observer, "--json").json
    assert found["bytes_after"] == output.stat().st_size < found["bytes_before"]
    onnx.checker.check_model(onnx.load(output), full_check=True)
    images, labels = digits()["test"]
    logits = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
    assert np.mean(logits.argmax(1) == labels) > 0.98


def test_quantize_per_tensor_without_some_nodes(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    excluded = ["--exclude", "conv_1*", "--exclude", "gemm_21"]
    assert Ran(capsys, "quantize", DIGITS, "-o", output, "--data", folder / "calibration.npz", "--per-tensor", *excluded).status == 0
    left = {node["name"] for node in Ran(capsys, "inspect", output, "--json").json["nodes"] if node["runs"] == "float" and node["macs"]}
    assert left == {"conv_13", "conv_16", "gemm_21"}
    scales = [t for t in onnx.load(output).graph.initializer if t.name.endswith("_scale")]
    assert scales
    assert all(not t.dims for t in scales)


def test_quantize_is_qrt_quantize(folder: Path, tmp_path: Path) -> None:
    """The command line and Python give the same file."""
    model = qrt.load(DIGITS)
    qrt.quantize(model, digits()["calibration"][0][:, None]).save(tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").read_bytes() == (folder / "int8.onnx").read_bytes()


def test_quantize_never_slower(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock for which all that is int8 is slow, or but the layers that `slow` names."""
    slow = {"conv_6"}

    def times(executables: list[Any], feeds: object) -> list[Times]:
        nodes = [[(node.op_type, node.name) for node in executable.model.graph] for executable in executables]
        return [Times({name: 1.0 if not op.startswith("Q") else 9.0 if name in slow else 0.5 for op, name in form}) for form in nodes]

    monkeypatch.setattr("qrt.quantization.never_slower.step_times", times)
    output = tmp_path / "q.onnx"
    command = ["quantize", DIGITS, "-o", output, "--data", folder / "calibration.npz", "--never-slower"]
    found = Ran(capsys, *command, "--json").json["never_slower"]
    assert not found["all_float"]
    assert found["int8_us"] < found["float_us"]
    assert [(layer["name"], layer["float_us"], layer["int8_us"]) for layer in found["layers"] if layer["kept"] == "float"] == [
        ("conv_6", 1, 9)
    ]
    left = {node["name"] for node in Ran(capsys, "inspect", output, "--json").json["nodes"] if node["runs"] == "float" and node["macs"]}
    assert left == {"conv_6"}
    assert "conv_6" in Ran(capsys, *command).out
    slow |= {f"conv_{k}" for k in (0, 3, 9, 13, 16)} | {"gemm_21"}
    assert "none of it is int8" in Ran(capsys, *command).out
    assert not any("Quantize" in node.op_type for node in onnx.load(output).graph.node)


def test_quantize_dynamic(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    assert Ran(capsys, "quantize", DIGITS, "-o", output, "--dynamic").status == 0
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= {node.op_type for node in onnx.load(output).graph.node}


def test_quantize_from_one_array(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    """A model with one input takes an .npy; and samples without a batch axis of their own."""
    np.save(tmp_path / "x.npy", digits()["calibration"][0][:20, None])
    assert Ran(capsys, "quantize", DIGITS, "-o", tmp_path / "a.onnx", "--data", tmp_path / "x.npy").status == 0
    np.save(tmp_path / "x.npy", digits()["calibration"][0][:20])
    assert Ran(capsys, "quantize", DIGITS, "-o", tmp_path / "b.onnx", "--data", tmp_path / "x.npy").status == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_quantize_in_shards(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    """Three shards, merged, are one run."""
    observer = "minmax"
    data = ["--data", folder / "calibration.npz"]
    states = [tmp_path / f"{k}.safetensors" for k in (1, 2, 3)]
    seen = 0
    for number, state in enumerate(states, 1):
        given = ["quantize", DIGITS, *data, "--observer", observer, "--shard", f"{number}/3", "--state", state]
        found = Ran(capsys, *given, "--json").json
        assert (found["shard"], found["shards"], found["state"]) == (number, 3, str(state))
        seen += found["samples"]
    assert seen == len(digits()["calibration"][0])
    assert f"shard 3 of 3, {found['samples']} samples" in Ran(capsys, *given).out
    merged, whole = tmp_path / "merged.onnx", tmp_path / "whole.onnx"
    to = ["quantize", DIGITS, "-o", merged, "--merge", *states[::-1]]
    found = Ran(capsys, *to, "--observer", observer, "--json").json
    assert found["bytes_after"] == merged.stat().st_size < found["bytes_before"]
    assert Ran(capsys, "quantize", DIGITS, "-o", whole, *data, "--observer", observer).status == 0
    assert merged.read_bytes() == whole.read_bytes()
    merged.unlink()
    Ran(capsys, *to, "--observer", "entropy").check_failed("give the same observer")
    Ran(capsys, *to[:-1], "--observer", observer).check_failed("shard 1 of 3 is missing")
    Ran(capsys, *to, states[0], "--observer", observer).check_failed("are both shard 1")
    states[1].write_bytes(states[1].read_bytes()[:-1])
    Ran(capsys, *to, "--observer", observer).check_failed(f"cannot read {states[1]}")
    assert not merged.exists()


def test_a_shard_that_fails_leaves_nothing(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    images = digits()["calibration"][0][:3].copy()
    images[2] = np.nan
    np.savez(tmp_path / "bad.npz", image=images)
    command = ["quantize", DIGITS, "--data", tmp_path / "bad.npz", "--state", tmp_path / "s", "--shard"]
    Ran(capsys, *command, "2/2").check_failed("NaN")
    Ran(capsys, *command, "1/4").check_failed("holds 3 samples: they cannot make 4 shards")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "bad.npz"]
    assert Ran(capsys, *command, "1/2").status == 0


def test_compile(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.qrt"
    shapes = ["--shape", "image=1,1,8,8", "--shape", "image=3,1,8,8"]
    found = Ran(capsys, "compile", folder / "int8.onnx", "-o", output, *shapes, "--threads", "1", "--target", "generic", "--json").json
    assert found["plans"] == 2
    assert found["bytes_after"] == output.stat().st_size
    assert Ran(capsys, "compile", folder / "int8.onnx", "-o", output, *shapes).out.startswith(str(output))
    given = ["--input", f"image={folder / 'x.npy'}", "--json"]
    assert Ran(capsys, "run", output, *given).json["outputs"] == Ran(capsys, "run", folder / "int8.onnx", *given).json["outputs"]
    Ran(capsys, "compile", DIGITS, "-o", output).check_failed("say for which shape to compile")
    Ran(capsys, "compile", DIGITS, "-o", output, "--shape", "image=1,x").check_failed("write NAME=1,3,224,224")
    Ran(capsys, "compile", DIGITS, "-o", tmp_path / "m.onnx").check_failed("does not end in .qrt")


def test_run(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    found = Ran(capsys, "run", folder / "int8.onnx", "--input", f"image={folder / 'x.npy'}", "-o", tmp_path / "out.npz", "--json").json
    assert found["outputs"] == [{"name": "logits", "shape": [3, 10], "dtype": "float32"}]
    wanted = qrt.InferenceSession(folder / "int8.onnx").run(None, {"image": np.load(folder / "x.npy")})[0]
    with np.load(tmp_path / "out.npz") as written:
        assert written.files == ["logits"]
        np.testing.assert_array_equal(written["logits"], wanted)
    assert "3×10" in Ran(capsys, "run", folder / "int8.onnx", "--input", f"image={folder / 'x.npy'}").out


def test_run_with_awkward_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Outputs called "file" or "a/b", a scalar and an empty array."""
    model = make("(float[N] x, float y) => (float[N] file, float z) { file = Neg(x) z = Neg(y) }")
    model.graph.node[1].output[0] = model.graph.output[1].name = "a/b"
    onnx.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.zeros(0, np.float32))
    np.save(tmp_path / "y.npy", np.float32(2))
    feeds = ["--input", f"x={tmp_path / 'x.npy'}", "--input", f"y={tmp_path / 'y.npy'}"]
    assert Ran(capsys, "run", tmp_path / "m.onnx", *feeds, "-o", tmp_path / "out.npz").status == 0
    with np.load(tmp_path / "out.npz") as written:
        assert written["file"].shape == (0,)
        assert written["a/b"] == -2


def test_bench(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    found = Ran(capsys, "bench", folder / "int8.onnx", "--against", "onnxruntime", "--threads", "1", "--json").json
    assert found["threads"] == 1
    ours, theirs = found["runtimes"]
    assert (ours["runtime"], ours["ratio"], theirs["runtime"]) == ("qrt", 1.0, "onnxruntime")
    assert theirs["error"] < 0.01
    assert all(0 < one["min_ms"] <= one["median_ms"] for one in (ours, theirs))
    assert theirs["ratio"] == pytest.approx(theirs["median_ms"] / ours["median_ms"])


def test_inspect(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    nodes = Ran(capsys, "inspect", folder / "int8.onnx", "--json").json["nodes"]
    assert sum(node["share"] for node in nodes) == pytest.approx(1)
    assert {node["runs"] for node in nodes if node["macs"]} == {"int8"}
    conv = next(node for node in nodes if node["name"] == "conv_3")
    assert (conv["inputs"], conv["outputs"]) == (["N×16×8×8"], ["N×32×4×4"])
    assert conv["macs"] == 16 * 9 * 32 * 16  # 32 channels of 4 × 4 pixels, each of 3 × 3 × 16 codes
    assert "no DequantizeLinear" not in Ran(capsys, "inspect", DIGITS).out
    assert "no DequantizeLinear" in Ran(capsys, "inspect", DIGITS, "--why").out


def test_inspect_shows_what_runs_in_python(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    onnx.save(make("(float[N,4] x) => (float[N,4] y) { h = Relu(x) y = Hardmax(h) }"), tmp_path / "m.onnx")
    last = Ran(capsys, "inspect", tmp_path / "m.onnx", "--json").json["nodes"][-1]
    assert (last["op"], last["runs"]) == ("Hardmax", "python")
    assert last["why"]


def test_compare(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    plot = tmp_path / "layers.png"
    found = Ran(capsys, "compare", DIGITS, folder / "int8.onnx", "--data", folder / "test.npz", "--plot", plot, "--json").json
    assert found["samples"] == 50
    worst = [layer["sqnr_db"] for layer in found["layers"]]
    assert worst == sorted(worst)
    assert len(worst) >= 7
    assert worst[0] > 20
    # By hand: the output's error, from two sessions.
    x = {"image": digits()["test"][0][:50]}
    real, int8 = (qrt.InferenceSession(model).run(None, x)[0].astype(np.float64) for model in (DIGITS, folder / "int8.onnx"))
    assert found["outputs"][0]["sqnr_db"] == pytest.approx(10 * np.log10(np.sum(real**2) / np.sum((real - int8) ** 2)), abs=0.01)
    assert found["outputs"][0]["agreement"] == pytest.approx(np.mean(real.argmax(1) == int8.argmax(1)))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "worst first" in Ran(capsys, "compare", DIGITS, folder / "int8.onnx", "--data", folder / "test.npz").out


def test_a_model_compared_with_itself_differs_in_nothing(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    found = Ran(capsys, "compare", DIGITS, DIGITS, "--data", folder / "test.npz", "--json").json
    assert found["outputs"][0]["largest_error"] < 1e-4
    assert found["outputs"][0]["agreement"] == 1


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    real, int8 = Ran(capsys, "demo", "--json").json["models"]
    assert (real["model"], int8["model"]) == ("float32", "int8")
    assert min(real["accuracy"], int8["accuracy"]) > 0.98
    assert int8["bytes"] < 0.5 * real["bytes"]
    assert set(int8["median_ms"]) == {"qrt", "onnxruntime"}


def test_bad_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, output = tmp_path / "data.npz", tmp_path / "out.onnx"
    command = ["quantize", DIGITS, "-o", output, "--data", data]
    Ran(capsys, *command).check_failed("cannot read")
    for content in (b"", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00", b"text"):
        data.write_bytes(content)
        Ran(capsys, *command).check_failed("cannot read")
    np.savez(data, image=np.array([{"a": 1}], object))
    Ran(capsys, *command).check_failed("cannot read")  # it would have to be unpickled
    images = digits()["calibration"][0]
    for arrays, message in [
        ({}, "holds nothing"),
        ({"a": images, "b": images}, "name its arrays after the inputs, 'image'"),
        ({"image": images[:0]}, "same number of samples"),
        ({"image": images[0, 0]}, "stack samples of rank 4"),
        ({"image": np.float32(1)}, "stack samples"),
        ({"image": images.astype(np.float64)}, "float64"),
        ({"image": images[:, :, :7]}, "does not fit"),
        ({"image": np.full_like(images, np.nan)}, "NaN"),
    ]:
        np.savez(data, **arrays)
        Ran(capsys, *command).check_failed(message)
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "/no/such.onnx"], "No such file"),
        (["inspect", str(REPOSITORY / "README.md")], "no ONNX file"),
        (["inspect", "/"], "/ is not a file; give the path of an ONNX file\n"),
        (["quantize", DIGITS, "-o", "/no/such/q.onnx", "--dynamic"], "no folder"),
        (["quantize", DIGITS, "-o", "/tmp", "--dynamic"], "it is a folder"),
        (["quantize", DIGITS, "-o", "q.onnx"], "--data"),
        (["quantize", DIGITS, "--dynamic"], "give -o OUT.onnx"),
        (["quantize", DIGITS, "-o", "q.onnx", "--dynamic", "--never-slower"], "--never-slower times a sample: give --data"),
        (["quantize", DIGITS, "--data", "x.npz", "--shard", "1/2", "--state", "s", "--never-slower"], "times layers"),
        (["quantize", DIGITS, "x.st", "-o", "q.onnx", "--data", "x.npz"], "states need --merge"),
        (["quantize", DIGITS, "-o", "q.onnx", "--merge"], "name the states"),
        (["quantize", DIGITS, "-o", "q.onnx", "--merge", "x.st", "--dynamic"], "leave --merge out"),
        (["quantize", DIGITS, "-o", "q.onnx", "--merge", "x.st", "--data", "x.npz"], "leave --data out"),
        (["quantize", DIGITS, "-o", "q.onnx", "--merge", "x.st"], "cannot read x.st: there is no such file"),
        (["quantize", DIGITS, "--data", "x.npz", "--shard", "1/2"], "a shard learns from"),
        (["quantize", DIGITS, "--data", "x.npz", "--state", "s"], "a shard learns from"),
        (["quantize", DIGITS, "--dynamic", "--shard", "1/2", "--state", "s"], "a shard learns from"),
        (["quantize", DIGITS, "-o", "q.onnx", "--data", "x.npz", "--shard", "1/2", "--state", "s"], "no -o"),
        (["quantize", DIGITS, "--data", "x.npz", "--shard", "0/2", "--state", "s"], "--shard 0/2: write K/N"),
        (["quantize", DIGITS, "--data", "x.npz", "--shard", "2", "--state", "s"], "--shard 2: write K/N"),
        (["quantize", DIGITS, "--data", "x.npz", "--shard", "1/2", "--state", "/no/such/s"], "no folder"),
        (["quantize", DIGITS, "-o", "q.onnx", "--dynamic", "--data", "x.npz"], "leave --data out"),
        (["quantize", DIGITS, "-o", "q.onnx", "--dynamic", "--exclude", "nothing*"], "nothing*"),
        (["run", DIGITS], "nothing is fed to 'image'"),
        (["run", DIGITS, "--input", "image"], "NAME=FILE.npy"),
        (["run", DIGITS, "--input", "image=no.npy"], "cannot read no.npy"),
        (["run", DIGITS, "--input", f"image={DIGITS}"], "it holds no array; give an .npy or .npz file"),
        (["run", DIGITS, "-o", "/no/such/out.npz"], "no folder"),
        (["bench", DIGITS, "--against", "abacus"], "no runtime 'abacus'"),
        (["bench", DIGITS, "--threads", "0"], "num_threads is 0"),
        (["compare", DIGITS, DIGITS, "--data", "no.npz"], "cannot read no.npz"),
        (["compare", DIGITS, DIGITS, "--data", "no.npz", "--plot", "/no/such/p.png"], "no folder"),
    ],
)
def test_failures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Ran(capsys, *arguments).check_failed(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly' (see qrt --help)"),
        (["quantize"], "Missing"),
        (["inspect", DIGITS, "--wy"], "No such option"),
        (["bench", DIGITS, "--threads", "many"], "'--threads'"),
        (["quantize", DIGITS, "-o", "q.onnx", "--observer", "magic"], "magic"),
    ],
)
def test_command_lines_that_make_no_sense(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    Ran(capsys, *arguments).check_failed(message, status=2)


def test_models_that_do_not_belong_together(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    onnx.save(make("(float[N,3] x) => (float[N,3] y) { y = Neg(x) }"), tmp_path / "m.onnx")
    Ran(capsys, "compare", DIGITS, tmp_path / "m.onnx", "--data", folder / "test.npz").check_failed("different inputs")


def test_unexpected_errors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug says in one line that it is one; --debug raises it."""

    def broken(source: object) -> None:
        raise ZeroDivisionError("one\nover zero")

    monkeypatch.setattr(qrt, "load", broken)
    Ran(capsys, "inspect", DIGITS).check_failed("ZeroDivisionError: one over zero; this is a bug: `qrt --debug inspect ...`")
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "inspect", DIGITS])


def test_as_a_program(tmp_path: Path) -> None:
    """The installed command: its status, and standard output that closes early or is full."""
    program = [sys.executable, "-I", "-c", "from qrt.cli import main; main()"]
    done = subprocess.run([*program, "inspect", "no.onnx"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("qrt: error: cannot read")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*program, "inspect", DIGITS, "--json"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""
    with open("/dev/full", "w") as full:
        done = subprocess.run([*program, "inspect", DIGITS, "--json"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("qrt: error: cannot write the output: No space left on device; ")


def test_a_compiled_model_is_no_onnx_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    qrt.compile(DIGITS, tmp_path / "m.qrt", {"image": (1, 1, 8, 8)})
    for command in ("inspect", "bench", "tune"):
        Ran(capsys, command, tmp_path / "m.qrt").check_failed("m.qrt is a compiled model, which sessions run and nothing else takes")
