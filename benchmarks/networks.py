"""Benchmarks of whole models: the same file in every engine, a whole `run` call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

import qrt
from benchmarks.contest import FLOAT, Result, Settings, contest
from benchmarks.data import INT8, digits, downloaded, int8_of, minilm_models, network
from benchmarks.models import identity
from qrt.report.example import example_feeds

__all__ = ["digits_rows", "minilm_rows", "network_rows", "ort_resnet20", "overhead", "resnet20", "silero", "yolox_nano"]


def _whole(models: Mapping[str, qrt.Model], settings: Settings) -> Iterator[Result]:
    feeds = example_feeds(next(iter(models.values())))
    for threads in settings.threads:
        yield from contest(models, feeds, threads, settings)


def network_rows(name: str, settings: Settings) -> Iterator[Result]:
    """A network of models.py, int8 and float32."""
    yield from _whole(network(name), settings)


def digits_rows(settings: Settings) -> Iterator[Result]:
    """The network of `qrt demo`."""
    yield from _whole(digits(), settings)


def resnet20(settings: Settings) -> Iterator[Result]:
    """CIFAR-10 ResNet-20, real weights."""
    model = downloaded("cifar10-resnets/resnet20.onnx")
    yield from _whole({INT8: int8_of(model), FLOAT: model}, settings)


def ort_resnet20(settings: Settings) -> Iterator[Result]:
    """The same network as ONNX Runtime quantized it: signed QDQ, and QOperator."""
    for kind, file in (("QDQ s8s8", "resnet20_qdq_s8s8"), ("QOperator u8s8", "resnet20_qop_u8s8")):
        yield from _whole({kind: downloaded(f"ort-quantized/{file}.onnx")}, settings)


def silero(settings: Settings) -> Iterator[Result]:
    """A voice detector around an LSTM, one chunk of 32 ms."""
    yield from _whole({FLOAT: downloaded("silero-vad/silero_vad_openvino_16k.onnx")}, settings)


def yolox_nano(settings: Settings) -> Iterator[Result]:
    """An object detector, 416²."""
    model = downloaded("yolox-nano/yolox_nano.onnx")
    yield from _whole({INT8: int8_of(model), FLOAT: model}, settings)


def minilm_rows(settings: Settings) -> Iterator[Result]:
    """A sentence encoder, real weights, one text of 16, 128 and 256 tokens."""
    models = minilm_models()
    for threads in settings.threads:
        for length in (16, 128, 256):
            ids = np.random.default_rng(0).integers(1000, 30000, (1, length))
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            yield from contest(models, feeds, threads, settings, f"{length} tokens")


def overhead(settings: Settings) -> Iterator[Result]:
    """What a call costs when there is nothing to do."""
    yield from _whole({"identity": qrt.load(identity())}, settings)
