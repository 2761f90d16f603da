"""Every distinct convolution of the image networks, as a model of its own: codes in, codes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

import qrt
from benchmarks.contest import Result, Settings, contest
from benchmarks.models import NETWORKS
from qrt.ops.op import Array

__all__ = ["Layer", "conv_rows", "layer_model", "layers"]

X_SCALE = 1 / 64


@dataclass(frozen=True)
class Layer:
    """A convolution of one image: square kernel, equal padding on all sides."""

    c_in: int
    c_out: int
    size: int
    kernel: int
    stride: int
    group: int

    def __str__(self) -> str:
        channels = f"depthwise of {self.c_in}" if self.group == self.c_in else f"{self.c_in} → {self.c_out}"
        stride = f" / {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}×{self.kernel}{stride}, {channels} at {self.size}²"


def layers(model: onnx.ModelProto) -> list[Layer]:
    """The distinct convolutions of a network, in order."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.value_info)}
    weights = {w.name: list(w.dims) for w in graph.initializer}
    found: dict[Layer, None] = {}
    for node in graph.node:
        if node.op_type == "Conv":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            _, c_in, height, _ = sizes[node.input[0]]
            c_out, _, kernel, _ = weights[node.input[1]]
            found[Layer(c_in, c_out, height, kernel, attributes["strides"][0], attributes["group"])] = None
    return list(found)


def layer_model(layer: Layer) -> onnx.ModelProto:
    """DequantizeLinear → Conv → QuantizeLinear: uint8 codes, int8 weights per channel, int32 bias, all random from one seed."""
    attributes: dict[str, Any] = {"strides": [layer.stride] * 2, "pads": [(layer.kernel - 1) // 2] * 4, "group": layer.group}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero_point"], ["x_real"]),
        helper.make_node("DequantizeLinear", ["w_codes", "w_scale", "w_zero_point"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["b_codes", "b_scale", "b_zero_point"], ["b"], axis=0),
        helper.make_node("Conv", ["x_real", "w", "b"], ["y_real"], kernel_shape=[layer.kernel] * 2, **attributes),
        helper.make_node("QuantizeLinear", ["y_real", "y_scale", "y_zero_point"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, layer.c_in, layer.size, layer.size])
    size = (layer.size - 1) // layer.stride + 1
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [1, layer.c_out, size, size])
    tensors = [numpy_helper.from_array(array, name) for name, array in _tensors(layer).items()]
    graph = helper.make_graph(nodes, "conv", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _tensors(layer: Layer) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shape = (layer.c_out, layer.c_in // layer.group, layer.kernel, layer.kernel)
    w_scale = (rng.uniform(0.5, 1.0, layer.c_out) / 127).astype(np.float32)
    return {
        "x_scale": np.asarray(X_SCALE, np.float32),
        "x_zero_point": np.asarray(128, np.uint8),
        "w_codes": rng.integers(-127, 128, shape).astype(np.int8),
        "w_scale": w_scale,
        "w_zero_point": np.zeros(layer.c_out, np.int8),
        "b_codes": rng.integers(-1000, 1000, layer.c_out).astype(np.int32),
        "b_scale": (w_scale * np.float32(X_SCALE)).astype(np.float32),
        "b_zero_point": np.zeros(layer.c_out, np.int32),
        # Inputs are uniform in ±2, deviation 1.15, weights have a deviation of about 0.43: one of y becomes about 36 codes.
        "y_scale": np.asarray(0.43 * np.sqrt(np.prod(shape[1:])) / 32, np.float32),
        "y_zero_point": np.asarray(128, np.uint8),
    }


def conv_rows(settings: Settings) -> Iterator[Result]:
    """Each layer once, under the name of the first network that has it."""
    seen: set[Layer] = set()
    for name in ("resnet50", "mobilenet_v2", "efficientnet_lite0"):
        for layer in layers(NETWORKS[name]()):
            if layer in seen:
                continue
            seen.add(layer)
            model = qrt.load(layer_model(layer))
            codes = np.random.default_rng(0).integers(0, 256, (1, layer.c_in, layer.size, layer.size), np.uint8)
            for threads in settings.threads:
                yield from contest({str(layer): model}, {"x": codes}, threads, settings, name)
