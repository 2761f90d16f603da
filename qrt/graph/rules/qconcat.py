"""DequantizeLinear of every input → Concat → QuantizeLinear becomes QConcat."""

from __future__ import annotations

import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.nodes import is_op
from qrt.graph.rules.quant import Output, Quant, activation, output
from qrt.graph.rules.rule import Attributes, Rule, WhyNot, add_node, kept, substitute

__all__ = ["QCONCAT"]


@record(eq=False)
class _Concat:
    parts: list[Quant]
    y: Output


def _match(node: ir.Node) -> _Concat | WhyNot | None:
    if not is_op(node, "Concat") or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    parts = []
    for value in node.inputs:
        part = activation(value)
        if isinstance(part, WhyNot):
            return part
        parts.append(part)
    y = output(node.outputs[0])
    return y if isinstance(y, WhyNot) else _Concat(parts, y)


def _rewrite(node: ir.Node, found: _Concat) -> None:
    y = found.y
    inputs = [*y.inputs, *(v for part in found.parts for v in part.inputs)]
    attributes: Attributes = {**kept(node, "axis"), **y.bounds}
    substitute(y.node, add_node(y.node, "QConcat", inputs, attributes, like=y.node.outputs, name=node.name).outputs)


QCONCAT = Rule("int8 concatenation", frozenset({"Concat"}), _match, _rewrite)
