"""Constant codes of two or four bits become codes of eight, which stand for the same real values and which kernels know."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.graph.nodes import constant, is_op
from qrt.graph.rules.rule import Rule, add_node, kept, substitute

__all__ = ["WIDEN"]

_WIDE: dict[ir.DataType | None, type[np.int8 | np.uint8]] = {
    ir.DataType.INT4: np.int8,
    ir.DataType.UINT4: np.uint8,
    ir.DataType.INT2: np.int8,
    ir.DataType.UINT2: np.uint8,
}

_Codes = tuple[np.ndarray, np.ndarray | None]


def _match(node: ir.Node) -> _Codes | None:
    """Codes and zero point, if there is one, as bytes."""
    codes, zero = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    held, held_zero = constant(codes), constant(zero)
    wide = _WIDE.get(codes.dtype) if codes is not None else None
    if not is_op(node, "DequantizeLinear") or held is None or wide is None or (zero is not None and held_zero is None):
        return None
    return held.astype(wide), None if held_zero is None else held_zero.astype(wide)


def _rewrite(node: ir.Node, found: _Codes) -> None:
    codes, zero = found
    substitute(node, add_node(node, "DequantizeLinear", [codes, node.inputs[1], zero], kept(node), like=node.outputs, domain="").outputs)


WIDEN = Rule("codes of eight bits", frozenset({"DequantizeLinear"}), _match, _rewrite)
