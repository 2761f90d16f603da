"""QOperator nodes become what they mean: DequantizeLinear, the float operator, QuantizeLinear. The rules for that form do the rest.

QLinearConv and QLinearMatMul of the standard, and ONNX Runtime's QGemm, QLinearAdd, QLinearMul, QLinearConcat, QLinearAveragePool,
QLinearGlobalAveragePool, QLinearSigmoid, QLinearLeakyRelu, QLinearSoftmax and DynamicQuantizeMatMul.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qrt.graph.nodes import attr_float, attr_int, constant, is_constant
from qrt.graph.passes.vendor import VENDOR_DOMAIN, VENDOR_OPS, expand_vendor_op
from qrt.graph.rules.rule import Rule, WhyNot, add_node, graph_of, kept, substitute

__all__ = ["QOPERATOR"]

_FLOAT = ir.DataType.FLOAT


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _dequantize(node: ir.Node, first: int, axis: int | None = None) -> ir.Value:
    """The real values of the codes at input `first`, with scale and zero point after it; `axis`: where scales for channels lie."""
    codes, scale, zero_point = (_input(node, first + i) for i in range(3))
    like = [codes] if codes is not None else list(node.outputs)
    attributes = {} if axis is None else {"axis": axis}
    inputs = [codes, scale, zero_point]
    name = f"{node.name}_dequantize{first}"
    return add_node(node, "DequantizeLinear", inputs, attributes, like=like, dtype=_FLOAT, domain="", name=name).outputs[0]


def _quantize(node: ir.Node, real: ir.Value, scale: int, axis: int | None = None) -> None:
    """The codes of `real`, by the scale at input `scale` and the zero point after it; `axis`: as above."""
    inputs, name = [real, _input(node, scale), _input(node, scale + 1)], f"{node.name}_quantize"
    attributes = {} if axis is None else {"axis": axis}
    substitute(node, add_node(node, "QuantizeLinear", inputs, attributes, like=node.outputs, domain="", name=name).outputs)


def _bias(node: ir.Node, index: int, x_scale: int, w_scale: int) -> ir.Value | None:
    """The int32 bias at `index`, in units of the product of two scales, as DequantizeLinear writes it."""
    codes = _input(node, index)
    if codes is None:
        return None
    x, w, known = constant(_input(node, x_scale)), constant(_input(node, w_scale)), constant(codes)
    if x is None or w is None or known is None:
        return None
    scale = (x.reshape(-1)[0] * w.reshape(-1)).astype(np.float32)
    scale = scale.reshape(()) if scale.size == 1 else scale
    inputs = [codes, scale, np.zeros(scale.shape, np.int32)]
    name = f"{node.name}_dequantize_bias"
    attributes = {} if scale.ndim == 0 else {"axis": 0}
    return add_node(node, "DequantizeLinear", inputs, attributes, like=[codes], dtype=_FLOAT, domain="", name=name).outputs[0]


def _real(node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, ir.Attr]) -> ir.Value:
    return add_node(node, op_type, inputs, attributes, like=node.outputs, dtype=_FLOAT, domain="", name=node.name).outputs[0]


def _conv(node: ir.Node) -> None:
    inputs = [_dequantize(node, 0), _dequantize(node, 3, axis=0), _bias(node, 8, 1, 4)]
    _quantize(node, _real(node, "Conv", inputs, kept(node)), 6)


def _matmul(node: ir.Node) -> None:
    """Rows of the first operand and of the result may have scales of their own, and columns of the second."""
    operands: list[ir.Value | None] = [_dequantize(node, 0, axis=-2), _dequantize(node, 3, axis=-1)]
    _quantize(node, _real(node, "MatMul", operands, {}), 6, axis=-2)


def _gemm(node: ir.Node) -> None:
    axis = 0 if attr_int(node, "transB", 0) else 1
    inputs = [_dequantize(node, 0), _dequantize(node, 3, axis=axis), _bias(node, 6, 1, 4)]
    real = _real(node, "Gemm", inputs, kept(node, "transA", "transB", "alpha"))
    if _input(node, 7) is not None:
        _quantize(node, real, 7)
    else:
        substitute(node, [real])


def _dynamic_matmul(node: ir.Node) -> None:
    """x → DynamicQuantizeLinear → QMatMulFloat is left to the rule for MatMulInteger: this writes what that one looks for."""
    x = node.inputs[0]
    if x is None:
        return
    scalar = ir.Value(shape=ir.Shape(()), type=ir.TensorType(_FLOAT))
    zero = ir.Value(shape=ir.Shape(()), type=ir.TensorType(ir.DataType.UINT8))
    codes = ir.Value(shape=x.shape, type=ir.TensorType(ir.DataType.UINT8))
    name = node.name or node.op_type
    quantize = ir.node("DynamicQuantizeLinear", [x], outputs=[codes, scalar, zero], name=f"{name}_quantize")
    graph_of(node).insert_before(node, quantize)
    integers: list[ir.Value | np.ndarray | None] = [codes, node.inputs[1], zero, _input(node, 3)]
    acc = add_node(node, "MatMulInteger", integers, like=node.outputs, dtype=ir.DataType.INT32, domain="", name=name).outputs
    real = add_node(node, "Cast", acc, {"to": int(_FLOAT)}, like=node.outputs, domain="", name=f"{name}_cast").outputs[0]
    weight_scale = node.inputs[2]
    like = [weight_scale] if weight_scale is not None else [scalar]
    scale = add_node(node, "Mul", [scalar, weight_scale], like=like, domain="", name=f"{name}_scale").outputs[0]
    result = add_node(node, "Mul", [real, scale], like=node.outputs, domain="", name=f"{name}_scaled").outputs[0]
    bias = _input(node, 4)
    if bias is not None:
        result = add_node(node, "Add", [result, bias], like=node.outputs, domain="", name=f"{name}_bias").outputs[0]
    substitute(node, [result])


def _by_table(node: ir.Node) -> None:
    """The nodes that the pass for shapes knows the operator by."""
    known = {v.name: v for v in node.inputs if v is not None}
    result = node.outputs[0]
    for proto in expand_vendor_op(node) or []:
        attributes = {a.name: ir.serde.deserialize_attribute(a) for a in proto.attribute}
        inputs = [known.get(name) for name in proto.input]
        like = [inputs[0]] if proto.op_type == "DequantizeLinear" and inputs[0] is not None else list(node.outputs)
        dtype = None if proto.op_type == "QuantizeLinear" else _FLOAT
        name = node.name if proto.op_type not in ("DequantizeLinear", "QuantizeLinear") else f"{node.name}_{len(known)}"
        result = add_node(node, proto.op_type, inputs, attributes, like=like, dtype=dtype, domain="", name=name).outputs[0]
        known[proto.output[0]] = result
    substitute(node, [result])


_STANDARD: dict[str, Callable[[ir.Node], None]] = {"QLinearConv": _conv, "QLinearMatMul": _matmul}
_VENDOR: dict[str, Callable[[ir.Node], None]] = {
    **dict.fromkeys(VENDOR_OPS, _by_table),
    "QGemm": _gemm,
    "DynamicQuantizeMatMul": _dynamic_matmul,
}
# Where the int32 bias of an operator is, which has to be constant with its scales.
_BIASES = {"QLinearConv": (8, 1, 4), "QGemm": (6, 1, 4)}


def _match(node: ir.Node) -> Callable[[ir.Node], None] | WhyNot | None:
    table = _STANDARD if node.domain == "" else _VENDOR if node.domain == VENDOR_DOMAIN else {}
    expand = table.get(node.op_type)
    if expand is None:
        return None
    if attr_int(node, "channels_last", 0):
        return WhyNot("its channels are last")
    if node.op_type == "QGemm" and attr_float(node, "alpha", 1.0) != 1.0:
        return WhyNot("alpha is not 1")
    bias = _BIASES.get(node.op_type, ())
    if bias and _input(node, bias[0]) is not None and not all(is_constant(_input(node, i)) for i in bias):
        return WhyNot("its bias or scales are computed at run time")
    x_scale = constant(_input(node, bias[1])) if bias else None
    if x_scale is not None and x_scale.size != 1:
        return WhyNot(f"its first input has {x_scale.size} scales")
    return expand


def _rewrite(node: ir.Node, expand: Callable[[ir.Node], None]) -> None:
    expand(node)


QOPERATOR = Rule("QOperator form to QDQ form", frozenset({*_STANDARD, *_VENDOR}), _match, _rewrite)
