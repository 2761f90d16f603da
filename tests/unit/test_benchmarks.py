"""The benchmarks' models are sound and their rows run; nothing here depends on how long anything took."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from data import ort_session

import qrt
from benchmarks import app, contest
from benchmarks.contest import FLOAT, Measured, Result, Settings, Skipped
from benchmarks.conv import Layer, layer_model, layers
from benchmarks.data import digits, downloaded
from benchmarks.gemm import product_rows
from benchmarks.models import NETWORKS, cnn, identity, mlp, mobilenet_v2
from benchmarks.observers import KINDS, search_row, update_row
from benchmarks.peak import INSTRUCTIONS, KERNELS, peak
from benchmarks.process import first_launch, launch
from benchmarks.teams import barrier_row, session_rows
from qrt.core.errors import QrtError
from qrt.core.target import TARGETS
from qrt.jit import choose, host_target
from qrt.jit.cache import cache_dir
from qrt.jit.compile import assembly
from qrt.observers import HistogramObserver
from qrt.report.example import example_feeds

LAYERS = (Layer(3, 8, 12, 3, 2, 1), Layer(16, 16, 9, 5, 1, 16), Layer(8, 24, 7, 1, 1, 1))


@pytest.mark.parametrize("build", [cnn, mlp, identity, mobilenet_v2])
def test_networks_are_valid_and_the_same_each_time(build: object) -> None:
    assert callable(build)
    model = build()
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString() == build().SerializeToString()


def test_networks_have_the_layers_that_they_are_known_for() -> None:
    found = layers(NETWORKS["mobilenet_v2"]())
    assert found[0] == Layer(3, 32, 224, 3, 2, 1)
    assert Layer(960, 960, 7, 3, 1, 960) in found
    assert len(found) == len(set(found))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_use_their_codes(layer: Layer) -> None:
    """They run in ONNX Runtime to the same codes, which neither saturate nor vanish."""
    model = layer_model(layer)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).integers(0, 256, (1, layer.c_in, layer.size, layer.size)).astype(np.uint8)
    (ours,) = qrt.InferenceSession(qrt.load(model), num_threads=1).run(None, {"x": x})
    (theirs,) = ort_session(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(ours, theirs)
    assert 10 < ours.std() < 70


def test_contest_times_models_together() -> None:
    models = digits()
    feeds = example_feeds(models[FLOAT])
    int8, real = contest.contest(models, feeds, 1, Settings(("onnxruntime",), rounds=2), "digits")
    assert [m.engine for m in int8.engines] == ["qrt", "onnxruntime", f"onnxruntime {FLOAT}"]
    assert [m.engine for m in real.engines] == ["qrt", "onnxruntime"]
    assert (int8.case, real.case) == ("digits, int8", "digits, float32")
    assert all(len(m.rounds) == 2 and 0 < m.minimum <= m.median for m in (*int8.engines, *real.engines))
    assert int8.engines[2].rounds == real.engines[1].rounds


def test_a_peer_that_cannot_run_a_model_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from qrt.report import bench

    def fails(model: bytes, feeds: object, threads: int) -> bench.Run:
        raise RuntimeError("Exception from core.cpp:1:\nno such operator\n")

    monkeypatch.setitem(bench.PEERS, "openvino", fails)
    model = qrt.load(identity())
    (result,) = contest.contest({"identity": model}, example_feeds(model), 1, Settings(("openvino",), rounds=1))
    assert [m.engine for m in result.engines] == ["qrt"]
    assert result.notes == ["openvino: no such operator"]


@pytest.mark.parametrize("kind", ["u8s8", "float32"])
def test_products_stand_beside_the_peak(kind: str) -> None:
    result = product_rows(kind, (5, 17, 32), 1, Settings(("onnxruntime",), rounds=1))
    assert [m.engine for m in result.engines] == ["qrt", "onnxruntime", "kernel", "floor"]
    assert result.rate is not None
    assert result.rate > 0
    assert result.share is not None
    assert result.share > 0


@pytest.mark.parametrize("kind", ["dot", "fma"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.arch}-{t.isa}")
def test_peak_loops_hold_their_instruction(kind: str, target: object) -> None:
    """As often as the count of multiply-accumulates says: nothing was folded away or moved out of the loop."""
    found = next(t for t in TARGETS if t is target)
    (kernel,) = choose(KERNELS[kind], found)
    instruction = INSTRUCTIONS[kind][kernel.isa]
    if instruction != "multiply":
        text = assembly(kernel, found)
        wanted = 4 if kernel.isa == "amx" else int(kernel.params[2]) * (2 if instruction in ("vpmaddwd", "udot") else 1)
        assert text.count(instruction) >= wanted


def test_peak_is_what_the_threads_did_together() -> None:
    one, two = (peak("dot", host_target(), threads) for threads in (1, 2))
    assert two.macs == 2 * one.macs
    (sums,) = two.run()
    assert sums.shape == (2, 256)


def test_a_barrier_is_a_step_on_several_threads() -> None:
    result = barrier_row((1, 2), Settings(rounds=1))
    assert [m.engine for m in result.engines] == ["1 thread", "2 threads"]
    assert (result.threads, result.unit) == (2, "µs")
    assert all(m.minimum > 0 for m in result.engines)


def test_sessions_run_in_turn_and_at_once() -> None:
    results = list(session_rows("mlp", Settings(("onnxruntime",), rounds=1)))
    assert [result.case for result in results] == ["2 × mlp, int8, qrt", "2 × mlp, int8, onnxruntime"]
    for result in results:
        assert [m.engine for m in result.engines] == ["in turn", "at once"]
        assert result.threads == 2


@pytest.mark.parametrize("module", ["qrt", "onnxruntime"])
def test_launch_measures_a_process_of_its_own(module: str, tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    done = launch(module, path, 1)
    assert done.outputs[0].shape == (1, 10)
    assert done.seconds > 0
    assert 10 < done.megabytes < 2000


def test_every_first_launch_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "mlp.onnx", tmp_path / "cache"
    onnx.save(mlp(), path)
    cache.mkdir()
    (cache / "kernels").symlink_to(cache_dir() / "kernels")
    monkeypatch.setenv("QRT_CACHE_DIR", str(cache))
    first, second = (first_launch(path, 1, 2) for _ in range(2))
    assert [array.tobytes() for array in first.outputs] == [array.tobytes() for array in second.outputs]
    assert [entry.name for entry in cache.iterdir()] == ["kernels"]  # no plan was kept here


def test_launch_tells_why_a_process_failed(tmp_path: Path) -> None:
    with pytest.raises(QrtError, match=r"qrt fails on none\.onnx"):
        launch("qrt", tmp_path / "none.onnx", 1)


def other_torch(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    """A torch whose histograms are qrt's, of values that are `shift` larger."""

    class Observer:
        def __init__(self) -> None:
            self.own = HistogramObserver()

        def __call__(self, x: np.ndarray) -> None:
            self.own(x + np.float32(shift))

        def __getattr__(self, name: str) -> Any:
            return SimpleNamespace(numpy=lambda: getattr(self.own, name))

        def calculate_qparams(self) -> list[Any]:
            scale, zero_point = self.own.calculate_qparams()
            return [SimpleNamespace(numpy=lambda: scale.reshape(1)), SimpleNamespace(numpy=lambda: zero_point.reshape(1))]

    torch: Any = ModuleType("torch")
    torch.__spec__, torch.__version__ = ModuleSpec("torch", None), "2"
    torch.from_numpy, torch.set_num_threads = lambda x: x, lambda n: None
    torch.ao = SimpleNamespace(quantization=SimpleNamespace(HistogramObserver=Observer))
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.mark.parametrize("row", [update_row, search_row])
@pytest.mark.parametrize("kind", KINDS)
def test_observers_stand_beside_torch(row: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    activations = [KINDS[kind](np.random.default_rng(i).standard_normal(300, np.float32), i) for i in range(3)]
    monkeypatch.setitem(sys.modules, "torch", None)
    alone = row(kind, activations, Settings(rounds=1))
    assert [m.engine for m in alone.engines] == ["qrt"]
    assert alone.notes == ["torch: not installed (pip install torch), so nothing stands beside qrt"]
    other_torch(monkeypatch, 0)
    both = row(kind, activations, Settings(rounds=1))
    assert [(m.engine, m.error) for m in both.engines] == [("qrt", 0), ("torch", 0)]
    assert both.notes == []
    other_torch(monkeypatch, 3)
    with pytest.raises(QrtError, match="torch's result differs from qrt's"):
        row(kind, activations, Settings(rounds=1))


def test_main_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert app.main(["overhead", "mlp", "--peers", "onnxruntime", "--threads", "1,2", "--rounds", "1", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert {"machine", "cores", "target", "versions", "date"} <= set(written)
    assert "onnxruntime" in written["versions"]
    assert [(r["benchmark"], r["threads"]) for r in written["results"]] == [("overhead", 1), ("overhead", 2)] + [
        ("mlp", threads) for threads in (1, 1, 2, 2)
    ]
    for result in written["results"]:
        assert result["engines"][0]["ratio"] == 1
        for engine in result["engines"]:
            assert engine["min"] <= engine["median"]
            assert engine["error"] <= 0.05
    printed = capsys.readouterr().out
    assert "overhead: min / median" in printed
    assert "onnxruntime float32" in printed


def test_main_goes_on_after_what_cannot_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(settings: Settings) -> object:
        raise QrtError("broken")

    monkeypatch.setitem(app.BENCHMARKS, "mlp", fails)
    monkeypatch.setitem(app.BENCHMARKS, "silero", lambda settings: [downloaded("none/none.onnx")])
    assert app.main(["silero", "mlp", "overhead", "--peers", "", "--rounds", "1"]) == 1
    printed = capsys.readouterr().out
    assert "silero: skipped: no none/none.onnx" in printed
    assert "mlp: failed: broken" in printed
    assert "identity" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gem"], "no benchmark 'gem'"),
        (["--peers", "abacus"], "'abacus' is not onnxruntime or openvino"),
        (["--threads", "0"], "'0' is not a list of numbers"),
        (["--threads", "two"], "'two' is not a list of numbers"),
        (["--rounds", "0"], "--rounds must be 1 or more"),
    ],
)
def test_main_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app.main(arguments)
    assert message in capsys.readouterr().err


def test_ratios_are_to_the_first_engine() -> None:
    result = Result("case", 1, [Measured("a", "1", [2.0, 4.0, 3.0]), Measured("b", "1", [6.0])])
    assert result.ratio(result.engines[1]) == 2
    assert app.record("name", result)["engines"][0]["median"] == 3


def test_missing_data_is_a_reason() -> None:
    with pytest.raises(Skipped, match="QRT_TEST_DATA"):
        downloaded("none/none.onnx")
