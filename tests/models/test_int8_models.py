"""Float models in, int8 models out: accuracy, agreement with ONNX Runtime, and the same bytes however they are run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from codes import assert_same_codes
from data import (
    ASSETS,
    KEYPOINT,
    MNIST,
    MOBILENET_V1,
    POINT_HISTORY,
    POINT_HISTORY_LSTM,
    RESNET20,
    ULTRAFACE,
    YOLOX_NANO,
    banking77,
    cifar10,
    digits,
    gestures,
    imagenet_like,
    letterboxed,
    mnist,
    needs_data,
    normalised,
    ort_session,
    photos,
)
from minilm import embeddings, feeds, minilm, needs_minilm

import qrt
from qrt.core.target import TARGETS
from qrt.graph.passes import prepare
from qrt.graph.rules import fuse
from qrt.jit import host_target
from qrt.lower import Executable
from qrt.ops.program import interpret

Batches = list[dict[str, np.ndarray]]


def sqnr(reference: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise in dB."""
    noise = float(np.square(reference.astype(np.float64) - found).sum())
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-30)))


def _batches(name: str, array: np.ndarray, size: int) -> Batches:
    return [{name: array[start : start + size]} for start in range(0, len(array), size)]


def _gestures(table: str, rows: slice) -> Batches:
    threshold = {} if table == "keypoint" else {"score_threshold": np.zeros((), np.float32)}
    return [{"input": gestures(table)[0][rows]} | threshold]


# model: (data folders, calibration batches, other batches, least SQNR in dB of the outputs on those). The bound of YOLOX-nano is what
# ONNX Runtime's own static quantizer reaches on the same photographs: two values of its stem have a few very wide channels.
MODELS: dict[Path, tuple[tuple[str, ...], Callable[[], Batches], Callable[[], Batches], float]] = {
    ASSETS / "digits.onnx": (
        (),
        lambda: _batches("image", digits()["calibration"][0], 50),
        lambda: _batches("image", digits()["test"][0], 200),
        20.0,
    ),
    MNIST: (
        ("mnist-cntk", "mnist-data"),
        lambda: _batches("Input3", mnist()[0][:200], 1),
        lambda: _batches("Input3", mnist()[0][200:400], 1),
        25.0,
    ),
    KEYPOINT: (
        ("hand-gesture",),
        lambda: _gestures("keypoint", slice(0, None, 10)),
        lambda: _gestures("keypoint", slice(1, None, 10)),
        0.0,
    ),
    POINT_HISTORY: (
        ("hand-gesture",),
        lambda: _gestures("point_history", slice(0, None, 10)),
        lambda: _gestures("point_history", slice(1, None, 10)),
        0.0,
    ),
    POINT_HISTORY_LSTM: (
        ("hand-gesture",),
        lambda: _gestures("point_history", slice(0, None, 10)),
        lambda: _gestures("point_history", slice(1, None, 10)),
        0.0,
    ),
    ULTRAFACE: (("ultraface",), lambda: _batches("input", photos()[:3], 1), lambda: _batches("input", photos()[3:], 1), 20.0),
    YOLOX_NANO: (
        ("yolox-nano", "ultraface"),
        lambda: _batches("images", letterboxed()[:3], 1),
        lambda: _batches("images", letterboxed()[3:], 1),
        7.0,
    ),
    MOBILENET_V1: (
        ("imagenet-mobilenetv1-025", "ultraface"),
        lambda: _batches("input", imagenet_like()[:3], 1),
        lambda: _batches("input", imagenet_like()[3:], 1),
        8.0,
    ),
}


def _named(path: Path, batches: Batches) -> Batches:
    """The batches under the names that the model uses."""
    names = [i.name for i in qrt.load(path).inputs]
    return [dict(zip(names, batch.values(), strict=True)) for batch in batches]


@cache
def _quantized(path: Path) -> qrt.Model:
    return qrt.quantize(qrt.load(path), _named(path, MODELS[path][1]()), progress=False)


