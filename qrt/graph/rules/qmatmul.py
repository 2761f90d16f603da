"""DequantizeLinear → MatMul or Gemm → (Add of a bias) → (Relu, Clip) → QuantizeLinear becomes QMatMul; without the end, QMatMulFloat."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.nodes import attr_float, attr_int, is_op
from qrt.graph.rules.bias import float_bias, int32_bias
from qrt.graph.rules.quant import Output, Quant, Weight, activation, constant_of, output, weight
from qrt.graph.rules.rule import Rule, WhyNot, add_node, single_use, substitute

__all__ = ["QMATMUL", "QMATMUL_FLOAT", "added_bias"]


@record(eq=False)
class _Product:
    """`bias`: the value added, `end`: the node that makes the result in float."""

    a: Quant
    b: Quant | Weight
    trans_b: int
    bias: ir.Value | None
    end: ir.Node


@record(eq=False)
class _Quantized:
    product: _Product
    bias: np.ndarray | None
    y: Output | None


def _match(node: ir.Node) -> _Quantized | WhyNot | None:
    found = _operands(node)
    if not isinstance(found, _Product):
        return found
    y = output(found.end.outputs[0])
    if isinstance(y, WhyNot):
        return y
    bias = int32_bias(found.bias, found.a.qparams, found.b.qparams, _channels(node))
    return bias if isinstance(bias, WhyNot) else _Quantized(found, bias, y)


def _match_float(node: ir.Node) -> _Quantized | WhyNot | None:
    found = _operands(node)
    if not isinstance(found, _Product) or not isinstance(found.b, Weight):
        return None  # the rule before this one says why
    bias = float_bias(found.bias, _channels(node))
    return bias if isinstance(bias, WhyNot) else _Quantized(found, bias, None)


def _operands(node: ir.Node) -> _Product | WhyNot | None:
    if not is_op(node, "MatMul", "Gemm"):
        return None
    gemm = node.op_type == "Gemm"
    given = node.inputs[2] if gemm and len(node.inputs) > 2 else None
    if gemm and (attr_float(node, "alpha", 1.0) != 1.0 or (given is not None and attr_float(node, "beta", 1.0) != 1.0)):
        return WhyNot("alpha or beta is not 1")
    if gemm and attr_int(node, "transA", 0):
        return WhyNot("its first input is transposed")
    shapes = [v.shape for v in node.inputs[:2] if v is not None]
    if any(shape is None or len(shape) < 2 for shape in shapes):
        return WhyNot("it multiplies a vector, or an array of unknown rank")
    a = activation(node.inputs[0])
    if isinstance(a, WhyNot):
        return a
    trans_b = attr_int(node, "transB", 0) if gemm else 0
    w = weight(node.inputs[1], -2 if trans_b else -1)
    b = w if isinstance(w, Weight) and w.codes.ndim == 2 else activation(node.inputs[1])
    if isinstance(b, WhyNot):
        return w if isinstance(w, WhyNot) else b
    end, bias = (node, given) if given is not None else added_bias(node, _channels(node))
    return _Product(a, b, trans_b, bias, end)


def _channels(node: ir.Node) -> int:
    """Output channels; 0 where they are not known."""
    shape = node.outputs[0].shape
    last = shape[-1] if shape is not None and len(shape) else 0
    return last if isinstance(last, int) else 0


def added_bias(node: ir.Node, channels: int) -> tuple[ir.Node, ir.Value | None]:
    """The Add that gives each of the last axis' `channels` its constant, if one alone reads the result of `node`: that node, the bias."""
    add = single_use(node.outputs[0])
    if add is None or not is_op(add, "Add") or add.outputs[0].shape is None or not channels:
        return node, None
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    known = constant_of(other)
    if known is None or known.size not in (1, channels) or (known.ndim and known.shape[-1] != known.size):
        return node, None
    return (add, other) if known.ndim <= len(add.outputs[0].shape) else (node, None)


def _rewrite(node: ir.Node, found: _Quantized) -> None:
    product, y = found.product, found.y
    attributes = {"transB": 1} if product.trans_b else {}
    if y is None:
        end, inputs = product.end, [*product.a.inputs, *product.b.inputs, found.bias]
        substitute(end, add_node(end, "QMatMulFloat", inputs, attributes, like=end.outputs, name=node.name).outputs)
        return
    inputs = [*product.a.inputs, *product.b.inputs, *y.inputs, found.bias]
    fused = add_node(y.node, "QMatMul", inputs, {**attributes, **y.bounds}, like=y.node.outputs, name=node.name)
    substitute(y.node, fused.outputs)


QMATMUL = Rule("int8 matrix product", frozenset({"MatMul", "Gemm"}), _match, _rewrite)
QMATMUL_FLOAT = Rule("int8 matrix product with a float result", frozenset({"MatMul", "Gemm"}), _match_float, _rewrite)
