"""Train the demo network on scikit-learn's handwritten digits, with NumPy alone, and write it to `qrt/assets`.

    python tools/train_digits.py [--epochs 40]

The network is a small residual CNN of the kind found on microcontrollers: a strided convolution, a residual block, a depthwise-separable
convolution, global average pooling and a linear layer, 26 thousand parameters in all. BatchNormalization nodes are left in the exported
graph, because that is what exporters write and what a quantizer has to fold.

Everything random is drawn from one seeded generator, so the same NumPy and BLAS give the same file.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

ASSETS = Path(__file__).resolve().parents[1] / "qrt" / "assets"
SEED = 2024
TRAIN, CALIBRATION = 997, 200  # the other 600 images are the test set
LEVELS = 16  # the data set's grey levels are 0..16
BATCH, LEARNING_RATE, WEIGHT_DECAY = 64, 4e-3, 1e-3
BN_MOMENTUM, BN_EPSILON = 0.9, 1e-5


class Parameter:
    """A trained array, its gradient and Adam's two moments (Kingma and Ba, 2015, algorithm 1)."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value.astype(np.float32)
        self.grad = np.zeros_like(self.value)
        self.mean = np.zeros_like(self.value)
        self.square = np.zeros_like(self.value)

    def step(self, learning_rate: float, count: int) -> None:
        self.mean += 0.1 * (self.grad - self.mean)
        self.square += 0.001 * (self.grad**2 - self.square)
        mean, square = self.mean / (1 - 0.9**count), self.square / (1 - 0.999**count)
        decay = WEIGHT_DECAY if self.value.ndim > 1 else 0.0
        self.value -= learning_rate * (mean / (np.sqrt(square) + 1e-8) + decay * self.value)


class Graph:
    """The nodes and initializers of the ONNX file while it is written; every emitter returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], weights: dict[str, np.ndarray] | None = None, output: str = "", **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        for role, value in (weights or {}).items():
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{name}.{role}"))
            inputs = [*inputs, f"{name}.{role}"]
        self.nodes.append(helper.make_node(op, inputs, [output or f"{name}.output"], name=name, **attributes))
        return str(self.nodes[-1].output[0])


class Layer(ABC):
    """One step of the network. Activations are (N, H, W, C) float32; `backward` takes and returns gradients of the same shapes."""

    parameters: tuple[Parameter, ...] = ()

    @abstractmethod
    def forward(self, x: np.ndarray, training: bool) -> np.ndarray: ...

    @abstractmethod
    def backward(self, dy: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def emit(self, graph: Graph, x: str) -> str:
        """Appends the step's nodes; the name of its result."""


