"""qrt demo: the whole of qrt on a small model that comes with it."""

from __future__ import annotations

import importlib.util
from importlib.resources import files

import numpy as np

import qrt
from qrt.cli.console import Json, nbytes, progress, show_json, show_table, tell
from qrt.ops.op import Array
from qrt.report.bench import bench_model

__all__ = ["demo"]

_ROUNDS = 20


def demo(json: Json = False) -> None:
    """Quantize and run a small network that reads digits."""
    assets = files("qrt") / "assets"
    with (assets / "digits.npz").open("rb") as file, np.load(file) as data:
        images, labels = (data["images"] / np.float32(16))[:, None], data["labels"]
        calibration, test = data["calibration"], data["test"]
    real = qrt.load((assets / "digits.onnx").read_bytes())
    peers = ["onnxruntime"] if importlib.util.find_spec("onnxruntime") else []

    with progress() as bar:
        batches = bar.track(images[calibration][:, None], description="Quantizing")
        models = {"float32": real, "int8": qrt.quantize(real, batches, progress=False)}
        work = bar.add_task("Running", total=2 * (_ROUNDS + 1))
        rows = []
        for name, model in models.items():
            right = _accuracy(model, images[test], labels[test])
            bar.advance(work)
            timings = bench_model(model, peers, 1, _ROUNDS, lambda done: bar.advance(work))
            rows.append((name, right, len(model.to_proto().SerializeToString()), {t.runtime: t.median_ms for t in timings}))

    if json:
        keys = ("model", "accuracy", "bytes", "median_ms")
        show_json({"test_images": len(test), "models": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    tell(f"Handwritten digits: calibrated on {len(calibration)} images, tested on {len(test)} others; one image at a time, one thread.")
    columns = ["model", ">accuracy", ">size", ">qrt", *(f">{peer}" for peer in peers)]
    table = [(name, f"{right:.2%}", nbytes(size), *(f"{ms * 1e3:.1f} µs" for ms in times.values())) for name, right, size, times in rows]
    show_table(columns, table)


def _accuracy(model: qrt.Model, images: Array, labels: Array) -> float:
    with qrt.InferenceSession(model) as session:
        (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return float(np.mean(logits.argmax(-1) == labels))
