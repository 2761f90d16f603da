"""Float: Conv, ConvTranspose, Gemm or MatMul → (Add of a bias) → (Add of a residual) → (activation) becomes FusedConv … FusedMatMul."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.nodes import attr_float, constant, is_op
from qrt.graph.rules.bias import float_bias
from qrt.graph.rules.geometry import conv_attributes
from qrt.graph.rules.qmatmul import added_bias
from qrt.graph.rules.quant import clip_bounds, constant_of
from qrt.graph.rules.rule import Attributes, Rule, WhyNot, add_node, kept, single_use, substitute

__all__ = ["FLOAT_FUSION"]

_ROOTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FLOAT = ir.DataType.FLOAT


@record(eq=False)
class _Fused:
    """What follows the root, up to `end`."""

    attributes: Attributes
    bias: np.ndarray | None
    residual: ir.Value | None
    activation: str
    params: tuple[float, ...]
    end: ir.Node


def _match(node: ir.Node) -> _Fused | WhyNot | None:
    if not is_op(node, *_ROOTS) or node.outputs[0].dtype != _FLOAT:
        return None
    attributes, channels = _attributes(node), _channels(node)
    if isinstance(attributes, WhyNot) or not channels:
        return attributes if isinstance(attributes, WhyNot) else None
    if not is_op(node, "MatMul") and constant_of(node.inputs[1]) is None:
        return WhyNot("its weight is computed at run time")
    bias = float_bias(node.inputs[2] if len(node.inputs) > 2 else None, channels)
    if isinstance(bias, WhyNot):
        return bias
    end = node
    if bias is None:
        end, given = _added_bias(node, channels)
        held = constant(given)
        bias = None if held is None else np.broadcast_to(held.reshape(-1), (channels,))
    add, residual = _residual(end) if not is_op(node, "MatMul") else (end, None)
    last, activation, params = _activation(add)
    return None if last is node else _Fused(attributes, bias, residual, activation, params, last)


def _attributes(node: ir.Node) -> Attributes | WhyNot:
    if is_op(node, "MatMul"):
        return {}
    if is_op(node, "Gemm"):
        has_c = len(node.inputs) > 2 and node.inputs[2] is not None
        return {**kept(node, "alpha", "transA", "transB"), "beta": attr_float(node, "beta", 1.0) if has_c else 1.0}
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    if shape is None or not all(isinstance(d, int) for d in shape):
        return WhyNot("its weight has no known shape")
    return conv_attributes(node, [int(d) for d in shape if isinstance(d, int)])


def _channels(node: ir.Node) -> int:
    """Output channels; 0 where they are not known, or where a matrix times a vector leaves none."""
    shape, right = node.outputs[0].shape, node.inputs[1].shape if node.inputs[1] is not None else None
    axis = 1 if is_op(node, "Conv", "ConvTranspose") else -1
    if shape is None or len(shape) < 2 or right is None or len(right) < 2:
        return 0
    channels = shape[axis]
    return channels if isinstance(channels, int) else 0


def _added_bias(node: ir.Node, channels: int) -> tuple[ir.Node, ir.Value | None]:
    """The Add of a float constant for each output channel that alone reads the result, and the constant."""
    if not is_op(node, "Conv", "ConvTranspose"):
        end, bias = added_bias(node, channels)
        return (end, bias) if constant(bias) is not None else (node, None)
    add, shape = single_use(node.outputs[0]), node.outputs[0].shape
    if add is None or not is_op(add, "Add") or shape is None:
        return node, None
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    held = constant(other)
    if held is None or held.size not in (1, channels) or held.ndim > len(shape):
        return node, None
    if held.size > 1 and (held.ndim < len(shape) - 1 or held.shape[1 - len(shape)] != channels):
        return node, None
    return add, other


def _residual(node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The Add of another computed array of the same shape that alone reads the result of `node`, and that array."""
    value = node.outputs[0]
    add = single_use(value)
    if add is None or not is_op(add, "Add"):
        return node, None
    other = add.inputs[1] if add.inputs[0] is value else add.inputs[0]
    if other is None or other.is_initializer() or other.shape is None or other.shape != value.shape:
        return node, None
    return add, other


def _activation(node: ir.Node) -> tuple[ir.Node, str, tuple[float, ...]]:
    """The activation that alone reads the result of `node`: its last node, name and parameters; `node` itself if there is none."""
    silu = _silu(node.outputs[0])
    if silu is not None:
        return silu, "SiLU", ()
    reader = single_use(node.outputs[0])
    if reader is None or reader.inputs[0] is not node.outputs[0]:
        return node, "", ()
    bounds = clip_bounds(reader)
    if bounds is not None:
        return (reader, "Relu", ()) if bounds == (0.0, np.inf) else (reader, "Clip", bounds)
    if is_op(reader, "LeakyRelu"):
        return reader, "LeakyRelu", (attr_float(reader, "alpha", 0.01),)
    if is_op(reader, "HardSwish", "Sigmoid"):
        return reader, reader.op_type, ()
    return node, "", ()


def _silu(value: ir.Value) -> ir.Node | None:
    """The Mul of value · Sigmoid(value), if these two alone read `value`."""
    readers = {use.node for use in value.uses()}
    sigmoid = next((n for n in readers if is_op(n, "Sigmoid")), None)
    product = next((n for n in readers if is_op(n, "Mul")), None)
    if len(readers) != 2 or value.is_graph_output() or sigmoid is None or product is None:
        return None
    if single_use(sigmoid.outputs[0]) is not product or product.graph is not sigmoid.graph:
        return None
    return product if set(product.inputs) == {value, sigmoid.outputs[0]} else None


def _rewrite(node: ir.Node, found: _Fused) -> None:
    attributes: Attributes = {
        **found.attributes,
        "activation": found.activation,
        "activation_params": ir.AttrFloat32s("activation_params", found.params),
    }
    inputs = [node.inputs[0], node.inputs[1], found.bias, found.residual]
    substitute(found.end, add_node(found.end, f"Fused{node.op_type}", inputs, attributes, like=found.end.outputs, name=node.name).outputs)


FLOAT_FUSION = Rule("float operator with bias, residual and activation", _ROOTS, _match, _rewrite)
