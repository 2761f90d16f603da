"""MatMulInteger or ConvInteger → Cast → Mul(scales) → (Add of a bias), as dynamic quantizers write it, becomes QMatMulFloat, QConvFloat."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.nodes import attr_int, constant, is_op, producer
from qrt.graph.rules.geometry import conv_attributes
from qrt.graph.rules.quant import constant_of, flip
from qrt.graph.rules.rule import Attributes, Rule, WhyNot, add_node, single_use, substitute

__all__ = ["DYNAMIC"]

_UINT8 = ir.DataType.UINT8
Operand = ir.Value | np.ndarray


@record(eq=False)
class _Dynamic:
    """`inputs`: those of the fused node, `end`: the node whose result it computes."""

    inputs: list[Operand | None]
    attributes: Attributes
    end: ir.Node


@record
class _Result:
    """A product's result: how many axes and channels it has, and which axis, counted from the end, is that of the channels."""

    rank: int
    channels: int
    axis: int


def _match(node: ir.Node) -> _Dynamic | WhyNot | None:
    if not is_op(node, "MatMulInteger", "ConvInteger"):
        return None
    conv = node.op_type == "ConvInteger"
    cast = single_use(node.outputs[0])
    if cast is None or not is_op(cast, "Cast") or attr_int(cast, "to", 0) != ir.DataType.FLOAT:
        return WhyNot("its int32 result is not only cast to float32")
    scaled = single_use(cast.outputs[0])
    if scaled is None or not is_op(scaled, "Mul"):
        return WhyNot("its result is not scaled")
    weight = _weight(node)
    if weight is None:
        return WhyNot("its second input is not a constant with a known zero point")
    b, b_zero_point = weight
    if not conv and b.ndim != 2:
        return WhyNot("its second input is no matrix")
    if node.inputs[0] is None or node.inputs[0].dtype != _UINT8:
        return WhyNot("its first input is not uint8")
    shape = node.outputs[0].shape
    if shape is None:
        return WhyNot("the rank of its result is not known")
    result = _Result(len(shape), int(b.shape[0 if conv else -1]), 1 - len(shape) if conv else -1)
    factor = scaled.inputs[1] if scaled.inputs[0] is cast.outputs[0] else scaled.inputs[0]
    scales = _factors(factor, result)
    if isinstance(scales, WhyNot):
        return scales
    attributes = conv_attributes(node, b.shape) if conv else {}
    if isinstance(attributes, WhyNot):
        return attributes
    a_zero_point: Operand = np.zeros((), np.uint8)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        a_zero_point = node.inputs[2]
        if not _is_scalar(a_zero_point, 1):
            return WhyNot("its first input has a zero point for each row")
    end, bias = _bias(scaled, result)
    a_scale, b_scale = scales
    if b_zero_point.size not in (1, result.channels):
        return WhyNot(f"its second input has {b_zero_point.size} zero points for {result.channels} channels")
    b_scale, b_zero_point = np.broadcast_arrays(b_scale, b_zero_point)
    return _Dynamic([node.inputs[0], a_scale, a_zero_point, b, b_scale, b_zero_point, bias], attributes, end)


def _weight(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """The constant second operand as int8, and its zero point; None where one of them is computed."""
    given = node.inputs[3] if len(node.inputs) > 3 else None
    held, zero_point = constant(node.inputs[1]), constant(given)
    if held is None or (given is not None and zero_point is None):
        return None
    if zero_point is None:
        zero_point = np.zeros((), held.dtype)
    zero_point = zero_point.reshape(-1) if zero_point.size > 1 else zero_point.reshape(())
    return (flip(held), flip(zero_point)) if held.dtype == np.uint8 else (held, zero_point)


def _factors(factor: ir.Value | None, result: _Result) -> tuple[Operand, np.ndarray] | WhyNot:
    """The scales of both operands, whose product `factor` is."""
    one = np.ones((), np.float32)
    held = _per_channel(factor, result)
    if held is not None:
        return one, held
    maker = producer(factor)
    if maker is not None and is_op(maker, "Mul"):
        x, y = maker.inputs
        for computed, other in ((x, y), (y, x)):
            held = _per_channel(other, result)
            if held is not None and computed is not None and _is_scalar(computed, result.rank):
                return computed, held
    if factor is not None and _is_scalar(factor, result.rank):
        return factor, one
    return WhyNot("its scales are neither one number nor constants of the output channels")


def _per_channel(value: ir.Value | None, result: _Result) -> np.ndarray | None:
    """A constant with one number, or one for each index of the channels' axis, as float32 () or (channels,)."""
    held = constant_of(value)
    if held is None or held.dtype != np.float32 or held.ndim > result.rank:
        return None
    if held.size == 1:
        return held.reshape(())
    if held.size != result.channels or held.ndim < -result.axis or held.shape[result.axis] != result.channels:
        return None
    return held.reshape(-1)


def _is_scalar(value: ir.Value, rank: int) -> bool:
    """Whether `value` always holds one number, and has no more than `rank` axes, which a product with it would take over."""
    return value.shape is not None and len(value.shape) <= rank and all(d == 1 for d in value.shape)


def _bias(node: ir.Node, result: _Result) -> tuple[ir.Node, np.ndarray | None]:
    """The Add of a constant for each channel that alone reads the result of `node`."""
    add = single_use(node.outputs[0])
    if add is None or not is_op(add, "Add"):
        return node, None
    held = _per_channel(add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0], result)
    return (add, np.broadcast_to(held, (result.channels,))) if held is not None else (node, None)


def _rewrite(node: ir.Node, found: _Dynamic) -> None:
    name = "QConvFloat" if node.op_type == "ConvInteger" else "QMatMulFloat"
    fused = add_node(found.end, name, found.inputs, found.attributes, like=found.end.outputs, name=node.name)
    substitute(found.end, fused.outputs)


DYNAMIC = Rule("dynamically quantized product", frozenset({"MatMulInteger", "ConvInteger"}), _match, _rewrite)
