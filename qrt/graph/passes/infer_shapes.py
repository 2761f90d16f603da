"""Learn the dtype and shape of every value."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from qrt.core.errors import ModelError
from qrt.graph.model import Model
from qrt.graph.nodes import has_subgraph, is_op
from qrt.graph.passes._body_types import BODY_OPS, infer_bodies
from qrt.graph.passes._node_types import check_dims, infer_node
from qrt.graph.passes.spell_out import spell_out
from qrt.graph.passes.vendor import expand_vendor_op

__all__ = ["check_types", "infer_shapes", "infer_spelled"]

# Constants that tell about shapes (targets, axes, paddings) are smaller.
_MAX_DATA_BYTES = 8192
_UNTYPED = (None, ir.DataType.UNDEFINED)
# Most nodes of a quantized graph: what their constants hold says nothing about shapes.
_CONTENT_BLIND = ("QuantizeLinear", "DequantizeLinear")
# The codes that every version of them takes.
_CODES = (ir.DataType.UINT8, ir.DataType.INT8)
# Where a node holds all that its last inference read and found.
_INFERRED = "qrt.inferred"

# Types of values as onnx spells them.
_Protos = dict[ir.Value, onnx.TypeProto]


def infer_shapes(model: Model) -> bool:
    """Requires: no functions; nodes in order. Ensures: values carry the dtype and shape that can be inferred; known facts are kept.

    Where a file's own claim about an inner value or an output contradicts what is inferred, inference wins, as in ONNX Runtime.
    Raises ModelError for a node whose inputs do not fit it.
    """
    return _infer(model, spell=False)


def infer_spelled(model: Model) -> bool:
    """`infer_shapes`. Requires: opset 21. Ensures: what others say as well (`spell_out`) is said by them."""
    return _infer(model, spell=True)


def _infer(model: Model, spell: bool) -> bool:
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.shape is not None:
            check_dims((d for d in value.shape if isinstance(d, int)), f"{model.name}: {value.name!r}")
    return _infer_graph(model, model.graph, spell)


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


def _infer_graph(model: Model, graph: ir.Graph, spell: bool) -> bool:
    changed = False
    protos: _Protos = {}
    for node in graph:
        if is_op(node, *BODY_OPS):
            before = [_facts(v) for v in node.outputs]
            infer_bodies(node, lambda body: _infer_graph(model, body, spell))
            changed |= before != [_facts(v) for v in node.outputs]
            continue
        if spell and spell_out(model, node):  # which needs types, and its nodes come next
            changed = True
            continue
        last = node.meta.get(_INFERRED)
        if last is not None and last == _read(model, node):
            continue
        plain = _codes(model, node)
        if plain is not None:
            changed |= _settle(node.outputs[0], *plain, protos)
        else:
            found = _infer_node(model, node, protos)
            for value in node.outputs:
                if value.name and value.name in found:
                    changed |= _learn(value, found[value.name], protos)
        node.meta[_INFERRED] = _read(model, node)
    return changed


def _read(model: Model, node: ir.Node) -> tuple[object, ...]:
    """All that decides what inference does with the node. Tensors are told by identity: nobody changes one in place."""
    inputs = [value and (value.name, _facts(value), value.const_value) for value in node.inputs]
    outputs = [(value.name, _facts(value)) for value in node.outputs]
    return node.domain, node.op_type, dict(model.ir.opset_imports), inputs, [*node.attributes.values()], outputs


def _codes(model: Model, node: ir.Node) -> tuple[ir.TensorType, ir.Shape] | None:
    """What a QuantizeLinear or DequantizeLinear of the usual form makes: onnx's inference says the same, and takes ten times as long for
    what is most of a quantized graph. None for any other node, and where something may be wrong with it."""
    if not is_op(node, *_CONTENT_BLIND) or (len(node.inputs), len(node.outputs)) != (3, 1) or model.ir.opset_imports.get("", 0) < 10:
        return None
    x, scale, zero = node.inputs
    if x is None or scale is None or zero is None or x.shape is None or scale.shape is None or not node.attributes.keys() <= {"axis"}:
        return None
    if not node.outputs[0].name or scale.dtype != ir.DataType.FLOAT or scale.shape != zero.shape or scale.shape.rank() > 1:
        return None
    dtype, value = zero.dtype, node.outputs[0].name
    taken, made = (ir.DataType.FLOAT, dtype) if node.op_type == "QuantizeLinear" else (dtype, ir.DataType.FLOAT)
    biases = node.op_type == "DequantizeLinear" and dtype == ir.DataType.INT32
    if x.dtype != taken or made is None or not (dtype in _CODES or biases):
        return None
    check_dims((d for d in x.shape if isinstance(d, int)), f"{model.name}: node {node.name!r} ({node.op_type}) would make {value!r}, which")
    return ir.TensorType(made), x.shape


def _infer_node(model: Model, node: ir.Node, protos: _Protos) -> Mapping[str, onnx.TypeProto]:
    if has_subgraph(node):  # SequenceMap, whose body works on sequences
        return {}
    label = f"{model.name}: node {node.name!r} ({node.op_type})"
    opsets = model.ir.opset_imports
    steps = [ir.serde.serialize_node(node)] if node.domain == "" else expand_vendor_op(node)
    # DequantizeLinear, which vendor operators are spelled with, came with opset 10.
    if steps is None or (node.domain != "" and opsets.get("", 0) < 10):
        return {}
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or not value.name:
            continue
        if value.type is not None and value.dtype not in _UNTYPED:
            types[value.name] = _proto(value, protos)
        tensor = value.const_value if value.is_initializer() and node.op_type not in _CONTENT_BLIND else None
        if tensor is not None and tensor.nbytes <= _MAX_DATA_BYTES:
            data[value.name] = ir.serde.serialize_tensor(tensor)
    for step in steps:
        types.update(infer_node(step, types, data, opsets, label))
    return types


def _facts(value: ir.Value) -> tuple[object, object]:
    return value.type, None if value.shape is None else tuple(value.shape)


def _proto(value: ir.Value, protos: _Protos) -> onnx.TypeProto:
    found = protos.get(value)
    if found is None:
        found = protos[value] = ir.serde.serialize_value(value).type
    return found


def _learn(value: ir.Value, type_proto: onnx.TypeProto, protos: _Protos) -> bool:
    if value.type is not None and _proto(value, protos) == type_proto:
        return False
    type_ = ir.serde.deserialize_type_proto_for_type(type_proto)
    return _settle(value, type_, ir.serde.deserialize_type_proto_for_shape(type_proto), protos)


def _settle(value: ir.Value, type_: ir.TypeProtocol | None, shape: ir.Shape | None, protos: _Protos) -> bool:
    """Lets `value` have what was inferred, as far as it is known. Gives whether that is news."""
    if value.type == type_ and value.shape == shape:
        return False
    protos.pop(value, None)
    before = _facts(value)
    if type_ is not None and not (isinstance(type_, ir.TensorType) and type_.dtype == ir.DataType.UNDEFINED):
        if value.type is not None and value.dtype not in (*_UNTYPED, type_.dtype):
            raise ModelError(f"value {value.name!r} is declared {value.dtype} and made {type_.dtype}; export the model again")
        value.type = type_
    if shape is not None:
        value.shape = _merged(value.shape, shape)
    return before != _facts(value)


def _merged(old: ir.Shape | None, new: ir.Shape) -> ir.Shape:
    """The inferred dims; where one is neither a number nor a name, what was known before."""
    dims: list[int | str | None] = []
    for axis, dim in enumerate(new):
        known = old[axis] if old is not None and len(old) == len(new) else None
        best = known if isinstance(dim, ir.SymbolicDim) and dim.value is None else dim
        dims.append(best.value if isinstance(best, ir.SymbolicDim) else best)
    return ir.Shape(dims)
