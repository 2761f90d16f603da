"""Compute once what depends on constants alone."""

from __future__ import annotations

import math

import onnx_ir as ir

from qrt.graph.evaluate import evaluate
from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs, constant, has_subgraph, is_constant, is_op, new_initializer

__all__ = ["RANDOM", "fold_constants", "known_bytes", "room"]

# What draws numbers anew in each run.
RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"})
_NEVER = RANDOM | {"Constant"}
# A fold must not turn a small file into a big one.
_MAX_BYTES = 16 << 20
_MAX_GROWTH = 100
_ALWAYS_BYTES = 64 << 10


def fold_constants(model: Model) -> bool:
    """Requires: constants are initializers, shapes are inferred. Ensures: standard nodes that read only constants are gone.

    Kept: nodes that make a graph output, random ones, DequantizeLinear of weights, and results past 16 MiB or 100 times their inputs.
    """
    changed = False
    for graph in list(all_graphs(model.graph)):
        for node in list(graph):
            changed |= _fold(model, node)
    return changed


def _fold(model: Model, node: ir.Node) -> bool:
    if node.domain != "" or node.op_type in _NEVER or has_subgraph(node) or any(v.is_graph_output() or not v.name for v in node.outputs):
        return False
    if not all(v is None or is_constant(v) for v in node.inputs) or _says_quantized(node):
        return False
    # Before anything is computed: an Expand or a Range of a few bytes can ask for terabytes.
    if sum(known_bytes(v) for v in node.outputs) > min(_MAX_BYTES, room(node)):
        return False
    inputs = [constant(v) for v in node.inputs]
    outputs = evaluate(node, inputs, model.ir.opset_imports)
    # A reference that gives another shape than ONNX says (a Slice backwards from before the first element) does not get a say.
    if outputs is None or any(a.shape != v.shape.numpy() for a, v in zip(outputs, node.outputs, strict=True) if v.shape is not None):
        return False
    for value, array in zip(node.outputs, outputs, strict=True):
        if value.uses():
            # The reference may widen a dtype; the type that inference found is the one that readers expect.
            wanted = array.dtype if value.dtype is None else value.dtype.numpy()
            value.replace_all_uses_with(new_initializer(model.graph, f"{value.name}_folded", array.astype(wanted, copy=False)))
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return True


def room(node: ir.Node) -> int:
    """Bytes that constants made of those that `node` reads may take: 100 times as many, or 64 KiB."""
    given = sum(array.nbytes for value in node.inputs if (array := constant(value)) is not None)
    return max(_ALWAYS_BYTES, _MAX_GROWTH * given)


def _says_quantized(node: ir.Node) -> bool:
    """Whether a DequantizeLinear says that a weight is quantized. Of a BatchNormalization's statistics nobody needs to know."""
    uses = node.outputs[0].uses()
    statistics = bool(uses) and all(is_op(use.node, "BatchNormalization") and use.idx > 0 for use in uses)
    return node.op_type == "DequantizeLinear" and not statistics


def known_bytes(value: ir.Value) -> float:
    """The bytes that `value` takes; infinity where its shape is not known."""
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return math.inf
    return math.prod(value.shape.numpy()) * value.dtype.bitwidth / 8