class Conv(Layer):
    """A k×k convolution by im2col, without bias (a BatchNorm follows), padded to keep the size at stride 1. weight: (kh, kw, in, out)."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        spread = np.sqrt(2.0 / (kernel * kernel * inputs))  # He et al., 2015
        self.weight = Parameter(rng.normal(0.0, spread, (kernel, kernel, inputs, outputs)))
        self.parameters = (self.weight,)
        self.kernel, self.stride, self.pad = kernel, stride, kernel // 2

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        k, s, p = self.kernel, self.stride, self.pad
        padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        windows = sliding_window_view(padded, (k, k), axis=(1, 2))[:, ::s, ::s]
        self.padded_shape, self.shape = padded.shape, windows.shape[:3]
        self.columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, k * k * x.shape[3])
        y = self.columns @ self.weight.value.reshape(self.columns.shape[1], -1)
        return y.reshape(*self.shape, -1)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        k, s, p = self.kernel, self.stride, self.pad
        rows = dy.reshape(-1, dy.shape[3])
        weight = self.weight.value
        self.weight.grad = (self.columns.T @ rows).reshape(weight.shape)
        columns = (rows @ weight.reshape(-1, dy.shape[3]).T).reshape(*self.shape, k, k, -1)
        dx: np.ndarray = np.zeros(self.padded_shape, np.float32)
        height, width = s * self.shape[1], s * self.shape[2]
        for i in range(k):
            for j in range(k):
                dx[:, i : i + height : s, j : j + width : s] += columns[:, :, :, i, j]
        return dx[:, p : dx.shape[1] - p, p : dx.shape[2] - p]

    def emit(self, graph: Graph, x: str) -> str:
        k, s, p = self.kernel, self.stride, self.pad
        weights = {"weight": self.weight.value.transpose(3, 2, 0, 1)}
        return graph.node("Conv", [x], weights, kernel_shape=[k, k], strides=[s, s], pads=[p] * 4)


class Depthwise(Layer):
    """A 3×3 convolution of every channel with its own kernel, stride 1, padded, without bias. weight: (3, 3, C)."""

    def __init__(self, rng: np.random.Generator, channels: int) -> None:
        self.weight = Parameter(rng.normal(0.0, np.sqrt(2.0 / 9), (3, 3, channels)))
        self.parameters = (self.weight,)

    def taps(self, shape: tuple[int, ...]) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
        for i in range(3):
            for j in range(3):
                yield i, j, (slice(None), slice(i, i + shape[1]), slice(j, j + shape[2]))

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = np.zeros_like(x)
        for i, j, window in self.taps(x.shape):
            y += self.padded[window] * self.weight.value[i, j]
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx = np.zeros_like(self.padded)
        for i, j, window in self.taps(dy.shape):
            self.weight.grad[i, j] = np.einsum("nhwc,nhwc->c", self.padded[window], dy)
            dx[window] += dy * self.weight.value[i, j]
        return dx[:, 1:-1, 1:-1]

    def emit(self, graph: Graph, x: str) -> str:
        weights = {"weight": self.weight.value.transpose(2, 0, 1)[:, None]}
        return graph.node("Conv", [x], weights, kernel_shape=[3, 3], pads=[1] * 4, group=self.weight.value.shape[2])


class BatchNorm(Layer):
    """Normalise every channel over the batch (Ioffe and Szegedy, 2015); with the running statistics when not training."""

    def __init__(self, channels: int) -> None:
        self.gamma, self.beta = Parameter(np.ones(channels, np.float32)), Parameter(np.zeros(channels, np.float32))
        self.parameters = (self.gamma, self.beta)
        self.mean, self.var = np.zeros(channels, np.float32), np.ones(channels, np.float32)

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        mean, var = self.mean, self.var
        if training:
            mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            self.mean = BN_MOMENTUM * self.mean + (1 - BN_MOMENTUM) * mean
            self.var = BN_MOMENTUM * self.var + (1 - BN_MOMENTUM) * var
        self.inverse: np.ndarray = 1 / np.sqrt(var + np.float32(BN_EPSILON))
        self.normal: np.ndarray = (x - mean) * self.inverse
        y: np.ndarray = self.normal * self.gamma.value + self.beta.value
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        count = np.float32(dy.size // dy.shape[3])
        self.beta.grad = dy.sum(axis=(0, 1, 2))
        self.gamma.grad = (dy * self.normal).sum(axis=(0, 1, 2))
        centred = dy - (self.beta.grad + self.normal * self.gamma.grad) / count
        dx: np.ndarray = centred * (self.gamma.value * self.inverse)
        return dx

    def emit(self, graph: Graph, x: str) -> str:
        weights = {"scale": self.gamma.value, "bias": self.beta.value, "mean": self.mean, "var": self.var}
        return graph.node("BatchNormalization", [x], weights, epsilon=BN_EPSILON, momentum=BN_MOMENTUM)


class Relu(Layer):
    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy * self.positive

    def emit(self, graph: Graph, x: str) -> str:
        return graph.node("Relu", [x])


class Chain(Layer):
    """Layers one after the other; `residual` adds the input to the result."""

    def __init__(self, *layers: Layer, residual: bool = False) -> None:
        self.layers, self.residual = layers, residual
        self.parameters = tuple(parameter for layer in layers for parameter in layer.parameters)

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        y = x
        for layer in self.layers:
            y = layer.forward(y, training)
        return y + x if self.residual else y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx = dy
        for layer in reversed(self.layers):
            dx = layer.backward(dx)
        return dx + dy if self.residual else dx

    def emit(self, graph: Graph, x: str) -> str:
        y = x
        for layer in self.layers:
            y = layer.emit(graph, y)
        return graph.node("Add", [y, x]) if self.residual else y


class Head(Layer):
    """Global average pooling and a linear layer: (N, H, W, C) → (N, classes). weight: (C, classes)."""

    def __init__(self, rng: np.random.Generator, inputs: int, classes: int) -> None:
        self.weight = Parameter(rng.normal(0.0, np.sqrt(1.0 / inputs), (inputs, classes)))
        self.bias = Parameter(np.zeros(classes, np.float32))
        self.parameters = (self.weight, self.bias)

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        self.shape = x.shape
        self.pooled = x.mean(axis=(1, 2))
        logits: np.ndarray = self.pooled @ self.weight.value + self.bias.value
        return logits

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.weight.grad, self.bias.grad = self.pooled.T @ dy, dy.sum(axis=0)
        dx = (dy @ self.weight.value.T) / np.float32(self.shape[1] * self.shape[2])
        return np.broadcast_to(dx[:, None, None], self.shape)

    def emit(self, graph: Graph, x: str) -> str:
        flat = graph.node("Flatten", [graph.node("GlobalAveragePool", [x])])
        return graph.node("Gemm", [flat], {"weight": self.weight.value.T, "bias": self.bias.value}, output="logits", transB=1)


def network(rng: np.random.Generator) -> Chain:
    def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> tuple[Layer, ...]:
        return Conv(rng, inputs, outputs, kernel, stride), BatchNorm(outputs), Relu()

    return Chain(
        *conv(1, 16),
        *conv(16, 32, stride=2),
        Chain(*conv(32, 32), Conv(rng, 32, 32), BatchNorm(32), residual=True),
        Relu(),
        Depthwise(rng, 32),
        BatchNorm(32),
        Relu(),
        *conv(32, 64, kernel=1),
        Head(rng, 64, 10),
    )


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the images moved by up to one pixel each way, what they leave filled with background."""
    moved = images.copy()
    for index in np.flatnonzero(rng.random(len(images)) < 0.5):
        dy, dx = rng.integers(0, 3, 2)
        moved[index] = np.pad(images[index], ((1, 1), (1, 1), (0, 0)))[dy : dy + 8, dx : dx + 8]
    return moved