@cache
def _resnet20() -> qrt.Model:
    calibration = normalised(cifar10(0)[0][:500])
    return qrt.quantize(qrt.load(RESNET20), (calibration[i : i + 50] for i in range(0, 500, 50)), progress=False)


def _predict(session: qrt.InferenceSession, x: np.ndarray) -> np.ndarray:
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + 250]})[0] for i in range(0, len(x), 250)])


MODEL_CASES = [pytest.param(path, marks=needs_data(*folders), id=path.stem) for path, (folders, *_) in MODELS.items()]


@pytest.mark.parametrize("path", MODEL_CASES)
def test_static_int8_stays_close_to_float(path: Path) -> None:
    *_, others, bound = MODELS[path]
    exact, ours = qrt.InferenceSession(path), qrt.InferenceSession(_quantized(path))
    for batch in _named(path, others()):
        for reference, found in zip(exact.run(None, batch), ours.run(None, batch), strict=True):
            if reference.dtype.kind == "f":
                assert sqnr(reference, found) >= bound
            else:  # a class: as good as quantization lets it be
                assert (reference == found).mean() >= 0.97


@pytest.mark.parametrize("path", MODEL_CASES)
def test_what_qrt_writes_runs_in_onnxruntime_with_the_same_codes(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "int8.onnx"
    _quantized(path).save(file)
    theirs, ours = ort_session(file), qrt.InferenceSession(file)
    for batch in _named(path, MODELS[path][2]()):
        for found, expected in zip(ours.run(None, batch), theirs.run(None, batch), strict=True):
            assert_same_codes(found, expected)


@needs_data("cifar10-resnets", "cifar10-data")
def test_resnet20_keeps_its_accuracy() -> None:
    x = normalised(np.concatenate([cifar10(1)[0], cifar10(2)[0]]))
    labels = np.concatenate([cifar10(1)[1], cifar10(2)[1]])
    exact = float((_predict(qrt.InferenceSession(RESNET20), x).argmax(1) == labels).mean())
    int8 = float((_predict(qrt.InferenceSession(_resnet20()), x).argmax(1) == labels).mean())
    assert len(x) == 2000
    assert int8 >= exact - 0.005


@needs_data("cifar10-resnets", "cifar10-data")
def test_resnet20_gives_the_same_bytes_on_every_target_and_thread_count() -> None:
    x = normalised(cifar10(1)[0][:8])
    model = prepare(_resnet20())
    fuse(model)
    name = model.inputs[0].name
    best = Executable(model, host_target(), 1)
    (wanted,) = best.run({name: x})
    for _, program in best.plans({name: x}):
        (interpreted,) = interpret(program, [x])
        assert interpreted.tobytes() == wanted.tobytes()
    ladder = host_target().ladder
    assert len(best.plans({name: x})) == 1
    for isa in ladder:
        for threads in (1, 2):
            (found,) = Executable(model, host_target(isa), threads).run({name: x})
            assert found.tobytes() == wanted.tobytes(), (isa, threads)
    assert {t.isa for t in TARGETS} >= set(ladder)


@needs_data("cifar10-resnets", "cifar10-data")
def test_resnet20_codes_equal_onnxruntime(tmp_path: Path) -> None:
    file = tmp_path / "resnet20.int8.onnx"
    _resnet20().save(file)
    x = normalised(cifar10(1)[0][:500])
    assert_same_codes(_predict(qrt.InferenceSession(file), x), ort_session(file).run(None, {"input": x})[0])


@needs_minilm
@needs_data("minilm", "banking77")
def test_minilm_dynamic_int8_keeps_its_embeddings() -> None:
    model = minilm()
    int8 = qrt.InferenceSession(qrt.quantize_dynamic(qrt.load(model)))
    exact = qrt.InferenceSession(model)
    texts, cosines = banking77("test")[0][:200], []
    for start in range(0, 200, 20):
        feed = feeds(texts[start : start + 20])
        a, b = (embeddings(s.run(None, feed)[0], feed["attention_mask"]) for s in (int8, exact))
        cosines.append((a * b).sum(1))
    assert float(np.concatenate(cosines).mean()) >= 0.99
