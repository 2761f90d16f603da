"""Bring the standard domain to one opset, so that rules and the lowering know one spelling of each operator."""

from __future__ import annotations

import onnx_ir as ir
from onnx import version_converter

from qrt.core.errors import ModelError
from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs
from qrt.graph.proto import skeleton

__all__ = ["OPSET", "convert_opset"]

# The first opset whose QuantizeLinear knows 16-bit and 4-bit codes and blocks. Later ones only add operators, types and optional
# attributes to what 21 says, so a newer model stays as it is.
OPSET = 21
# The IR version that came with it.
_IR_VERSION = 10
# Operators that ONNX Runtime's tools wrote in their own domain until the standard had the types (16-bit codes).
_ADOPTED = frozenset({"QuantizeLinear", "DequantizeLinear"})


def convert_opset(model: Model) -> bool:
    """Requires: no functions. Ensures: the standard domain is at opset 21 or newer, subgraphs included.

    Raises ModelError where onnx's version converter cannot keep the meaning of a node.
    """
    version = model.ir.opset_imports.get("", OPSET)
    changed = version < OPSET
    if changed:
        _convert(model, version)
    if model.ir.ir_version < _IR_VERSION:
        model.ir.ir_version = _IR_VERSION
        changed = True
    return _adopt(model) or changed


def _convert(model: Model, version: int) -> None:
    proto, held = skeleton(model)
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
    graph.name = model.graph.name
    graph.metadata_props.update(model.graph.metadata_props)
    converted.metadata_props.update(model.ir.metadata_props)
    model.ir = converted


def _adopt(model: Model) -> bool:
    changed = False
    for graph in all_graphs(model.graph):
        for node in graph:
            if node.domain == "com.microsoft" and node.op_type in _ADOPTED:
                node.domain = ""
                changed = True
    return changed
