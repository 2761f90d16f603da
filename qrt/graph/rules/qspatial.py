"""DequantizeLinear → average pool, Resize, Softmax or ReduceMean → (Relu, Clip) → QuantizeLinear becomes the Q node of the same name."""

from __future__ import annotations

import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.nodes import attr_int, attr_ints, attr_str, is_op
from qrt.graph.rules.geometry import explicit_pads
from qrt.graph.rules.quant import Output, Quant, activation, output
from qrt.graph.rules.rule import Attributes, Rule, WhyNot, add_node, kept, substitute

__all__ = ["QSPATIAL"]

_OPS = frozenset({"AveragePool", "GlobalAveragePool", "Resize", "Softmax", "ReduceMean"})


@record(eq=False)
class _Spatial:
    x: Quant
    attributes: Attributes
    y: Output


def _match(node: ir.Node) -> _Spatial | WhyNot | None:
    if not is_op(node, *_OPS) or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    x = activation(node.inputs[0])
    if isinstance(x, WhyNot):
        return x
    attributes = _attributes(node)
    if isinstance(attributes, WhyNot):
        return attributes
    y = output(node.outputs[0])
    return y if isinstance(y, WhyNot) else _Spatial(x, {**attributes, **y.bounds}, y)


def _attributes(node: ir.Node) -> Attributes | WhyNot:
    if is_op(node, "Resize") and _resized_otherwise(node):
        return WhyNot("it resizes in a way that codes have no kernel for")
    if is_op(node, "ReduceMean") and attr_int(node, "noop_with_empty_axes", 0):
        return WhyNot("it may take no mean at all")
    if not is_op(node, "AveragePool"):
        return kept(node)
    pads = explicit_pads(node, attr_ints(node, "kernel_shape"))
    if isinstance(pads, WhyNot):
        return pads
    return {**kept(node, "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "strides"), "pads": pads}


def _resized_otherwise(node: ir.Node) -> bool:
    """Whether a Resize is not plainly nearest or linear."""
    plain = {"mode": ("nearest", "linear"), "keep_aspect_ratio_policy": ("stretch",)}
    if attr_int(node, "antialias", 0) or attr_str(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return True
    return any(attr_str(node, name, known[0]) not in known for name, known in plain.items())


def _rewrite(node: ir.Node, found: _Spatial) -> None:
    y = found.y
    inputs = [*found.x.inputs, *y.inputs, *node.inputs[1:]]
    substitute(y.node, add_node(y.node, f"Q{node.op_type}", inputs, found.attributes, like=y.node.outputs, name=node.name).outputs)


QSPATIAL = Rule("int8 pool, resize, softmax or mean", _OPS, _match, _rewrite)
