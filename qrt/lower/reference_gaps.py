"""What onnx.reference leaves out or computes otherwise than ONNX says, without a word: nodes that it must not be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = ["gap"]

_Attributes = dict[str, Any]
# The activations that onnx.reference takes for granted.
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


def gap(graph: GraphProto) -> str:
    """What a node of `graph`, or of a body in it, has that onnx.reference would get wrong; "" if there is nothing."""
    from onnx.helper import get_attribute_value

    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1 and tensor.dims[0] > 1}
    for node in graph.node:
        check = _CHECKS.get(node.op_type)
        found = check(node, {a.name: get_attribute_value(a) for a in node.attribute}) if check is not None else ""
        if node.op_type == "MatMulInteger" and len(node.input) > 2 and node.input[2] in vectors:
            found = "a zero point for each row (it takes them for columns)"
        for attribute in node.attribute:
            found = found or gap(attribute.g)
        if found:
            return found
    return ""


def _recurrent(node: NodeProto, attributes: _Attributes) -> str:
    if len(node.input) > 4 and node.input[4]:
        return "lengths of sequences"
    for name in ("clip", "input_forget", "activation_alpha", "activation_beta"):
        if name in attributes:
            return name
    activations, usual = [name.decode().lower() for name in attributes.get("activations", [])], _ACTIVATIONS[node.op_type]
    return f"activations {', '.join(activations)}" if activations not in ([], usual, usual * 2) else ""


def _max_pool(node: NodeProto, attributes: _Attributes) -> str:
    """Windows that move by single steps take another way than others, which is wrong in more places."""
    single = {1} == {1, *attributes.get("strides", ()), *attributes.get("dilations", ())}
    pads = attributes.get("pads", [])
    half = len(pads) // 2
    if attributes.get("auto_pad") == b"SAME_LOWER":
        return "auto_pad SAME_LOWER"
    if single and len(node.output) > 1 and node.output[1]:
        return "indices in steps of 1"
    if single and (pads[:half] != pads[half:] or (any(pads) and attributes.get("ceil_mode", 0))):
        return f"pads {pads} in steps of 1"
    return ""


def _lrn(node: NodeProto, attributes: _Attributes) -> str:
    return "more channels than images"


def _lp_norm(node: NodeProto, attributes: _Attributes) -> str:
    return "p = 1 (it sums signed numbers)" if attributes.get("p", 2) == 1 else ""


_CHECKS: dict[str, Callable[[NodeProto, _Attributes], str]] = {
    **dict.fromkeys(_ACTIVATIONS, _recurrent),
    "LRN": _lrn,
    "LpNormalization": _lp_norm,
    "MaxPool": _max_pool,
}
