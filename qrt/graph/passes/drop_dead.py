"""Remove what no output needs."""

from __future__ import annotations

import onnx_ir as ir
from onnx import defs

from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs

__all__ = ["drop_dead", "drop_unread"]

_Option = defs.OpSchema.FormalParameterOption
# Operators that do something else where they have fewer outputs.
_SPEAKING = ("BatchNormalization",)


def drop_dead(model: Model) -> bool:
    """Requires: no functions. Ensures: every node and initializer leads to a graph output; no node ends in omitted inputs, or in outputs
    that it may do without and nobody reads; only domains in use are imported."""
    graphs = list(all_graphs(model.graph))
    changed = False
    for graph in reversed(graphs):  # what is inside is a reader of what is outside
        changed |= drop_unread(graph)
    domains, opsets = {""}, model.ir.opset_imports
    for graph in graphs:
        for node in graph:
            domains.add(node.domain)
            _trim(node, opsets.get("", 0))
    for domain in opsets.keys() - domains:
        del opsets[domain]
    return changed


def drop_unread(graph: ir.Graph) -> bool:
    """Removes the nodes and initializers of `graph` that nobody reads."""
    changed = False
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
            changed = True
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[name]
            changed = True
    return changed


def _trim(node: ir.Node, opset: int) -> None:
    given = len(node.inputs)
    while given and node.inputs[given - 1] is None:
        given -= 1
    if given < len(node.inputs):
        node.resize_inputs(given)
    unread = [value for value in node.outputs if value.name and not (value.uses() or value.is_graph_output())]
    if not unread or node.domain != "" or node.op_type in _SPEAKING or not defs.has(node.op_type, opset, ""):
        return
    formals = defs.get_schema(node.op_type, opset, "").outputs
    for value, formal in zip(node.outputs, formals, strict=False):
        if value in unread and formal.option == _Option.Optional:
            value.name = ""
    made = len(node.outputs)
    while made and not node.outputs[made - 1].name:
        made -= 1
    node.resize_outputs(made)
