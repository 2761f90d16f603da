"""The model as onnx's own C++ tools take it: a ModelProto with the big weights left out, so that gigabytes need no copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import onnx
import onnx_ir as ir

from qrt.graph.model import Model

__all__ = ["opset_imports", "skeleton"]

# Shapes, axes and paddings, which shape inference reads, are far smaller; weights worth leaving out are far bigger.
_KEEP_BYTES = 8192


def opset_imports(model: Model) -> dict[str, int]:
    """Domain → opset version of a model."""
    return dict(model.ir.opset_imports)


def skeleton(
    model: Model,
    *,
    value_info: bool = True,
    expand: Callable[[ir.Node], Sequence[onnx.NodeProto] | None] | None = None,
) -> tuple[onnx.ModelProto, dict[str, ir.Value]]:
    """The model without the initializers of its top graph that pass 8 KiB, and those initializers by name.

    They are inputs of the skeleton, which is a valid model again. Without `value_info` nothing is said about what standard operators
    compute: inference then finds it anew. `expand` may give the nodes to write in the place of a node.
    """
    proto = onnx.ModelProto(ir_version=model.ir.ir_version)
    for domain, version in model.ir.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    for function in model.ir.functions.values():
        ir.serde.serialize_function_into(proto.functions.add(), function)
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    for value in model.graph.inputs:
        ir.serde.serialize_value_into(graph.input.add(), value)
    held: dict[str, ir.Value] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes > _KEEP_BYTES:
            held[name] = value
            ir.serde.serialize_value_into(graph.input.add(), _typed(value, tensor))
        else:
            tensor.name = name
            ir.serde.serialize_tensor_into(graph.initializer.add(), tensor)
    for node in model.graph:
        _write_node(graph, node, value_info, expand)
    for value in model.graph.outputs:
        ir.serde.serialize_value_into(graph.output.add(), value)
        if not value_info and graph.output[-1].type.HasField("tensor_type"):
            graph.output[-1].type.tensor_type.ClearField("shape")
    return proto, held


def _write_node(
    graph: onnx.GraphProto,
    node: ir.Node,
    value_info: bool,
    expand: Callable[[ir.Node], Sequence[onnx.NodeProto] | None] | None,
) -> None:
    replacement: Iterable[onnx.NodeProto] | None = expand(node) if expand is not None else None
    if replacement is not None:
        graph.node.extend(replacement)
        return
    ir.serde.serialize_node_into(graph.node.add(), node)
    if value_info or node.domain != "":
        for value in node.outputs:
            if value.type is not None and value.name and not value.is_graph_output():
                ir.serde.serialize_value_into(graph.value_info.add(), value)


def _typed(value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    if value.type is None:
        value.type = ir.TensorType(tensor.dtype)
    if value.shape is None:
        value.shape = ir.Shape(tensor.shape.numpy())
    return value
