"""Turn Constant nodes and the initializers of subgraphs into initializers of the top graph."""

from __future__ import annotations

import onnx_ir as ir

from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs, is_op, unique_name

__all__ = ["lift_constants"]


def lift_constants(model: Model) -> bool:
    """Requires: no functions. Ensures: constants are initializers of the top graph, save where a graph returns one directly."""
    changed = False
    for graph in list(all_graphs(model.graph)):
        for node in list(graph):
            if is_op(node, "Constant") and not node.outputs[0].is_graph_output():
                changed |= _lift_node(model, node)
        if graph is not model.graph:
            for value in list(graph.initializers.values()):
                if not value.is_graph_output() and value.const_value is not None:
                    _move(model, value, value.const_value)
                    del graph.initializers[value.name or ""]
                    changed = True
    return changed


def _lift_node(model: Model, node: ir.Node) -> bool:
    if "sparse_value" in node.attributes:
        return False
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    if tensor is None:
        return False
    _move(model, node.outputs[0], tensor)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return True


def _move(model: Model, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    top = value.graph is model.graph
    name = value.name if top and value.name else unique_name(model.graph, f"{value.name or 'constant'}_lifted")
    new = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(new)
    value.replace_all_uses_with(new)
