"""Float operators that exporters spell out, in one node again: one pass over memory instead of five to nine.

x · (1 + erf(x / √2)) / 2 becomes Gelu; (x − mean) / √(variance + ε) · scale + bias, along the last axis, becomes LayerNormalization; the
Softmax of a product's scores, scaled by a number or masked, becomes FusedSoftmax; the LayerNormalization of a sum becomes FusedLayerNorm.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.nodes import attr_int, attr_ints, constant, is_op, producer
from qrt.graph.rules.rule import Attributes, Rule, add_node, kept, single_use, substitute

__all__ = ["GELU", "LAYER_NORM", "RESIDUAL_NORM", "SCALED_SOFTMAX"]

_FLOAT = ir.DataType.FLOAT
# How far a constant of float32 may be from what it stands for.
_TOLERANCE = 1e-6


def _number(value: ir.Value | None) -> float | None:
    """The one number that `value` always is."""
    held = constant(value)
    return float(held.reshape(())) if held is not None and held.size == 1 else None


def _is_number(value: ir.Value | None, wanted: float) -> bool:
    number = _number(value)
    if number is None:
        return False
    # In models of 16 bits numbers were rounded to what those hold.
    rounded = (float(np.float16(wanted)), float(ml_dtypes.bfloat16(wanted)))
    return math.isclose(number, wanted, rel_tol=_TOLERANCE) or number in rounded


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other of the two inputs of `node`."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _keeps_rank(x: ir.Value, end: ir.Node) -> bool:
    """Whether what `end` makes has as many axes as `x`: numbers of shape (1, 1, 1) may have added some."""
    shape = end.outputs[0].shape
    return shape is not None and x.shape is not None and len(shape) == len(x.shape)


def _factor(node: ir.Node | None, number: float) -> ir.Value | None:
    """What `node` multiplies by `number`."""
    if not is_op(node, "Mul") or node is None:
        return None
    return next((x for x, other in (node.inputs, reversed(tuple(node.inputs))) if _is_number(other, number)), None)


# -- Gelu -------------------------------------------------------------------------------------------------------------------
@record(eq=False)
class _Gelu:
    """Gelu of `x`, up to `end`."""

    x: ir.Value
    end: ir.Node


def _match_gelu(node: ir.Node) -> _Gelu | None:
    if not is_op(node, "Erf") or node.outputs[0].dtype != _FLOAT:
        return None
    scaled = producer(node.inputs[0])
    if is_op(scaled, "Div") and scaled is not None and _is_number(scaled.inputs[1], math.sqrt(2)):
        x = scaled.inputs[0]
    else:
        x = _factor(scaled, math.sqrt(0.5))
    plus = single_use(node.outputs[0])
    if x is None or plus is None or not is_op(plus, "Add") or not _is_number(_other(plus, node.outputs[0]), 1.0):
        return None
    product = single_use(plus.outputs[0])
    if product is None or not is_op(product, "Mul"):
        return None
    left = _other(product, plus.outputs[0])
    if left is x:
        half = single_use(product.outputs[0])
        return _Gelu(x, half) if half is not None and _factor(half, 0.5) is product.outputs[0] and _keeps_rank(x, half) else None
    return _Gelu(x, product) if left is not None and _factor(producer(left), 0.5) is x and _keeps_rank(x, product) else None


def _rewrite_gelu(node: ir.Node, found: _Gelu) -> None:
    substitute(found.end, add_node(found.end, "Gelu", [found.x], like=found.end.outputs, domain="").outputs)


# -- LayerNormalization ---------------------------------------------------------------------------------------------------------
@record(eq=False)
class _LayerNorm:
    """The norm of `x`, up to `end`."""

    x: ir.Value
    epsilon: float
    scale: ir.Value
    bias: ir.Value | None
    end: ir.Node


def _match_layer_norm(node: ir.Node) -> _LayerNorm | None:
    if not is_op(node, "Sqrt") or node.outputs[0].dtype != _FLOAT:
        return None
    plus = producer(node.inputs[0])
    if plus is None or not is_op(plus, "Add"):
        return None
    variance, epsilon = next(((v, e) for v, o in (plus.inputs, reversed(tuple(plus.inputs))) if (e := _number(o)) is not None), (None, 0.0))
    squares = _mean_of(variance)
    centred = _squared(producer(squares))
    minus = producer(centred)
    if centred is None or minus is None or not is_op(minus, "Sub") or epsilon < 0:
        return None
    x, quotient = minus.inputs[0], single_use(node.outputs[0])
    if x is None or _mean_of(minus.inputs[1]) is not x or quotient is None or not is_op(quotient, "Div"):
        return None
    if quotient.inputs[0] is not centred or x.shape is None or not isinstance(x.shape[-1], int):
        return None
    scaled, scale = _applied(quotient.outputs[0], "Mul", x.shape[-1])
    if scaled is None or scale is None:
        return None
    end, bias = _applied(scaled.outputs[0], "Add", x.shape[-1])
    end = end or scaled
    return _LayerNorm(x, epsilon, scale, bias, end) if _keeps_rank(x, end) else None


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """What `value` is the mean of, along the last axis, which it keeps."""
    node = producer(value)
    if node is None or not is_op(node, "ReduceMean") or attr_int(node, "keepdims", 1) != 1:
        return None
    x = node.inputs[0]
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = tuple(int(axis) for axis in given.reshape(-1)) if given is not None else attr_ints(node, "axes")
    return x if x is not None and x.shape is not None and axes in ((-1,), (len(x.shape) - 1,)) else None


def _squared(node: ir.Node | None) -> ir.Value | None:
    """What `node` squares."""
    if node is None or not is_op(node, "Pow", "Mul"):
        return None
    x, other = node.inputs
    square = _is_number(other, 2.0) if node.op_type == "Pow" else other is x
    return x if square else None


def _applied(value: ir.Value, op_type: str, channels: int) -> tuple[ir.Node | None, ir.Value | None]:
    """The node that alone reads `value` and applies to it a constant for each channel of the last axis, and the constant."""
    node = single_use(value)
    if node is None or not is_op(node, op_type):
        return None, None
    other = _other(node, value)
    held = constant(other)
    return (node, other) if held is not None and held.shape == (channels,) else (None, None)


def _rewrite_layer_norm(node: ir.Node, found: _LayerNorm) -> None:
    attributes: Attributes = {"axis": -1, "epsilon": found.epsilon}
    made = add_node(found.end, "LayerNormalization", [found.x, found.scale, found.bias], attributes, like=found.end.outputs, domain="")
    substitute(found.end, made.outputs)


# -- the residual in front of a norm ------------------------------------------------------------------------------------------
def _match_residual(node: ir.Node) -> ir.Node | None:
    """The Add of two computed values of as many axes that a norm of the last one alone reads."""
    x = node.inputs[0] if is_op(node, "LayerNormalization") and len(node.outputs) == 1 else None
    if x is None or x.dtype != _FLOAT or x.shape is None or attr_int(node, "axis", -1) not in (-1, len(x.shape) - 1):
        return None
    add = _only_read_maker(x, "Add")
    if add is None or any(v is None or constant(v) is not None or v.shape is None for v in add.inputs):
        return None
    return add if all(len(v.shape) == len(x.shape) for v in add.inputs if v is not None and v.shape is not None) else None


def _rewrite_residual(node: ir.Node, add: ir.Node) -> None:
    attributes = kept(node, "epsilon")
    made = add_node(node, "FusedLayerNorm", [*add.inputs, *node.inputs[1:]], attributes, like=node.outputs)
    substitute(node, made.outputs)


# -- Softmax ------------------------------------------------------------------------------------------------------------------
@record(eq=False)
class _Scores:
    """`x` · `scale` + `mask`."""

    x: ir.Value
    scale: float
    mask: ir.Value | None


def _match_softmax(node: ir.Node) -> _Scores | None:
    value = node.inputs[0] if is_op(node, "Softmax") else None
    if value is None or value.dtype != _FLOAT or value.shape is None or attr_int(node, "axis", -1) not in (-1, len(value.shape) - 1):
        return None
    add = _only_read_maker(value, "Add")
    if add is None:
        found = _scaled(value)
        return found if found is not None and found.x is not value else None
    for x, mask in (add.inputs, reversed(tuple(add.inputs))):
        found = _scaled(x)
        if found is not None and mask is not None and mask.shape is not None and len(mask.shape) <= len(value.shape):
            return _Scores(found.x, found.scale, mask)
    return None


def _scaled(value: ir.Value | None) -> _Scores | None:
    """A product's scores that `value` is, or a number of times of."""
    if value is None:
        return None
    node, x, scale = _only_read_maker(value, "Mul", "Div"), value, 1.0
    if node is not None:
        pairs = (node.inputs, reversed(tuple(node.inputs))) if node.op_type == "Mul" else (node.inputs,)
        scores, number = next(((v, n) for v, o in pairs if v is not None and (n := _number(o))), (None, 0.0))
        if scores is None or not _keeps_rank(scores, node):
            return None
        x, scale = scores, number if node.op_type == "Mul" else 1 / number
    return _Scores(x, scale, None) if _only_read_maker(x, "MatMul") is not None and math.isfinite(scale) else None


def _only_read_maker(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The operator, one of `op_types`, that makes `value` for one reader alone."""
    maker = producer(value)
    return maker if is_op(maker, *op_types) and single_use(value) is not None else None


def _rewrite_softmax(node: ir.Node, found: _Scores) -> None:
    attributes: Attributes = {"scale": found.scale}
    substitute(node, add_node(node, "FusedSoftmax", [found.x, found.mask], attributes, like=node.outputs).outputs)


GELU = Rule("Gelu spelled out", frozenset({"Erf"}), _match_gelu, _rewrite_gelu)
LAYER_NORM = Rule("layer norm spelled out", frozenset({"Sqrt"}), _match_layer_norm, _rewrite_layer_norm)
RESIDUAL_NORM = Rule("norm of a sum", frozenset({"LayerNormalization"}), _match_residual, _rewrite_residual)
SCALED_SOFTMAX = Rule("softmax of scaled, masked scores", frozenset({"Softmax"}), _match_softmax, _rewrite_softmax)
