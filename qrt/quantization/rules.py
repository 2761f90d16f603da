"""The rules of all operators, as the families of ops/ declare them, and which nodes they hold for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qrt.graph import attr_float, attr_int, attr_str, constant, ir, is_op
from qrt.graph.rules.bias import bias_qparams
from qrt.ops.conv.rule import RULES as CONV
from qrt.ops.elementwise.rule import RULES as ELEMENTWISE
from qrt.ops.gemm.rule import RULES as GEMM
from qrt.ops.movement.rule import RULES as MOVEMENT
from qrt.ops.normalization.rule import RULES as NORMALIZATION
from qrt.ops.pool.rule import RULES as POOL
from qrt.ops.reduction.rule import RULES as REDUCTION
from qrt.ops.resize.rule import RULES as RESIZE
from qrt.ops.rule import Kind, QuantRule

__all__ = ["RULES", "is_embedding", "product_of_scales", "rule_of", "weight_axis"]

# ONNX operator → its rule.
RULES: Mapping[str, QuantRule] = CONV | GEMM | ELEMENTWISE | POOL | REDUCTION | RESIZE | NORMALIZATION | MOVEMENT

_FLOAT = ir.DataType.FLOAT


def rule_of(node: ir.Node) -> QuantRule | None:
    """The rule of a node of the standard operators, if there is one and it holds for this node's form."""
    rule = RULES.get(node.op_type) if node.domain == "" else None
    if rule is None or _why_not(node, rule) is not None:
        return None
    if rule.kind is Kind.PRODUCT and constant(node.inputs[1]) is None:
        return QuantRule(Kind.PRODUCT, (0, 1)) if is_op(node, "MatMul") else None
    return rule


def _why_not(node: ir.Node, rule: QuantRule) -> str | None:
    """Why a node with a rule has no quantized form; None where it has one: all it computes with is float32, its attributes are usual."""
    data = node.inputs[:1] if rule.inputs else node.inputs
    if node.outputs[0].dtype != _FLOAT or any(v is not None and v.dtype != _FLOAT for v in data):
        return "it does not compute in float32"
    if is_op(node, "Conv", "ConvTranspose", "Gemm") and not _bias_fits(node):
        return "its bias is not one constant for each output channel"
    if is_op(node, "Gemm") and (attr_int(node, "transA", 0) or attr_float(node, "alpha", 1.0) != 1.0):
        return "its transA or alpha is set"
    if is_op(node, "MatMul") and any(v is None or v.shape is None or len(v.shape) < 2 for v in node.inputs):
        return "an operand is a vector"
    if is_op(node, "Resize") and attr_str(node, "mode", "nearest") not in ("nearest", "linear"):
        return "its mode is neither nearest nor linear"
    if is_op(node, "ReduceMean") and len(node.inputs) > 1 and node.inputs[1] is not None and constant(node.inputs[1]) is None:
        return "its axes are computed"
    if is_op(node, "Pad"):
        held = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
        if attr_str(node, "mode", "constant") == "constant" and (held is None or held.any()):
            return "it pads with other values than 0"
    if is_op(node, "MaxPool") and len(node.outputs) > 1:
        return "its indices are asked for"
    return None


def weight_axis(node: ir.Node) -> int | None:
    """The output channels' axis of a product's weight; None where a scale per channel cannot be written."""
    weight = node.inputs[1]
    rank = len(weight.shape) if weight is not None and weight.shape is not None else 2
    if is_op(node, "Conv", "ConvInteger"):
        return 0
    if is_op(node, "ConvTranspose"):
        return 1 if attr_int(node, "group", 1) == 1 else None
    if is_op(node, "Gemm"):
        return 0 if attr_int(node, "transB", 0) else 1
    return rank - 1 if rank == 2 else None


def is_embedding(node: ir.Node) -> bool:
    """Whether a node looks rows up in a constant float32 table."""
    table = constant(node.inputs[0]) if is_op(node, "Gather") else None
    return table is not None and table.dtype == np.float32 and table.ndim == 2 and attr_int(node, "axis", 0) == 0


def product_of_scales(observers: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The qparams of the bias of a product, whose input and weight have these observers: s_x · s_w, and zero point 0."""
    x, w = (observer.calculate_qparams() for observer in observers)
    scale, zero_point = bias_qparams(x, w)
    return scale, zero_point


def _bias_fits(node: ir.Node) -> bool:
    """Whether the bias is absent, or one constant for each output channel."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    held = constant(bias)
    if bias is None or held is None:
        return bias is None
    beta = attr_float(node, "beta", 1.0) if is_op(node, "Gemm") else 1.0
    return beta == 1.0 and (held.size == 1 or held.shape[-1] == held.size)
