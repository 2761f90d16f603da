"""A small CNN with a residual, a pool, a Sigmoid and a classifier, for tests of the doors to quantization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from data import ort_session
from graphs import images, make, ops, prepared

import qrt
from qrt.graph import constant, is_op
from qrt.graph.rules import fuse
from qrt.loaders import load
from qrt.quantization import PreparedModel, QConfig, QConfigMapping, prepare_fx

_PADS = "pads: ints = [1,1,1,1]"
_TEXT = f"""(float[N,3,8,8] x) => (float[N,5] y) {{
    [stem_conv] a = Conv<{_PADS}>(x, w, b)
    [stem_relu] r = Relu(a)
    [block_conv] s = Conv<{_PADS}>(r, v, c)
    [block_add] t = Add(s, r)
    [block_relu] e = Relu(t)
    [block_pool] p = MaxPool<kernel_shape: ints = [2,2], strides: ints = [2,2]>(e)
    [head_conv] h = Conv(p, k)
    [head_sigmoid] q = Sigmoid(h)
    [head_gap] g = GlobalAveragePool(q)
    [head_flatten] f = Flatten(g)
    [fc] y = Gemm(f, m, d)
}}"""
WEIGHTS: dict[str, Any] = {
    "w": images(8, 3, 3, 3) / 3,
    "b": images(8, seed=1) / 4,
    "v": images(8, 8, 3, 3, seed=2) / 8,
    "c": images(8, seed=3) / 4,
    "k": images(8, 8, 1, 1, seed=6) / 3,
    "m": images(8, 5, seed=4),
    "d": images(5, seed=5),
}
BATCHES = [images(4, 3, 8, 8, seed=10 + k) for k in range(6)]
X = BATCHES[1]
# What all of it becomes in int8: all but the last layer give codes.
FUSED = {
    "QuantizeLinear": 1,
    "QConv": 2,
    "QConvAdd": 1,
    "MaxPool": 1,
    "QLut": 1,
    "QGlobalAveragePool": 1,
    "Flatten": 1,
    "QMatMulFloat": 1,
}


def proto() -> onnx.ModelProto:
    """Its nodes are called stem.conv, stem.relu, block.conv, block.add …, head.flatten, fc; each value has one letter."""
    model = make(_TEXT, **WEIGHTS)
    for node in model.graph.node:
        node.name = node.name.replace("_", ".")
    return model


def cnn() -> qrt.Model:
    """It, loaded."""
    return load(proto())


def in_ort(model: onnx.ModelProto | qrt.Model, x: np.ndarray = X) -> np.ndarray:
    """What ONNX Runtime computes of a model that the checker finds right: its (first) output for its (first) input."""
    model = model if isinstance(model, onnx.ModelProto) else model.to_proto()
    onnx.checker.check_model(model, full_check=True)
    found: np.ndarray = ort_session(model.SerializeToString()).run(None, {model.graph.input[0].name: x})[0]
    return found


def in_qrt(model: qrt.Model, x: np.ndarray = X) -> np.ndarray:
    """What a session of qrt computes of it."""
    found: np.ndarray = qrt.InferenceSession(model).run(None, {model.inputs[0].name: x})[0]
    return found


def everywhere(qconfig: QConfig | None) -> QConfigMapping:
    return QConfigMapping().set_global(qconfig)


def taught(mapping: QConfigMapping | dict[str, Any], model: qrt.Model | None = None, **kwargs: Any) -> PreparedModel:
    """The CNN, prepared, after all batches."""
    observed = prepare_fx(model or cnn(), mapping, (X,), **kwargs)
    for batch in BATCHES:
        observed(batch)
    return observed


def fused_ops(model: qrt.Model) -> dict[str, int]:
    """What a session makes of a quantized model."""
    fused = prepared(model.to_proto())
    fuse(fused)
    return ops(fused)


def scales(model: qrt.Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Value → scale and zero point of the QuantizeLinear behind it."""
    found = {}
    for node in model.graph:
        if is_op(node, "QuantizeLinear") and node.inputs[0] is not None:
            scale, zero_point = constant(node.inputs[1]), constant(node.inputs[2])
            assert scale is not None
            assert zero_point is not None
            found[node.inputs[0].name or ""] = (scale, zero_point)
    return found


def float_products(model: qrt.Model) -> list[str]:
    """The products that read their weight as it is."""
    return [node.name or "" for node in model.graph if is_op(node, "Conv", "Gemm") and constant(node.inputs[1]) is not None]
