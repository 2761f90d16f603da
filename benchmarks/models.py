"""The networks that benchmarks run, built with seeded random weights: the same bytes for every engine, and nothing to download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["NETWORKS", "cnn", "efficientnet_lite0", "identity", "mlp", "mobilenet_v2", "resnet50"]

CLASSES = 1000


class _Net:
    """Nodes and weights of a network under construction. Weights are He-normal, so that activations keep their size."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def weight(self, array: np.ndarray | np.float32, hint: str) -> str:
        name = f"{hint}{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        out = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [out], name=out, **attributes))
        return out

    def conv(self, x: str, c_in: int, c_out: int, kernel: int, stride: int = 1, group: int = 1, activation: str = "") -> str:
        fan_in = c_in // group * kernel * kernel
        w = self.weight(self.random.normal(0, np.sqrt(2 / fan_in), (c_out, c_in // group, kernel, kernel)), "w")
        b = self.weight(self.random.normal(0, 0.1, c_out), "b")
        pad = (kernel - 1) // 2
        y = self.op("Conv", x, w, b, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group)
        if activation == "relu":
            return self.op("Relu", y)
        if activation == "relu6":
            return self.op("Clip", y, self.weight(np.float32(0), "low"), self.weight(np.float32(6), "high"))
        return y

    def linear(self, x: str, c_in: int, c_out: int, deviation: float) -> str:
        w = self.weight(self.random.normal(0, deviation, (c_out, c_in)), "w")
        return self.op("Gemm", x, w, self.weight(np.zeros(c_out), "b"), transB=1)

    def head(self, x: str, channels: int) -> str:
        return self.linear(self.op("Flatten", self.op("GlobalAveragePool", x)), channels, CLASSES, 0.02)

    def model(self, name: str, y: str, image: tuple[int, ...] = (3, 224, 224), classes: int = CLASSES) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *image])
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, name, [x], [out], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def resnet50() -> onnx.ModelProto:
    """ResNet-50 v1.5 (stride in the 3×3 convolutions), BatchNorm folded, 224², 25.5 M parameters, 4.1 G MACs."""
    net = _Net()
    x = net.op("MaxPool", net.conv("x", 3, 64, 7, 2, activation="relu"), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step = stride if block == 0 else 1
            y = net.conv(x, channels, width, 1, activation="relu")
            y = net.conv(y, width, width, 3, step, activation="relu")
            y = net.conv(y, width, 4 * width, 1)
            shortcut = net.conv(x, channels, 4 * width, 1, step) if block == 0 else x
            x, channels = net.op("Relu", net.op("Add", y, shortcut)), 4 * width
    return net.model("resnet50", net.head(x, channels))


def _inverted_residuals(net: _Net, x: str, channels: int, stages: tuple[tuple[int, int, int, int, int], ...]) -> tuple[str, int]:
    """Blocks of MobileNetV2: (expansion, channels, blocks, stride, kernel) a stage."""
    for expansion, c_out, blocks, stride, kernel in stages:
        for block in range(blocks):
            step, y, hidden = (stride if block == 0 else 1), x, channels * expansion
            if expansion != 1:
                y = net.conv(y, channels, hidden, 1, activation="relu6")
            y = net.conv(y, hidden, hidden, kernel, step, group=hidden, activation="relu6")
            y = net.conv(y, hidden, c_out, 1)
            x = net.op("Add", x, y) if step == 1 and channels == c_out else y
            channels = c_out
    return x, channels


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2 1.0, 224², BatchNorm folded, 3.5 M parameters, 0.3 G MACs."""
    net = _Net()
    stages = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 32, 3, 2, 3),
        (6, 64, 4, 2, 3),
        (6, 96, 3, 1, 3),
        (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    )
    x, channels = _inverted_residuals(net, net.conv("x", 3, 32, 3, 2, activation="relu6"), 32, stages)
    return net.model("mobilenet_v2", net.head(net.conv(x, channels, 1280, 1, activation="relu6"), 1280))


def efficientnet_lite0() -> onnx.ModelProto:
    """EfficientNet-Lite0, 224² (no squeeze-and-excite, ReLU6), BatchNorm folded, 4.7 M parameters, 0.4 G MACs."""
    net = _Net()
    stages = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    x, channels = _inverted_residuals(net, net.conv("x", 3, 32, 3, 2, activation="relu6"), 32, stages)
    return net.model("efficientnet_lite0", net.head(net.conv(x, channels, 1280, 1, activation="relu6"), 1280))


def cnn() -> onnx.ModelProto:
    """A small CNN for 28² images: two 3×3 convolutions of 16 and 32 channels, each pooled, and two linear layers; 0.2 M parameters."""
    net = _Net()
    x, channels = "x", 1
    for width in (16, 32):
        x = net.op("MaxPool", net.conv(x, channels, width, 3, activation="relu"), kernel_shape=[2, 2], strides=[2, 2])
        channels = width
    hidden = net.op("Relu", net.linear(net.op("Flatten", x), 32 * 7 * 7, 128, np.sqrt(2 / (32 * 7 * 7))))
    return net.model("cnn", net.linear(hidden, 128, 10, 0.1), (1, 28, 28), 10)


def mlp() -> onnx.ModelProto:
    """A small MLP for 28² images: 784, 256, 128, 10; 0.2 M parameters."""
    net = _Net()
    x = net.op("Flatten", "x")
    for c_in, c_out in ((784, 256), (256, 128)):
        x = net.op("Relu", net.linear(x, c_in, c_out, np.sqrt(2 / c_in)))
    return net.model("mlp", net.linear(x, 128, 10, 0.1), (1, 28, 28), 10)


def identity() -> onnx.ModelProto:
    """One Identity: what a call costs when there is nothing to do."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], name="identity")], "identity", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_lite0": efficientnet_lite0,
    "cnn": cnn,
    "mlp": mlp,
}
