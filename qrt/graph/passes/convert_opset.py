"""Bring the standard domain to one opset, so that rules and the lowering know one spelling of each operator."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
from onnx import defs, version_converter

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs, attr_int, attr_str, constant, is_op
from qrt.graph.passes.spell_out import VENDOR_DOMAIN
from qrt.graph.proto import skeleton

__all__ = ["OPSET", "convert_opset"]

# The first opset whose QuantizeLinear knows 16-bit and 4-bit codes and blocks. Later ones only add operators, types and optional
# attributes to what 21 says, so a newer model stays as it is.
OPSET = 21
# The IR version that came with it.
_IR_VERSION = 10
# Operators that ONNX Runtime's tools wrote in their own domain until the standard had the types (16-bit codes).
_ADOPTED = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Operators of which opset 21 says what was said from this opset on: since then they got types, and attributes that change nothing where
# they are left out.
_SINCE: dict[str, int] = {
    **dict.fromkeys(("Identity", "Shape", "Transpose"), 1),
    **dict.fromkeys(("Abs", "Ceil", "Exp", "Floor", "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Tanh", "Tile"), 6),
    **dict.fromkeys(("Add", "Div", "Mul", "Pow", "Reshape", "Sub"), 7),
    **dict.fromkeys(("ConstantOfShape", "Expand", "MatMul", "PRelu", "Sum", "Where"), 9),
    **dict.fromkeys(("DequantizeLinear", "QLinearMatMul", "QuantizeLinear"), 10),
    **dict.fromkeys(("AveragePool", "Clip", "Concat", "DepthToSpace", "Equal", "Flatten", "Gather", "Gemm", "MaxPool", "Pad", "Slice"), 11),
    **dict.fromkeys(("Max", "Min"), 12),
    **dict.fromkeys(("Cast", "Squeeze", "Unsqueeze"), 13),
    "BatchNormalization": 14,
}


def convert_opset(model: Model) -> bool:
    """Requires: no functions. Ensures: the standard domain is at opset 21 or newer, subgraphs included.

    Raises ModelError where onnx's version converter cannot keep the meaning of a node.
    """
    version = model.ir.opset_imports.get("", OPSET)
    changed = version < OPSET
    if changed and all(node.domain != "" or _stands(node.op_type, version) for node in model.graph.all_nodes()):
        model.ir.opset_imports[""] = OPSET
    elif changed:
        _convert(model, version)
    if model.ir.ir_version < _IR_VERSION:
        model.ir.ir_version = _IR_VERSION
        changed = True
    return _adopt(model) or changed


@cache
def _stands(op_type: str, version: int) -> bool:
    """Whether nodes of this operator mean the same at `version` and at opset 21, as most do: the converter copies the graph twice."""
    if version >= _SINCE.get(op_type, OPSET):
        return True
    old, new = (defs.get_schema(op_type, opset, "") for opset in (version, OPSET))
    return bool(old.since_version == new.since_version and not new.deprecated)


def _convert(model: Model, version: int) -> None:
    old_resizes = _old_resizes(model) if version < 11 else {}
    if version < 13:
        _check_hardmax(model)
    if version < 10:
        _check_dropout(model)
    proto, held = skeleton(model)
    notes = {node.outputs[0].name: (node.meta, node.metadata_props) for node in model.graph.all_nodes() if node.outputs}
    try:
        converted = ir.from_proto(version_converter.convert_version(proto, OPSET))
    except Exception as error:
        raise ModelError(
            f"{model.name}: opset {version} cannot be brought to opset {OPSET}: {error}; export the model with opset 13 or newer"
        ) from error
    graph = converted.graph
    for value in list(graph.inputs):
        if value.name in held:
            graph.inputs.remove(value)
            value.const_value = held[value.name].const_value
            graph.register_initializer(value)
    for node in converted.graph.all_nodes():
        if (nearest_mode := old_resizes.get(node.outputs[0].name)) is not None:
            node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", nearest_mode)
        # onnx's converter keeps names, and no notes on nodes.
        meta, properties = notes.get(node.outputs[0].name, ({}, {}))
        node.meta.update(meta)
        node.metadata_props.update(properties)
    graph.name = model.graph.name
    graph.metadata_props.update(model.graph.metadata_props)
    converted.metadata_props.update(model.ir.metadata_props)
    model.ir = converted


def _old_resizes(model: Model) -> dict[str | None, str]:
    """Output name → `nearest_mode` of every Upsample and Resize from before opset 11.

    They took output i from input i / scale, rounded down where they enlarged and up where they shrank (as ONNX Runtime runs them).
    onnx's converter leaves them to the defaults of opset 11, which mean something else.
    """
    found: dict[str | None, str] = {}
    for node in model.graph.all_nodes():
        if is_op(node, "Upsample", "Resize"):
            attr = node.attributes.get("scales")
            given = constant(node.inputs[1]) if attr is None and len(node.inputs) > 1 else None if attr is None else attr.as_floats()
            scales = np.asarray(() if given is None else given)
            shrinks = bool((scales < 1).any())
            if shrinks and (scales > 1).any() and attr_str(node, "mode", "nearest") == "nearest":
                raise UnsupportedOp(
                    f"{model.name}: node {node.name!r} ({node.op_type}) enlarges one axis and shrinks another, which before opset 11 "
                    "rounds in two ways; export with opset 11 or newer"
                )
            found[node.outputs[0].name] = "ceil" if shrinks else "floor"
    return found


def _check_hardmax(model: Model) -> None:
    """Before opset 13 Hardmax took all axes from `axis` on as one, which the converter forgets; along the last axis that is the same."""
    for node in model.graph.all_nodes():
        if is_op(node, "Hardmax"):
            shape, axis = node.inputs[0].shape if node.inputs[0] is not None else None, attr_int(node, "axis", 1)
            if shape is None or axis not in (-1, len(shape) - 1):
                raise UnsupportedOp(
                    f"{model.name}: node {node.name!r} (Hardmax) works on several axes at once; export with opset 13 or newer"
                )
            node.attributes["axis"] = ir.AttrInt64("axis", -1)


def _check_dropout(model: Model) -> None:
    """Before opset 10 a Dropout's mask was of its input's type, and what it holds outside training nobody said."""
    for node in model.graph.all_nodes():
        if is_op(node, "Dropout") and any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            raise UnsupportedOp(f"{model.name}: the mask of node {node.name!r} (Dropout) is read; export with opset 12 or newer")


def _adopt(model: Model) -> bool:
    changed = False
    for graph in all_graphs(model.graph):
        for node in graph:
            if node.domain == VENDOR_DOMAIN and node.op_type in _ADOPTED:
                node.domain = ""
                changed = True
    return changed
