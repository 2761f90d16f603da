"""Two DequantizeLinear → Add or Mul → (Relu, Clip) → QuantizeLinear becomes QAdd, QMul."""

from __future__ import annotations

import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.nodes import is_op
from qrt.graph.rules.quant import Output, Quant, activation, output
from qrt.graph.rules.rule import Rule, WhyNot, add_node, substitute

__all__ = ["QBINARY"]


@record(eq=False)
class _Binary:
    a: Quant
    b: Quant
    y: Output


def _match(node: ir.Node) -> _Binary | WhyNot | None:
    if not is_op(node, "Add", "Mul") or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    a, b = activation(node.inputs[0]), activation(node.inputs[1])
    if isinstance(a, WhyNot) or isinstance(b, WhyNot):
        return a if isinstance(a, WhyNot) else b if isinstance(b, WhyNot) else None
    y = output(node.outputs[0])
    return y if isinstance(y, WhyNot) else _Binary(a, b, y)


def _rewrite(node: ir.Node, found: _Binary) -> None:
    y = found.y
    inputs = [*found.a.inputs, *found.b.inputs, *y.inputs]
    attributes = {**y.bounds, **(y.signed if node.op_type == "Add" else {})}
    substitute(y.node, add_node(y.node, f"Q{node.op_type}", inputs, attributes, like=y.node.outputs, name=node.name).outputs)


QBINARY = Rule("int8 sum or product", frozenset({"Add", "Mul"}), _match, _rewrite)
