"""The model as onnx's own C++ tools take it: a ModelProto with the big weights left out, so that gigabytes need no copy."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from qrt.graph.model import Model

__all__ = ["skeleton"]

# Shapes, axes and paddings, which those tools read, are far smaller; weights worth leaving out are far bigger.
_KEEP_BYTES = 8192


def skeleton(model: Model) -> tuple[onnx.ModelProto, dict[str, ir.Value]]:
    """The model without the initializers of its top graph that pass 8 KiB, and those initializers by name.

    They are inputs of the skeleton, which is a valid model again.
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
        ir.serde.serialize_node_into(graph.node.add(), node)
        for value in node.outputs:
            if value.type is not None and value.name and not value.is_graph_output():
                ir.serde.serialize_value_into(graph.value_info.add(), value)
    for value in model.graph.outputs:
        ir.serde.serialize_value_into(graph.output.add(), value)
    return proto, held


def _typed(value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    value.type = value.type or ir.TensorType(tensor.dtype)
    value.shape = value.shape or ir.Shape(tensor.shape.numpy())
    return value
