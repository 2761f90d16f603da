"""What is said of a model on a GPU before there is one, and the commands that take it as a target."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from data import ASSETS, digits
from device.sessions import Emulation
from graphs import make

import qrt
from qrt.cli.app import run
from qrt.ops.op import Op
from qrt.ops.reduction import CumSum
from qrt.report.inspect import inspect_model
from qrt.runtime import segments

DIGITS = ASSETS / "digits.onnx"
PARTS = "(float[2, 5] x) => (float[2, 5] y) { a = Neg(x) b = CumSum(a, axis) c = Abs(b) s = Shape(x) y = Reshape(c, s) }"


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose second node has no kernel, nor a GPU."""
    monkeypatch.setattr(CumSum, "emit_device", Op.emit_device)
    path = tmp_path / "parts.onnx"
    path.write_bytes(make(PARTS, axis=np.int64(1)).SerializeToString())
    return path


def test_where_nodes_run(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LEAST_MACS", 0)
    nodes = inspect_model(qrt.load(parts), "cuda")
    assert [(node.op, node.place) for node in nodes] == [("Neg", "cuda 1"), ("CumSum", "cpu"), ("Abs", "cuda 2"), ("Reshape", "")]
    assert [len(node.kernels) for node in nodes] == [1, 0, 1, 0]
    assert nodes[1].why == "CumSum has no kernel for CUDA"
    monkeypatch.setattr(segments, "LEAST_MACS", 1)
    assert {node.place for node in inspect_model(qrt.load(parts), "cuda")} == {"cpu", ""}


def test_every_kernel_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    images = digits()["calibration"][0][:20]
    nodes = inspect_model(qrt.quantize(qrt.load(DIGITS), [{"image": image[None]} for image in images]), "cuda")
    assert {node.place for node in nodes if node.runs == "int8"} == {"cuda 1"}
    assert sum(kernel.startswith("gemm_u8s8") for node in nodes for kernel in node.kernels) >= 5
    on_cpu = inspect_model(qrt.load(DIGITS))
    assert {node.place for node in on_cpu} == {"cpu", ""}
    assert all(bool(node.kernels) == (node.runs != "folded") for node in on_cpu)


def test_the_commands(
    parts: Path, emulation: Emulation, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["inspect", str(parts), "--target", "cuda", "--why"]) == 0
    out = capsys.readouterr().out
    assert "CumSum has no kernel for CUDA" in out
    assert "2 launches of 2 kernels in 2 graphs on the GPU; 1 nodes on the CPU" in out
    assert run(["inspect", str(parts), "--target", "cuda", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"][2]["place"] == "cuda 2"
    assert not emulation.made  # none is needed
    np.save(tmp_path / "x.npy", np.arange(10, dtype=np.float32).reshape(2, 5))
    assert run(["run", str(parts), "--input", f"x={tmp_path / 'x.npy'}", "--target", "cuda", "-o", str(tmp_path / "y.npz")]) == 0
    with np.load(tmp_path / "y.npz") as found:
        np.testing.assert_array_equal(found["y"], np.cumsum(np.arange(10, dtype=np.float32).reshape(2, 5), 1))
    assert emulation.device.launched
    capsys.readouterr()
    monkeypatch.setattr(sys.modules["qrt.cli.bench"], "_ROUNDS", 1)
    assert run(["bench", str(parts), "--target", "cuda", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "cuda"


def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrt.jit.driver.missing", lambda: "NVIDIA's driver is not installed")
    assert run(["bench", str(DIGITS), "--target", "cuda"]) == 1
    assert capsys.readouterr().err.startswith("qrt: error: target 'cuda' cannot be used: NVIDIA's driver is not installed")
