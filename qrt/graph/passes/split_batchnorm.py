"""Spell an inference BatchNormalization that nothing could absorb as a Mul and an Add."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs, new_initializer, replace, unique_name
from qrt.graph.passes.fold_batchnorm import scale_and_shift

__all__ = ["split_batchnorm"]


def split_batchnorm(model: Model) -> bool:
    """Requires: fold_batchnorm has run; shapes are inferred. Ensures: only BatchNormalizations whose statistics are computed are left."""
    changed = False
    for graph in list(all_graphs(model.graph)):
        for node in list(graph):
            changed |= _split(model, graph, node)
    return changed


def _split(model: Model, graph: ir.Graph, node: ir.Node) -> bool:
    affine = scale_and_shift(node)
    if affine is None:
        return False
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or x.dtype is None or len(x.shape) < 2:
        return False
    column = (-1, *[1] * (len(x.shape) - 2))
    scale, shift = (
        new_initializer(model.graph, f"{node.name}_{part}", np.asarray(a, x.dtype.numpy()).reshape(column))
        for part, a in zip(("scale", "shift"), affine, strict=True)
    )
    mul = ir.node("Mul", [x, scale], name=f"{node.name}_mul")
    product = mul.outputs[0]
    product.name, product.type, product.shape = unique_name(model.graph, f"{node.name}_scaled"), x.type, x.shape
    add = ir.node("Add", [product, shift], name=f"{node.name}_add")
    total = add.outputs[0]
    total.name, total.type, total.shape = unique_name(model.graph, f"{node.name}_shifted"), y.type, y.shape
    graph.insert_after(node, [mul, add])
    replace(y, total)
    graph.remove(node, safe=True)
    return True
