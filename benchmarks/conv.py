"""Every distinct convolution of the image networks, as a model of its own: codes in, codes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

import qrt
from benchmarks.contest import Result, Settings, contest
from benchmarks.models import NETWORKS
from qrt.report.example import example_feeds

__all__ = ["Layer", "conv_rows", "layer_model", "layers"]

X_SCALE, X_ZERO_POINT = 1 / 64, 128
Y_ZERO_POINT = 128


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
        kind = "depthwise" if self.group == self.c_in > 1 else f"{self.c_in} → {self.c_out}"
        step = f" / {self.stride}" if self.stride > 1 else ""
        return (
            f"{self.kernel}×{self.kernel}{step}, {kind} of {self.c_out} at {self.size}²"
            if kind == "depthwise"
            else (f"{self.kernel}×{self.kernel}{step}, {kind} at {self.size}²")
        )


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
    rng = np.random.default_rng(0)
    fan_in = layer.c_in // layer.group * layer.kernel**2
    weight = rng.integers(-127, 128, (layer.c_out, layer.c_in // layer.group, layer.kernel, layer.kernel)).astype(np.int8)
    w_scale = (rng.uniform(0.5, 1.0, layer.c_out) / 127).astype(np.float32)
    # Codes of ±1 deviation, weights of about 0.43: a standard deviation of y becomes 32 codes.
    y_scale = np.float32(0.43 * np.sqrt(fan_in) / 32)
    tensors = {
        "x_scale": np.float32(X_SCALE),
        "x_zero_point": np.uint8(X_ZERO_POINT),
        "w_codes": weight,
        "w_scale": w_scale,
        "w_zero_point": np.zeros(layer.c_out, np.int8),
        "b_codes": rng.integers(-1000, 1000, layer.c_out).astype(np.int32),
        "b_scale": (w_scale * np.float32(X_SCALE)).astype(np.float32),
        "b_zero_point": np.zeros(layer.c_out, np.int32),
        "y_scale": y_scale,
        "y_zero_point": np.uint8(Y_ZERO_POINT),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero_point"], ["x_real"]),
        helper.make_node("DequantizeLinear", ["w_codes", "w_scale", "w_zero_point"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["b_codes", "b_scale", "b_zero_point"], ["b"], axis=0),
        helper.make_node(
            "Conv",
            ["x_real", "w", "b"],
            ["y_real"],
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=[(layer.kernel - 1) // 2] * 4,
            group=layer.group,
        ),
        helper.make_node("QuantizeLinear", ["y_real", "y_scale", "y_zero_point"], ["y"]),
    ]
    size = (layer.size - 1) // layer.stride + 1
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, layer.c_in, layer.size, layer.size])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, layer.c_out, size, size])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def conv_rows(settings: Settings) -> Iterator[Result]:
    """Each layer once, under the name of the first network that has it."""
    seen: set[Layer] = set()
    for name in ("resnet50", "mobilenet_v2", "efficientnet_lite0"):
        for layer in layers(NETWORKS[name]()):
            if layer in seen:
                continue
            seen.add(layer)
            model = qrt.load(layer_model(layer))
            codes = np.random.default_rng(0).integers(0, 256, example_feeds(model)["x"].shape).astype(np.uint8)
            for threads in settings.threads:
                yield from contest({str(layer): model}, {"x": codes}, threads, settings, name)
