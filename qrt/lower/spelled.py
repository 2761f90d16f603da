"""Nodes of the fused form that may turn out to have no kernel, as standard ONNX spells them: Python knows no other operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto

__all__ = ["SPELLED", "spell_out"]

# Operators of domain ai.qrt: x, x_scale, x_zp, y_scale, y_zp, and what else the operator on floats reads.
SPELLED = frozenset({"QAveragePool", "QGlobalAveragePool", "QReduceMean", "QResize", "QSoftmax"})
_BOUNDS = ("qmin", "qmax")


def spell_out(graph: GraphProto) -> None:
    """Writes the one node of `graph` as DequantizeLinear, the operator on floats, QuantizeLinear and Clip, if it is one of SPELLED."""
    from onnx import TensorProto, helper

    node = graph.node[0]
    if node.domain == "" or node.op_type not in SPELLED:
        return
    x, x_scale, x_zero, y_scale, y_zero, *others = node.input
    real, result, codes, *ends = (f"{node.output[0]}/{part}" for part in ("real", "result", "codes", *_BOUNDS))
    given = {attribute.name: attribute.i for attribute in node.attribute if attribute.name in _BOUNDS}
    for name, bound, default in zip(ends, _BOUNDS, (0, 255), strict=True):
        graph.initializer.append(helper.make_tensor(name, TensorProto.UINT8, (), [given.get(bound, default)]))
    floats = helper.make_node(node.op_type.removeprefix("Q"), [real, *others], [result])
    floats.attribute.extend(attribute for attribute in node.attribute if attribute.name not in _BOUNDS)
    nodes = [
        helper.make_node("DequantizeLinear", [x, x_scale, x_zero], [real]),
        floats,
        helper.make_node("QuantizeLinear", [result, y_scale, y_zero], [codes]),
        helper.make_node("Clip", [codes, *ends], list(node.output)),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
