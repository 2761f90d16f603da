"""Files that ONNX Runtime's optimizers wrote: they run as a whole, and give what the models gave before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from data import MLPERF_RESNET8, MNIST, RESNET20, RESNET20_QDQ, RESNET20_QOPERATOR, SILERO_VAD, ULTRAFACE, YOLOX_NANO, needs_data
from minilm import feeds as sentences
from minilm import minilm, needs_minilm

from qrt.graph.passes import prepare
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower import Executable

FILES = [MLPERF_RESNET8, MNIST, RESNET20, RESNET20_QDQ, RESNET20_QOPERATOR, SILERO_VAD, ULTRAFACE, YOLOX_NANO]
LEVELS = ort.GraphOptimizationLevel


def optimized(source: Path | onnx.ModelProto, target: Path, level: LEVELS) -> Path:
    """What ONNX Runtime's optimizations of `level` make of the model."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.optimized_model_filepath, options.log_severity_level = level, str(target), 4
    given = source.SerializeToString() if isinstance(source, onnx.ModelProto) else str(source)
    ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    return target


def numbers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Random inputs; an extent that the model leaves open is 1."""
    rng, found = np.random.default_rng(0), {}
    initializers = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in initializers:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            found[value.name] = (rng.normal(size=[d.dim_value or 1 for d in value.type.tensor_type.shape.dim]) * 20).astype(dtype)
    return found


def run(source: Path | onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    model = prepare(load(source))
    fuse(model)
    executable = Executable(model, host_target(), 1)
    results = executable.run(feeds)
    assert not executable.why
    return results


@needs_data("mlperf-tiny", "mnist-cntk", "cifar10-resnets", "ort-quantized", "silero-vad", "ultraface", "yolox-nano")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_extended_optimizations(path: Path, tmp_path: Path) -> None:
    file = optimized(path, tmp_path / "optimized.onnx", LEVELS.ORT_ENABLE_EXTENDED)
    written = onnx.load(file)
    assert any(node.domain == "com.microsoft" for node in written.graph.node)
    feeds = numbers(written)
    for got, wanted in zip(run(file, feeds), run(path, feeds), strict=True):
        scale = float(np.abs(wanted).max())
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=2e-5 * max(scale, 1.0))


@needs_data("ort-quantized")
@pytest.mark.parametrize("path", [RESNET20_QDQ, RESNET20_QOPERATOR], ids=lambda path: path.stem)
def test_all_optimizations_of_codes(path: Path, tmp_path: Path) -> None:
    """On x86 they bring the channels last."""
    file = optimized(path, tmp_path / "optimized.onnx", LEVELS.ORT_ENABLE_ALL)
    written = onnx.load(file)
    if any(node.domain == "com.microsoft.nchwc" for node in written.graph.node):
        pytest.skip("ONNX Runtime lays channels in blocks here, which is for one machine alone")
    feeds = numbers(written)
    for got, wanted in zip(run(file, feeds), run(path, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


@needs_minilm
@pytest.mark.parametrize("form", ["Attention", "MultiHeadAttention", "extended"])
def test_a_transformer(form: str, tmp_path: Path) -> None:
    """By the general optimizations, and by those for transformers, which fuse whole attentions and embeddings."""
    source = minilm()
    file = tmp_path / "optimized.onnx"
    if form == "extended":
        optimized(source, file, LEVELS.ORT_ENABLE_EXTENDED)
    else:
        optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
        options = pytest.importorskip("onnxruntime.transformers.fusion_options").FusionOptions("bert")
        options.use_multi_head_attention = form == "MultiHeadAttention"
        onnx.save(source, tmp_path / "source.onnx")
        made = optimizer.optimize_model(str(tmp_path / "source.onnx"), "bert", 12, 384, options, opt_level=0)
        made.save_model_to_file(str(file))
        assert any(node.op_type == form for node in onnx.load(file).graph.node)
    given = sentences(["How old are you?", "Where is the nearest bank that is open on a Sunday?"])
    types = {v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in onnx.load(file).graph.input}
    (got,), (wanted,) = run(file, {name: given[name].astype(dtype) for name, dtype in types.items()}), run(source, given)
    there = given["attention_mask"].astype(bool)
    np.testing.assert_allclose(got[there], wanted[there], rtol=1e-3, atol=1e-4)
