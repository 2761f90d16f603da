"""Every float model, on its own data: the outputs of ONNX Runtime, within 1e-3 relative or 1e-4 of the output's range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from data import (
    ASSETS,
    KEYPOINT,
    MAGIKA,
    MLPERF_RESNET8,
    MNIST,
    MOBILENET_V1,
    POINT_HISTORY,
    POINT_HISTORY_LSTM,
    RESNET20,
    SILERO_VAD,
    ULTRAFACE,
    YOLOX_NANO,
    cifar10,
    digits,
    gestures,
    imagenet_like,
    letterboxed,
    magika_features,
    magika_files,
    magika_labels,
    magika_reference,
    mnist,
    needs_data,
    normalised,
    ort_session,
    photos,
    speech_chunks,
)
from minilm import embeddings, feeds, minilm, needs_minilm

import qrt

Feeds = Iterator[dict[str, np.ndarray]]


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The bound of the models' table: rtol 1e-3, atol 1e-4 of the output's range; equal where there is nothing to round."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if theirs.dtype.kind == "f":
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(np.ptp(theirs)))
    else:
        assert (ours == theirs).mean() >= 0.999


def _batches(name: str, array: np.ndarray, size: int) -> Feeds:
    for start in range(0, len(array), size):
        yield {name: array[start : start + size]}


def _gestures(table: str, step: int) -> Feeds:
    features, _ = gestures(table)
    threshold = {} if table == "keypoint" else {"score_threshold": np.zeros((), np.float32)}
    for batch in (1, 7, 500):
        yield {"input": features[: batch * step : step]} | threshold


MODELS: list[tuple[Path, tuple[str, ...], Callable[[], Feeds]]] = [
    (ASSETS / "digits.onnx", (), lambda: _batches("image", digits()["test"][0], 200)),
    (RESNET20, ("cifar10-resnets", "cifar10-data"), lambda: _batches("input", normalised(cifar10(0)[0][:1000]), 250)),
    (MLPERF_RESNET8, ("mlperf-tiny", "cifar10-data"), lambda: _batches("input_1", cifar10(0)[0][:1000].astype(np.float32), 250)),
    (MNIST, ("mnist-cntk", "mnist-data"), lambda: _batches("Input3", mnist()[0][:1000], 1)),
    (MOBILENET_V1, ("imagenet-mobilenetv1-025", "ultraface"), lambda: _batches("input", imagenet_like(), 2)),
    (KEYPOINT, ("hand-gesture",), lambda: _gestures("keypoint", 8)),
    (POINT_HISTORY, ("hand-gesture",), lambda: _gestures("point_history", 8)),
    (POINT_HISTORY_LSTM, ("hand-gesture",), lambda: _gestures("point_history", 8)),
    (ULTRAFACE, ("ultraface",), lambda: _batches("input", photos(), 1)),
    (YOLOX_NANO, ("yolox-nano", "ultraface"), lambda: _batches("images", letterboxed(), 1)),
]


@pytest.mark.parametrize(
    ("path", "batches"), [pytest.param(path, batches, marks=needs_data(*folders), id=path.stem) for path, folders, batches in MODELS]
)
def test_outputs_equal_onnxruntime(path: Path, batches: Callable[[], Feeds]) -> None:
    theirs, agreed, total = ort_session(path), 0, 0
    names = [i.name for i in theirs.get_inputs()]
    with qrt.InferenceSession(path) as ours:
        assert [i.name for i in ours.get_inputs()] == names
        for feed in batches():
            feed = dict(zip(names, feed.values(), strict=True)) if set(feed) != set(names) else feed
            expected = theirs.run(None, feed)
            found = ours.run(None, feed)
            for a, b in zip(found, expected, strict=True):
                assert_close(a, b)
            if expected[0].ndim == 2 and expected[0].dtype.kind == "f":
                agreed += int((found[0].argmax(1) == expected[0].argmax(1)).sum())
                total += len(expected[0])
    assert agreed >= 0.999 * total


@needs_data("silero-vad")
def test_silero_carries_its_state_over_a_minute() -> None:
    ours, theirs = qrt.InferenceSession(SILERO_VAD), ort_session(SILERO_VAD)
    names = [i.name for i in theirs.get_inputs()]
    state = [np.zeros((2, 1, 128), np.float32)] * 2
    speech, probabilities = names[0], []
    for chunk in speech_chunks():
        feed = {speech: chunk, names[1]: state[0]}
        a = ours.run(None, feed)
        b = theirs.run(None, {speech: chunk, names[1]: state[1]})
        probabilities.append((float(a[0].reshape(())), float(b[0].reshape(()))))
        state = [a[1], b[1]]
    found = np.array(probabilities)
    assert len(found) == 1875
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=1e-3, atol=1e-4)
    assert float((found[:, 0] > 0.5).mean()) == pytest.approx(0.7744, abs=5e-4)


@needs_data("magika")
def test_magika_reproduces_every_reference() -> None:
    session, labels = qrt.InferenceSession(MAGIKA), magika_labels()
    name = session.get_inputs()[0].name
    cases = magika_reference()
    for case in cases:
        (scores,) = session.run(None, {name: magika_features(case.content)[None]})
        best = int(scores[0].argmax())
        assert labels[best] == case.label
        assert float(scores[0, best]) == pytest.approx(case.score, abs=1e-4)
    right = [
        labels[int(session.run(None, {name: magika_features(content)[None]})[0].argmax())] == label for content, label in magika_files()
    ]
    assert len(cases) == 129
    assert right.count(True) == len(right) == 76


@needs_minilm
@needs_data("minilm", "banking77")
def test_minilm_equals_onnxruntime() -> None:
    from data import banking77

    model = minilm()
    texts = banking77("test")[0]
    ours, theirs = qrt.InferenceSession(model), ort_session(model.SerializeToString())
    for count in (1, 3, 8):  # three shapes: each is planned once
        feed = feeds(texts[:count])
        (found,), (expected,) = ours.run(None, feed), theirs.run(None, feed)
        assert_close(found, expected)
        cosine = (embeddings(found, feed["attention_mask"]) * embeddings(expected, feed["attention_mask"])).sum(1)
        assert cosine.min() > 0.9999
