"""int8 activations become uint8: codes and zero point move up by 128, which changes no real value and flips the codes' top bit.

FlipSign nodes stand where both kinds meet. They are made at every int8 Q/DQ, pushed down through nodes that only move codes, and cancel in
pairs, so that those that are left stand at graph inputs and outputs and around nodes that must see int8.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.core.dtypes import qint8
from qrt.graph.nodes import constant, is_constant, is_op
from qrt.graph.rules.movement import MOVERS, is_mover, move
from qrt.graph.rules.quant import SIGNED, flip, qparams_of
from qrt.graph.rules.rule import Rule, WhyNot, add_node, is_fused, kept, substitute

__all__ = ["CANCEL", "FLIP_DEQUANTIZE", "FLIP_DOWN", "FLIP_QUANTIZE"]

_UINT8, _INT8 = ir.DataType.UINT8, ir.DataType.INT8


def _rebased(node: ir.Node) -> np.ndarray | None:
    """The uint8 zero point(s) of an int8 QuantizeLinear or DequantizeLinear."""
    qparams = qparams_of(node)
    if isinstance(qparams, WhyNot) or qparams.dtype != qint8 or qparams.axis is not None:
        return None
    return (qparams.zero_point + 128).astype(np.uint8)


def _match_quantize(node: ir.Node) -> np.ndarray | None:
    return _rebased(node) if is_op(node, "QuantizeLinear") and not is_constant(node.inputs[0]) else None


def _flip_quantize(node: ir.Node, zero_point: np.ndarray) -> None:
    codes = add_node(
        node, "QuantizeLinear", [node.inputs[0], node.inputs[1], zero_point], kept(node, "axis"), like=node.outputs, dtype=_UINT8, domain=""
    )
    codes.meta[SIGNED] = True
    codes.outputs[0].name = f"{node.outputs[0].name}_uint8"
    substitute(node, add_node(node, "FlipSign", codes.outputs, like=node.outputs).outputs)


def _match_dequantize(node: ir.Node) -> np.ndarray | None:
    return _rebased(node) if is_op(node, "DequantizeLinear") and constant(node.inputs[0]) is None else None


def _flip_dequantize(node: ir.Node, zero_point: np.ndarray) -> None:
    codes = node.inputs[0]
    if codes is None:
        return
    flipped = add_node(node, "FlipSign", [codes], like=[codes], dtype=_UINT8, name=f"{node.name}_flip")
    inputs = [flipped.outputs[0], node.inputs[1], zero_point]
    substitute(node, add_node(node, "DequantizeLinear", inputs, kept(node, "axis"), like=node.outputs, domain="").outputs)


def _match_down(node: ir.Node) -> ir.Node | None:
    """A node that moves codes fresh from a FlipSign: it can move them before the flip."""
    flip = node.inputs[0].producer() if is_mover(node) and node.inputs[0] is not None else None
    if flip is None or not is_fused(flip, "FlipSign"):
        return None
    return flip if not is_op(node, "Pad") or _pad_code(node) is not None else None


def _pad_code(node: ir.Node) -> np.ndarray | None:
    """What a Pad of codes fills in: codes 0 by default, whatever they stand for."""
    given, dtype = node.inputs[2] if len(node.inputs) > 2 else None, node.outputs[0].dtype
    return constant(given) if given is not None or dtype is None else np.zeros((), dtype.numpy())


def _push_down(node: ir.Node, flipped: ir.Node) -> None:
    source = flipped.inputs[0]
    if source is None or source.dtype is None:
        return
    code = _pad_code(node) if is_op(node, "Pad") else None
    fill = None if code is None else flip(code)
    moved = move(node, source, source.dtype, fill)
    flips = [add_node(node, "FlipSign", [v], like=[like], name=f"{node.name}_flip") for v, like in zip(moved, node.outputs, strict=True)]
    substitute(node, [f.outputs[0] for f in flips])


def _match_cancel(node: ir.Node) -> ir.Value | None:
    first = node.inputs[0].producer() if is_fused(node, "FlipSign") and node.inputs[0] is not None else None
    if first is None or not is_fused(first, "FlipSign") or node.outputs[0].is_graph_output():
        return None
    return first.inputs[0]


def _cancel(node: ir.Node, source: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(source)


FLIP_QUANTIZE = Rule("unsigned codes", frozenset({"QuantizeLinear"}), _match_quantize, _flip_quantize)
FLIP_DEQUANTIZE = Rule("unsigned codes", frozenset({"DequantizeLinear"}), _match_dequantize, _flip_dequantize)
FLIP_DOWN = Rule("unsigned codes, moved", MOVERS, _match_down, _push_down)
CANCEL = Rule("unsigned codes, twice flipped", frozenset({"FlipSign"}), _match_cancel, _cancel)
