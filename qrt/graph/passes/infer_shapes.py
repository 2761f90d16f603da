"""Learn the dtype and shape of every value."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import shape_inference

from qrt.core.errors import ModelError
from qrt.graph.model import Model
from qrt.graph.passes.vendor import expand_vendor_op
from qrt.graph.proto import skeleton

__all__ = ["check_types", "infer_shapes"]


def infer_shapes(model: Model) -> bool:
    """Requires: no functions. Ensures: values carry the dtype and shape that onnx can infer; known facts are kept.

    Where a file's own claim about an inner value or an output contradicts what is inferred, inference wins, as in ONNX Runtime.
    Raises ModelError for a node whose inputs do not fit it.
    """
    # DequantizeLinear, which vendor operators are spelled with, came with opset 10.
    expand = expand_vendor_op if model.ir.opset_imports.get("", 0) >= 10 else None
    proto, _ = skeleton(model, value_info=False, expand=expand)
    try:
        inferred = shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise ModelError(f"{model.name}: the graph is ill-typed: {error}; export it again or check it with onnx.checker") from error
    symbols = {d.value for v in model.graph.inputs if v.shape is not None for d in v.shape if isinstance(d, ir.SymbolicDim)}
    return _merge(model.graph, inferred.graph, symbols)


def check_types(model: Model) -> None:
    """Raises ModelError if a value of the top graph has no dtype or no rank, unless an operator outside the standard domain makes it."""
    for node in model.graph:
        if node.domain != "":
            continue
        for value in node.outputs:
            if not value.name or isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
                continue
            if value.type is None or value.shape is None:
                raise ModelError(
                    f"{model.name}: the {'type' if value.type is None else 'rank'} of value {value.name!r}, made by node {node.name!r} "
                    f"({node.op_type}), cannot be inferred; export the model with its shapes (onnx.shape_inference) or fixed input shapes"
                )


def _merge(graph: ir.Graph, proto: onnx.GraphProto, symbols: set[str | None]) -> bool:
    changed = False
    found = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    bodies = {node.output[0]: node for node in proto.node if node.output}
    for node in graph:
        for value in node.outputs:
            if value.name in found:
                changed |= _learn(value, found[value.name], symbols)
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.GRAPH:
                body = next((a for a in bodies[node.outputs[0].name or ""].attribute if a.name == attr.name), None)
                if body is not None:
                    changed |= _merge(attr.as_graph(), body.g, symbols)
    return changed


def _learn(value: ir.Value, type_proto: onnx.TypeProto, symbols: set[str | None]) -> bool:
    type_ = ir.serde.deserialize_type_proto_for_type(type_proto)
    shape = ir.serde.deserialize_type_proto_for_shape(type_proto)
    changed = False
    if type_ is not None and type_.dtype != ir.DataType.UNDEFINED and type_ != value.type:
        value.type = type_
        changed = True
    if shape is not None:
        merged = _merged(value.shape, shape, symbols)
        if value.shape is None or tuple(merged) != tuple(value.shape):
            value.shape = merged
            changed = True
    return changed


def _merged(old: ir.Shape | None, new: ir.Shape, symbols: set[str | None]) -> ir.Shape:
    """The inferred dims; where one is not a number, what was known before. Symbols that inference made up stand for nothing."""
    dims: list[int | str | None] = []
    for axis, dim in enumerate(new):
        known = old[axis] if old is not None and len(old) == len(new) else None
        if isinstance(dim, int):
            dims.append(dim)
        elif dim.value in symbols and dim.value is not None:
            dims.append(dim.value)
        else:
            dims.append(known.value if isinstance(known, ir.SymbolicDim) else known)
    return ir.Shape(dims)
