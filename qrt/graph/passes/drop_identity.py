"""Remove nodes that hand on their input: Identity, and Dropout outside training."""

from __future__ import annotations

import onnx_ir as ir

from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs, constant, is_op, replace

__all__ = ["drop_identity"]


def drop_identity(model: Model) -> bool:
    """Requires: opset 12 or newer. Ensures: what is left of these nodes only ties a graph's output to something it may not rename."""
    changed = False
    for graph in list(all_graphs(model.graph)):
        for node in list(graph):
            if _hands_on(node) and _bypass(node):
                changed = True
    return changed


def _hands_on(node: ir.Node) -> bool:
    if is_op(node, "Identity"):
        return True
    if not is_op(node, "Dropout") or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    training = constant(node.inputs[2])
    return training is not None and not training.any()


def _bypass(node: ir.Node) -> bool:
    source, output, graph = node.inputs[0], node.outputs[0], node.graph
    if source is None or graph is None:
        return False
    if output.is_graph_output() and (source.producer() is None or source.graph is not graph or source.is_graph_output()):
        return False
    if source.shape is None and source.producer() is not None:
        source.shape = output.shape
    replace(output, source)
    graph.remove(node, safe=True)
    return True
