"""QConv whose codes only go into a QAdd becomes QConvAdd: the residual is added before the sum is stored.

The convolution's own codes are still rounded, in a register, so that the result is that of the two nodes, bit for bit.
"""

from __future__ import annotations

import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.rules.rule import Rule, WhyNot, add_node, is_fused, kept, single_use, substitute

__all__ = ["QCONV_ADD"]


@record(eq=False)
class _Residual:
    """`conv` computes operand `first` (0 or 3: its place among the inputs) of the sum."""

    conv: ir.Node
    first: int


def _match(node: ir.Node) -> _Residual | WhyNot | None:
    if not is_fused(node, "QAdd"):
        return None
    reason: WhyNot | None = None
    for first in (0, 3):
        value = node.inputs[first]
        conv = value.producer() if value is not None else None
        if value is None or conv is None or not is_fused(conv, "QConv"):
            continue
        reason = _check(node, value, conv)
        if reason is None:
            return _Residual(conv, first)
    return reason


def _check(node: ir.Node, value: ir.Value, conv: ir.Node) -> WhyNot | None:
    if single_use(value) is not node:
        return WhyNot(f"the codes of {conv.name!r} are read elsewhere too")
    if "qmin" in conv.attributes or "qmax" in conv.attributes:
        return WhyNot(f"{conv.name!r} bounds its codes before the sum")
    shapes = [v.shape for v in (node.inputs[0], node.inputs[3]) if v is not None]
    if len(shapes) != 2 or shapes[0] is None or shapes[0] != shapes[1]:
        return WhyNot("its operands may differ in shape")
    return None


def _rewrite(node: ir.Node, found: _Residual) -> None:
    conv, other = found.conv, 3 - found.first
    bias = conv.inputs[8] if len(conv.inputs) > 8 else None
    c_scale, c_zero_point = node.inputs[found.first + 1], node.inputs[found.first + 2]
    residual = node.inputs[other : other + 3]
    inputs = [*conv.inputs[:6], node.inputs[6], node.inputs[7], bias, c_scale, c_zero_point, *residual]
    attributes = {**kept(conv), **kept(node, "qmin", "qmax", "signed")}
    if found.first != 0:
        attributes["residual_first"] = ir.AttrInt64("residual_first", 1)
    substitute(node, add_node(node, "QConvAdd", inputs, attributes, like=node.outputs, name=conv.name).outputs)


QCONV_ADD = Rule("residual sum in the convolution", frozenset({"QAdd"}), _match, _rewrite)
