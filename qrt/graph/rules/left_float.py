"""No fusion: it only says why an element-wise node, which a table could replace, still computes in float."""

from __future__ import annotations

import onnx_ir as ir

from qrt.graph.nodes import is_op
from qrt.graph.rules.lut import UNARY
from qrt.graph.rules.quant import activation, output
from qrt.graph.rules.rule import Rule, WhyNot

__all__ = ["LEFT_FLOAT"]


def _match(node: ir.Node) -> WhyNot | None:
    if not is_op(node, *UNARY) or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    x = activation(node.inputs[0])
    if isinstance(x, WhyNot):
        return x
    y = output(node.outputs[0])
    return y if isinstance(y, WhyNot) else None


def _rewrite(node: ir.Node, found: object) -> None:
    """Never called: nothing is ever found."""


LEFT_FLOAT = Rule("table of codes", UNARY, _match, _rewrite)
