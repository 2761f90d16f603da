"""The model as onnx's own C++ tools take it: a ModelProto with the big weights left out, so that gigabytes need no copy."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from qrt.graph.model import Model

__all__ = ["outline", "skeleton"]

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


def outline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What `skeleton` makes of a Model, of the message that one is made of: in a fraction of the time, nodes as they stand there.

    Initializers of the top graph that pass 8 KiB, or have no data, are inputs; none is both, as in files of IR version 3.
    """
    made = onnx.ModelProto(ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import, functions=proto.functions)
    graph, source = made.graph, proto.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.output.extend(source.output)
    names = {tensor.name for tensor in source.initializer}
    graph.input.extend(value for value in source.input if value.name not in names)
    graph.value_info.extend(value for value in source.value_info if value.name not in names)
    for tensor in source.initializer:
        if tensor.HasField("raw_data") and len(tensor.raw_data) <= _KEEP_BYTES:
            graph.initializer.append(tensor)
        else:
            info = graph.input.add(name=tensor.name)
            info.type.tensor_type.elem_type = tensor.data_type
            for dim in tensor.dims:
                info.type.tensor_type.shape.dim.add(dim_value=dim)
    return made


def _typed(value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    value.type = value.type or ir.TensorType(tensor.dtype)
    value.shape = value.shape or ir.Shape(tensor.shape.numpy())
    return value
