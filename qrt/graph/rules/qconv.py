"""DequantizeLinear → Conv or ConvTranspose → (Relu, Clip) → QuantizeLinear becomes QConv, QConvTranspose; without the end, QConvFloat."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.nodes import attr_int, is_op
from qrt.graph.rules.bias import float_bias, int32_bias
from qrt.graph.rules.geometry import conv_attributes
from qrt.graph.rules.quant import Output, Quant, Weight, activation, output, weight
from qrt.graph.rules.rule import Attributes, Rule, WhyNot, add_node, substitute

__all__ = ["QCONV", "QCONV_FLOAT"]


@record(eq=False)
class _Conv:
    x: Quant
    w: Weight
    bias: np.ndarray | None
    attributes: Attributes
    y: Output | None


def _match(node: ir.Node) -> _Conv | WhyNot | None:
    found = _operands(node)
    if not isinstance(found, _Conv):
        return found
    y = output(node.outputs[0])
    if isinstance(y, WhyNot):
        return y
    bias = int32_bias(_bias_input(node), found.x.qparams, found.w.qparams, _channels(node, found.w))
    if isinstance(bias, WhyNot):
        return bias
    return _Conv(found.x, found.w, bias, {**found.attributes, **y.bounds}, y)


def _match_float(node: ir.Node) -> _Conv | WhyNot | None:
    if not is_op(node, "Conv"):
        return None
    found = _operands(node)
    if not isinstance(found, _Conv):
        return None  # the rule before this one says why
    bias = float_bias(_bias_input(node), _channels(node, found.w))
    return bias if isinstance(bias, WhyNot) else _Conv(found.x, found.w, bias, found.attributes, None)


def _operands(node: ir.Node) -> _Conv | WhyNot | None:
    if not is_op(node, "Conv", "ConvTranspose"):
        return None
    x = activation(node.inputs[0])
    if isinstance(x, WhyNot):
        return x
    transposed = node.op_type == "ConvTranspose"
    w = weight(node.inputs[1], 1 if transposed else 0)
    if isinstance(w, WhyNot):
        return w
    if transposed and w.qparams.axis is not None and attr_int(node, "group", 1) != 1:
        return WhyNot("a grouped ConvTranspose has several channels to a scale")
    attributes = conv_attributes(node, w.codes.shape)
    return attributes if isinstance(attributes, WhyNot) else _Conv(x, w, None, attributes, None)


def _bias_input(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _channels(node: ir.Node, w: Weight) -> int:
    return int(w.codes.shape[0] if node.op_type == "Conv" else w.codes.shape[1] * attr_int(node, "group", 1))


def _rewrite(node: ir.Node, found: _Conv) -> None:
    y = found.y
    if y is None:
        inputs = [*found.x.inputs, *found.w.inputs, found.bias]
        substitute(node, add_node(node, "QConvFloat", inputs, found.attributes, like=node.outputs).outputs)
        return
    inputs = [*found.x.inputs, *found.w.inputs, *y.inputs, found.bias]
    fused = add_node(y.node, f"Q{node.op_type}", inputs, found.attributes, like=y.node.outputs, name=node.name)
    substitute(y.node, fused.outputs)


QCONV = Rule("int8 convolution", frozenset({"Conv", "ConvTranspose"}), _match, _rewrite)
QCONV_FLOAT = Rule("int8 convolution with a float result", frozenset({"Conv"}), _match_float, _rewrite)
