"""Real models and data for the tests, from $QRT_TEST_DATA or the folder shared/data beside the repository.

Every folder there holds a SOURCE.txt with its origin, licence and the preprocessing that the loaders below follow. Nothing of it is
part of the repository: a test that needs it carries `needs_data` and is skipped where it is absent.
"""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import onnxruntime

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("QRT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
ASSETS = REPOSITORY / "qrt" / "assets"

RESNET20 = DATA / "cifar10-resnets" / "resnet20.onnx"
RESNET20_QDQ = DATA / "ort-quantized" / "resnet20_qdq_s8s8.onnx"
RESNET20_QOPERATOR = DATA / "ort-quantized" / "resnet20_qop_u8s8.onnx"
MLPERF_RESNET8 = DATA / "mlperf-tiny" / "pretrainedResnet.onnx"
MLPERF_RESNET8_INT8 = DATA / "mlperf-tiny" / "pretrainedResnet_quant.onnx"
MNIST = DATA / "mnist-cntk" / "mnist.onnx"
KEYPOINT = DATA / "hand-gesture" / "keypoint_classifier.onnx"
POINT_HISTORY = DATA / "hand-gesture" / "point_history_classifier.onnx"
POINT_HISTORY_LSTM = DATA / "hand-gesture" / "point_history_classifier_lstm.onnx"
ULTRAFACE = DATA / "ultraface" / "onnx" / "version-RFB-320.onnx"
YOLOX_NANO = DATA / "yolox-nano" / "yolox_nano.onnx"
MOBILENET_V1 = DATA / "imagenet-mobilenetv1-025" / "mobilenet_v1_0.25_224.onnx"
SILERO_VAD = DATA / "silero-vad" / "silero_vad_openvino_16k.onnx"
MAGIKA = DATA / "magika" / "assets" / "models" / "standard_v3_3" / "model.onnx"


def needs_data(*names: str) -> pytest.MarkDecorator:
    """Skips a test, with a reason, where one of the folders (or files) `names` of the data is absent."""
    missing = [name for name in names if not (DATA / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"no test data {', '.join(missing)} (set QRT_TEST_DATA to the folder that holds it)")


def _labels(path: Path) -> np.ndarray:
    """The digits of a convnetjs label file, `var labels=[6, 9, ...`, as int64."""
    text = path.read_text().partition("[")[2].partition("]")[0]
    return np.array(text.split(","), np.int64)


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def ort_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """The same model in ONNX Runtime, on one thread. Files of int8 codes are computed in integers, which on x86 it does only if asked;
    else it computes some of their layers in float."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.log_severity_level = 3  # errors only: it warns of every initializer that is also an input
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])


@cache
def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The demo's splits `train`, `calibration`, `test`: images (N, 1, 8, 8) float32 in 0..1 and labels (N,)."""
    with np.load(ASSETS / "digits.npz") as file:
        images, labels = (file["images"] / np.float32(16))[:, None], file["labels"].astype(np.int64)
        return {split: (images[file[split]], labels[file[split]]) for split in ("train", "calibration", "test")}


@cache
def cifar10(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """1000 training images of CIFAR-10, batch 0, 1 or 2: images (1000, 32, 32, 3) uint8 RGB and labels (1000,)."""
    folder = DATA / "cifar10-data"
    images = _pixels(folder / f"cifar10_batch_{batch}.png").reshape(1000, 32, 32, 3)
    return images, _labels(folder / "cifar10_labels.js")[1000 * batch : 1000 * (batch + 1)]


def normalised(images: np.ndarray) -> np.ndarray:
    """RGB uint8 (N, H, W, 3) to float32 (N, 3, H, W) with ImageNet's mean and deviation: the input of the CIFAR-10 ResNets."""
    mean, deviation = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    return np.ascontiguousarray(((images / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2))


@cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """3000 training images of MNIST as the CNTK model takes them: (3000, 1, 28, 28) float32 in 0..255, and labels (3000,)."""
    folder = DATA / "mnist-data"
    images = _pixels(folder / "mnist_batch_0.png")
    images = images[..., 0] if images.ndim == 3 else images
    return images.reshape(3000, 1, 28, 28).astype(np.float32), _labels(folder / "mnist_labels.js")[:3000]


@cache
def photos() -> np.ndarray:
    """The four photographs of ultraface, resized to 320×240 as its model takes them: (4, 3, 240, 320) float32, RGB (x - 127) / 128."""
    from PIL import Image

    images = []
    for path in sorted((DATA / "ultraface" / "imgs").glob("*.jpg")):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB").resize((320, 240), Image.Resampling.BILINEAR), np.float32))
    return np.ascontiguousarray(((np.stack(images) - 127) / 128).transpose(0, 3, 1, 2))


def letterboxed(size: int = 416) -> np.ndarray:
    """The same photographs as YOLOX takes them: (4, 3, size, size) float32, BGR 0..255, padded with 114 below and to the right."""
    from PIL import Image

    paths = sorted((DATA / "ultraface" / "imgs").glob("*.jpg"))
    boxes = np.full((len(paths), size, size, 3), 114, np.float32)
    for box, path in zip(boxes, paths, strict=True):
        with Image.open(path) as image:
            ratio = size / max(image.size)
            width, height = (int(extent * ratio) for extent in image.size)
            box[:height, :width] = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(boxes[..., ::-1].transpose(0, 3, 1, 2))


def imagenet_like(size: int = 224) -> np.ndarray:
    """The same photographs as MobileNetV1 takes them: (4, size, size, 3) float32, RGB x / 127.5 - 1. (There is no ImageNet here.)"""
    from PIL import Image

    images = []
    for path in sorted((DATA / "ultraface" / "imgs").glob("*.jpg")):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR), np.float32))
    return np.stack(images) / np.float32(127.5) - 1


@cache
def gestures(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A table of hand-gesture, `keypoint` (4450, 42) or `point_history` (5296, 32): features float32 and labels (N,)."""
    table = np.loadtxt(DATA / "hand-gesture" / f"{name}.csv", delimiter=",", dtype=np.float32)
    return np.ascontiguousarray(table[:, 1:]), table[:, 0].astype(np.int64)


@cache
def speech() -> np.ndarray:
    """60 s of speech at 16 kHz: (960000,) float32 in -1..1."""
    with wave.open(str(DATA / "silero-vad" / "test.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)


def speech_chunks(seconds: float = 60.0) -> Iterator[np.ndarray]:
    """The inputs of silero-vad one after the other: (1, 576) float32, 64 samples of context and 512 new ones."""
    chunk, context = 512, 64
    samples = np.concatenate([np.zeros(context, np.float32), speech()])
    for start in range(0, min(int(seconds * 16000), len(samples) - context) - chunk + 1, chunk):
        yield samples[None, start : start + context + chunk]


@cache
def banking77(split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The questions of split `train` or `test` and the intent of each, one of 77."""
    with open(DATA / "banking77" / f"{split}.csv", newline="", encoding="utf-8") as file:
        texts, intents = zip(*((row["text"], row["category"]) for row in csv.DictReader(file)), strict=True)
    return texts, intents


@dataclass(frozen=True)
class MagikaCase:
    """A file and what Magika's own implementation answers: the label of the network (`undefined` if too small for it) and its score."""

    content: bytes
    label: str
    score: float


@cache
def magika_labels() -> tuple[str, ...]:
    """The 214 labels of the network's output."""
    return tuple(json.loads((MAGIKA.parent / "config.min.json").read_text())["target_labels_space"])


@cache
def magika_files() -> tuple[tuple[bytes, str], ...]:
    """The labelled example files that are large enough for the network: content and label, the name of its folder."""
    paths = sorted(path for path in (DATA / "magika" / "tests_data" / "basic").glob("*/*") if path.stat().st_size >= 8)
    return tuple((path.read_bytes(), path.parent.name) for path in paths)


@cache
def magika_reference() -> tuple[MagikaCase, ...]:
    """The reference predictions by content that come from the network."""
    path = DATA / "magika" / "tests_data" / "reference" / "standard_v3_3-inference_examples_by_content.json.gz"
    with gzip.open(path, "rt") as file:
        cases = json.load(file)
    return tuple(
        MagikaCase(base64.b64decode(case["content_base64"]), case["prediction"]["dl"], case["prediction"]["score"])
        for case in cases
        if case["status"] == "ok" and case["prediction"]["dl"] != "undefined"
    )


def magika_features(content: bytes) -> np.ndarray:
    """The network's input (2048,) int32: the first and last 1024 bytes of the stripped first and last 4096, padded with 256.

    Run it one file at a time: some of its reductions cross the batch, so that a score depends on the batch's other files.
    """
    block, size, padding = 4096, 1024, 256
    begin, end = content[:block].lstrip()[:size], content[-block:].rstrip()[-size:]
    features = np.full(2 * size, padding, np.int32)
    features[: len(begin)] = list(begin)
    features[2 * size - len(end) :] = list(end)
    return features
