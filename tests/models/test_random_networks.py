"""Networks drawn at random, float and int8, beside ONNX Runtime: layers in orders that nobody thought of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import qrt

NETWORKS = 60
MAX_ELEMENTS = 20_000


class Network:
    """An image network that grows a layer at a time. `shapes`: of each value, in the order they were made."""

    def __init__(self, seed: int) -> None:
        self.random, self.normal = Random(seed), np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, list[int]] = {"x": [self.random.choice([1, 2]), self.random.choice([1, 2, 3, 8, 16, 17]), *self.extents()]}
        for _ in range(self.random.randint(2, 6)):
            self.grow(self.random.choice(LAYERS))
        self.head()

    def extents(self) -> list[int]:
        return [self.random.randint(4, 9) for _ in range(self.random.choice([1, 2, 2, 2, 3]))]

    def real(self, *shape: int) -> str:
        return self.constant((self.normal.standard_normal(shape) * 0.4).astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"v{len(self.nodes)}"], f"n{len(self.nodes)}", **attributes))
        return str(self.nodes[-1].output[0])

    def model(self, outputs: Sequence[str], batch: int | str) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *self.shapes["x"][1:]])
        graph = helper.make_graph(self.nodes, "random", [x], [helper.make_empty_tensor_value_info(o) for o in outputs], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)

    def grow(self, layer: Callable[[Network, str], str]) -> None:
        """Adds the layer to one of the last values, unless it does not fit there."""
        before, value = len(self.nodes), self.random.choice(list(self.shapes)[-2:])
        try:
            result = layer(self, value)
            (output,) = self.model([result], self.shapes["x"][0]).graph.output
        except (onnx.shape_inference.InferenceError, IndexError):
            del self.nodes[before:]
            return
        shape = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
        if min(shape) < 1 or np.prod(shape) > MAX_ELEMENTS:
            del self.nodes[before:]
        else:
            self.shapes[result] = shape

    def head(self) -> None:
        """A classifier behind the last layer."""
        last = list(self.shapes)[-1]
        pooled = self.node("Flatten", self.node("GlobalAveragePool", last))
        self.result = self.node("Gemm", pooled, self.real(self.shapes[last][1], 7), self.real(7))
        self.outputs = list(dict.fromkeys([self.result, self.random.choice([self.result, *list(self.shapes)[1:]])]))


def _conv(net: Network, x: str) -> str:
    channels, space, random = net.shapes[x][1], net.shapes[x][2:], net.random
    group = random.choice([1, 1, channels])
    kernel = [random.randint(1, min(3, n)) for n in space]
    attributes = {
        "group": group,
        "strides": [random.randint(1, 2) for _ in space],
        "dilations": [random.randint(1, 2) if 2 * k <= n else 1 for k, n in zip(kernel, space, strict=True)],
        "pads": [random.randint(0, k - 1) for k in kernel * 2],
    }
    filters = group * random.choice([1, 2] if group > 1 else [1, 4, 8, 16, 17, 33])
    bias = [net.real(filters)] if random.random() < 0.7 else []
    return net.node("Conv", x, net.real(filters, channels // group, *kernel), *bias, **attributes)


def _transposed(net: Network, x: str) -> str:
    kernel = [net.random.randint(1, 3) for _ in net.shapes[x][2:]]
    strides = [net.random.randint(1, 2) for _ in kernel]
    return net.node("ConvTranspose", x, net.real(net.shapes[x][1], net.random.choice([1, 5, 16]), *kernel), strides=strides)


def _pool(net: Network, x: str) -> str:
    kernel = [net.random.randint(1, 3) for _ in net.shapes[x][2:]]
    pads, strides = [k // 2 for k in kernel] * 2, [net.random.randint(1, 2) for _ in kernel]
    return net.node(net.random.choice(["MaxPool", "AveragePool"]), x, kernel_shape=kernel, strides=strides, pads=pads)


def _binary(net: Network, x: str) -> str:
    alike = [value for value, shape in net.shapes.items() if shape == net.shapes[x]]
    other = net.random.choice([*alike, net.real(net.shapes[x][1], *[1] * (len(net.shapes[x]) - 2))])
    return net.node(net.random.choice(["Add", "Add", "Mul"]), *net.random.sample([x, other], 2))


def _concat(net: Network, x: str) -> str:
    fitting = [value for value, shape in net.shapes.items() if shape[:1] + shape[2:] == net.shapes[x][:1] + net.shapes[x][2:]]
    return net.node("Concat", x, net.random.choice(fitting), axis=1)


def _resize(net: Network, x: str) -> str:
    scales = net.constant(np.float32([1, 1, *[2] * (len(net.shapes[x]) - 2)]))
    mode = net.random.choice(["asymmetric", "half_pixel"])
    return net.node("Resize", x, "", scales, mode="nearest", coordinate_transformation_mode=mode, nearest_mode="floor")


def _pad(net: Network, x: str) -> str:
    space = [1] * (len(net.shapes[x]) - 2)
    modes = ["constant", "edge", *(["reflect"] if min(net.shapes[x][2:]) > 1 else [])]
    return net.node("Pad", x, net.constant(np.array([0, 0, *space, 0, 0, *space])), mode=net.random.choice(modes))


def _slice(net: Network, x: str) -> str:
    axis = net.random.randrange(2, len(net.shapes[x]))
    return net.node("Slice", x, *(net.constant(np.array([n])) for n in (1, 100, axis)))


def _transpose(net: Network, x: str) -> str:
    space = range(2, len(net.shapes[x]))
    return net.node("Transpose", x, perm=[0, 1, *net.random.sample(space, len(space))])


def _norm(net: Network, x: str) -> str:
    channels = net.shapes[x][1]
    variance = net.constant(net.normal.uniform(0.5, 1.5, channels).astype(np.float32))
    return net.node("BatchNormalization", x, *(net.real(channels) for _ in range(3)), variance)


def _activation(net: Network, x: str) -> str:
    op_type = net.random.choice(["Relu", "Relu", "Sigmoid", "HardSwish", "LeakyRelu", "Clip", "SiLU"])
    if op_type == "Clip":
        return net.node("Clip", x, net.constant(np.float32(-1)), net.constant(np.float32(1)))
    return net.node("Mul", x, net.node("Sigmoid", x)) if op_type == "SiLU" else net.node(op_type, x)


LAYERS = [_conv] * 4 + [_activation] * 3 + [_binary] * 2 + [_transposed, _pool, _concat, _resize, _pad, _slice, _transpose, _norm]


def by_onnxruntime(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """As the model is written: what ONNX Runtime makes of it when it optimizes is, on graphs as odd as these, not always the same."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, {"x": x})]


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_float_and_int8(seed: int) -> None:
    """Float: to rounding. int8: the same codes, so floats that differ by their own rounding only."""
    net = Network(seed)
    model = net.model(net.outputs, "N")
    x = net.normal.standard_normal(net.shapes["x"]).astype(np.float32)
    for found, wanted in zip(qrt.InferenceSession(model).run(None, {"x": x}), by_onnxruntime(model, x), strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, 1e-3, 1e-4 * np.abs(wanted).max())
    int8 = qrt.quantize(qrt.load(model), [x, np.concatenate([x, -x])], progress=False)
    for found, wanted in zip(qrt.InferenceSession(int8).run(None, {"x": x}), by_onnxruntime(int8.to_proto(), x), strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, 1e-4, 1e-5 * np.abs(wanted).max())