def gradient(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The gradient of the mean cross-entropy of softmax(logits): (softmax - one hot) / N."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax: np.ndarray = exp / exp.sum(axis=1, keepdims=True)
    softmax[np.arange(len(labels)), labels] -= 1
    return softmax / np.float32(len(labels))


def train(net: Chain, images: np.ndarray, labels: np.ndarray, epochs: int, rng: np.random.Generator, report: Callable[[int], None]) -> None:
    """Adam with decoupled weight decay and a cosine learning rate, for `epochs` passes over the images."""
    steps = epochs * (len(images) // BATCH)
    count = 0
    for epoch in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            logits = net.forward(shifted(images[batch], rng), training=True)
            net.backward(gradient(logits, labels[batch]))
            rate = LEARNING_RATE * 0.5 * (1 + float(np.cos(np.pi * count / steps)))
            count += 1
            for parameter in net.parameters:
                parameter.step(rate, count)
        report(epoch)


def accuracy(net: Chain, images: np.ndarray, labels: np.ndarray) -> float:
    return float((net.forward(images, training=False).argmax(axis=1) == labels).mean())


def to_onnx(net: Chain) -> onnx.ModelProto:
    graph = Graph()
    net.emit(graph, "image")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    proto = helper.make_graph(graph.nodes, "digits", [image], [logits], graph.initializers)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="train_digits")
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits network and write it to qrt/assets.")
    parser.add_argument("--epochs", type=int, default=40)
    epochs = parser.parse_args().epochs

    digits = load_digits()
    codes = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.int64)
    images = (codes / LEVELS).astype(np.float32)[..., None]

    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(images)).astype(np.uint16)
    train_set, calibration, test = np.split(order, [TRAIN, TRAIN + CALIBRATION])
    net = network(rng)

    def report(epoch: int) -> None:
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}: held-out accuracy {accuracy(net, images[calibration], labels[calibration]):.4f}")

    train(net, images[train_set], labels[train_set], epochs, rng, report)
    parameters = sum(parameter.value.size for parameter in net.parameters)
    print(f"{parameters} parameters, test accuracy {accuracy(net, images[test], labels[test]):.4f} on {len(test)} images")

    ASSETS.mkdir(exist_ok=True)
    (ASSETS / "digits.onnx").write_bytes(to_onnx(net).SerializeToString())
    np.savez_compressed(
        ASSETS / "digits.npz", images=codes, labels=labels.astype(np.uint8), train=train_set, calibration=calibration, test=test
    )


if __name__ == "__main__":
    main()
