"""One node as a model of its own: what the Python fallback runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from qrt.graph.model import Model

if TYPE_CHECKING:
    import onnx

__all__ = ["single_node_model"]


def single_node_model(model: Model, node: ir.Node) -> tuple[list[ir.Value], list[ir.Value], onnx.ModelProto]:
    """The values that `node` reads in the run, those it gives, and a model of it alone.

    What the bodies of an If, Loop or Scan capture counts as read; constants become initializers of the model.
    """
    from onnx import GraphProto, ModelProto, helper

    read = list(dict.fromkeys([v for v in node.inputs if v is not None] + _captured(node)))
    outputs = [v for v in node.outputs if v.name]
    graph = GraphProto(name=node.name or node.op_type)
    graph.node.append(ir.serde.serialize_node(node))
    for value in read:
        if value.const_value is not None:
            tensor = ir.serde.serialize_tensor(value.const_value)
            tensor.name = value.name or ""
            graph.initializer.append(tensor)
        else:
            graph.input.append(ir.serde.serialize_value(value))
    for value in outputs:
        graph.output.add().name = value.name or ""
    opsets = [helper.make_opsetid(domain, version) for domain, version in model.ir.opset_imports.items()]
    proto = ModelProto(graph=graph, ir_version=model.ir.ir_version, opset_import=opsets)
    return [v for v in read if v.const_value is None], outputs, proto


def _captured(node: ir.Node) -> list[ir.Value]:
    """Values of outer graphs that the bodies of `node` read."""
    found: list[ir.Value] = []
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        graphs += list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            own = {*graph.inputs, *graph.initializers.values()} | {v for inner in graph for v in inner.outputs}
            used = [v for inner in graph for v in (*inner.inputs, *_captured(inner)) if v is not None]
            found += [v for v in (*used, *graph.outputs) if v not in own]
    return found
