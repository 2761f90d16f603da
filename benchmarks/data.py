"""Where the benchmarks' models come from: our own builders, the demo's asset, and files that are there or not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

import qrt
from benchmarks import minilm
from benchmarks.contest import FLOAT, Skipped
from benchmarks.models import NETWORKS
from qrt.ops.op import Array
from qrt.report.example import example_feeds

__all__ = ["digits", "downloaded", "int8_of", "minilm_models", "network"]

DATA = Path(os.environ.get("QRT_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
INT8 = "int8"
SAMPLES = 4


def _samples(feeds: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Normal random feeds of the same shapes: ranges to quantize with, when only time counts."""
    rng = np.random.default_rng(1)
    for _ in range(SAMPLES):
        yield {name: np.asarray(rng.standard_normal(array.shape), array.dtype) for name, array in feeds.items()}


def int8_of(model: qrt.Model) -> qrt.Model:
    """`model`, quantized on seeded random samples."""
    return qrt.quantize(model, _samples(example_feeds(model)), progress=False)


@cache
def network(name: str) -> dict[str, qrt.Model]:
    """A network of models.py: as int8, and as it is."""
    model = qrt.load(NETWORKS[name]())
    return {INT8: int8_of(model), FLOAT: model}


@cache
def digits() -> dict[str, qrt.Model]:
    """The demo's network, quantized on its own calibration images."""
    assets = files("qrt") / "assets"
    with (assets / "digits.npz").open("rb") as file, np.load(file) as data:
        images = (data["images"][data["calibration"]] / np.float32(16))[:, None, None]
    model = qrt.load((assets / "digits.onnx").read_bytes())
    return {INT8: qrt.quantize(model, images, progress=False), FLOAT: model}


def downloaded(path: str) -> qrt.Model:
    """A file of the test data. Raises Skipped if it is not there."""
    if not (DATA / path).exists():
        raise Skipped(f"no {path} (set QRT_TEST_DATA to the folder that holds it)")
    return qrt.load(DATA / path)


@cache
def minilm_models() -> dict[str, qrt.Model]:
    """MiniLM, dynamically quantized and as it is. Raises Skipped if its weights are not there."""
    if minilm.folder() is None:
        raise Skipped(minilm.MISSING)
    model = qrt.load(minilm.minilm())
    return {"dynamic int8": qrt.quantize_dynamic(model), FLOAT: model}
