"""Nodes that only move (or pick) elements work on codes: DequantizeLinear goes down through them, QuantizeLinear up.

Exact: both act element by element and keep order, so it does not matter on which side of a Reshape, Slice or MaxPool they stand.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.core.numerics import dequantize, quantize
from qrt.core.qparams import QParams
from qrt.core.record import record
from qrt.graph.nodes import attr_ints, attr_str, constant, is_constant, is_op, producer
from qrt.graph.rules.quant import Quant, arrays, clip_bounds, constant_of, dequantized, qparams_of
from qrt.graph.rules.rule import Rule, WhyNot, add_node, kept, single_use, substitute

__all__ = ["BOUND_UP", "DEQUANTIZE_DOWN", "MOVERS", "QUANTIZE_UP", "is_mover", "move"]

# Operators whose outputs hold elements of their first input (Pad: or a constant), and do not look at their values beyond their order.
MOVERS = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "MaxPool",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
# They hand on fewer elements than they take: it is better to quantize what is left.
_PICKERS = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split"})

# What takes a Relu or Clip into its own result.
_BOUNDED = frozenset({"Add", "Conv", "ConvTranspose", "Gemm", "MatMul"})


@record(eq=False)
class _Move:
    """What a node moves, as codes; `fill`: the code that a Pad fills in."""

    quant: Quant
    fill: np.ndarray | None


def is_mover(node: ir.Node) -> bool:
    """Whether `node` only moves elements of its first input."""
    return is_op(node, *MOVERS) and not (is_op(node, "MaxPool") and len(node.outputs) > 1)


def move(node: ir.Node, source: ir.Value, dtype: ir.DataType, fill: np.ndarray | None) -> list[ir.Value]:
    """A copy of `node`, in front of it, that moves `source` instead; `fill`: what a Pad fills in."""
    inputs: list[ir.Value | np.ndarray | None] = [source, *node.inputs[1:]]
    if fill is not None and is_op(node, "Pad"):
        inputs[2:3] = [fill]
    return list(add_node(node, node.op_type, inputs, kept(node), like=node.outputs, dtype=dtype, domain="").outputs)


def _fill(node: ir.Node, qparams: QParams, *, exact: bool) -> np.ndarray | WhyNot | None:
    """The code of the constant that a Pad fills in; `exact`: it must stand for just that value."""
    if not is_op(node, "Pad") or attr_str(node, "mode", "constant") != "constant":
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    value = np.zeros((), np.float32) if given is None else constant_of(given)
    if value is None or value.size != 1:
        return WhyNot("it pads with a value computed at run time")
    value = value.reshape(()).astype(np.float32)
    code = quantize(value, qparams)
    if exact and dequantize(code, qparams) != value:
        return WhyNot(f"it pads with {value}, for which there is no code")
    return code


def _match_down(node: ir.Node) -> _Move | WhyNot | None:
    if not is_mover(node) or not is_op(producer(node.inputs[0]), "DequantizeLinear"):
        return None
    quant = dequantized(node.inputs[0])
    if isinstance(quant, WhyNot):
        return quant
    held = constant(quant.codes) is not None
    if held and is_op(node, "Transpose"):
        rank, axis = len(quant.codes.shape or ()), quant.qparams.axis
        fits = axis is None or -rank <= axis < rank
        return _Move(quant, None) if fits else WhyNot(f"{quant.codes.name!r} has no axis {axis} for its scales")
    if held and (not is_op(node, "Gather") or is_constant(node.inputs[1])):
        return None  # a weight that is folded, or a graph that computes nothing
    if quant.qparams.axis is not None:
        return WhyNot(f"{quant.codes.name!r} has a scale per channel")
    fill = _fill(node, quant.qparams, exact=True)
    return fill if isinstance(fill, WhyNot) else _Move(quant, fill)


def _move_down(node: ir.Node, found: _Move) -> None:
    codes, qparams = found.quant.codes, found.quant.qparams
    held = constant(codes) if is_op(node, "Transpose") else None
    if held is not None:
        # A transposed weight: the channel axis goes where the permutation takes it.
        perm = attr_ints(node, "perm", tuple(reversed(range(held.ndim))))
        axis = None if qparams.axis is None else perm.index(qparams.axis % held.ndim)
        inputs: list[ir.Value | np.ndarray] = [held.transpose(perm), *arrays(qparams)]
        attributes = {} if axis is None else {"axis": axis}
        substitute(node, add_node(node, "DequantizeLinear", inputs, attributes, like=node.outputs, domain="").outputs)
        return
    moved = move(node, codes, ir.DataType.from_numpy(qparams.dtype.storage), found.fill)
    scale, zero_point = arrays(qparams)
    floats = [
        add_node(node, "DequantizeLinear", [v, scale, zero_point], like=[old], domain="", name=f"{node.name}_dequantize")
        for v, old in zip(moved, node.outputs, strict=True)
    ]
    substitute(node, [f.outputs[0] for f in floats])


def _match_up(node: ir.Node) -> _Move | WhyNot | None:
    """A QuantizeLinear whose input was moved by a node that nobody else reads."""
    mover = producer(node.inputs[0]) if is_op(node, "QuantizeLinear") else None
    if mover is None or not is_mover(mover) or mover.op_type in _PICKERS or mover.inputs[0] is None:
        return None
    if single_use(mover.outputs[0]) is not node or is_constant(mover.inputs[0]):
        return None
    if is_op(producer(mover.inputs[0]), "DequantizeLinear"):
        return None  # it comes down by itself
    qparams = qparams_of(node)
    if isinstance(qparams, WhyNot) or qparams.axis is not None:
        return None
    fill = _fill(mover, qparams, exact=False)
    return fill if isinstance(fill, WhyNot) else _Move(Quant(mover.inputs[0], qparams), fill)


def _move_up(node: ir.Node, found: _Move) -> None:
    mover = producer(node.inputs[0])
    if mover is None:
        return
    source, qparams = found.quant.codes, found.quant.qparams
    dtype = ir.DataType.from_numpy(qparams.dtype.storage)
    scale, zero_point = arrays(qparams)
    quantized = add_node(mover, "QuantizeLinear", [source, scale, zero_point], like=[source], dtype=dtype, domain="", name=node.name)
    quantized.meta.update(node.meta)
    substitute(node, move(mover, quantized.outputs[0], dtype, found.fill))


def _match_bound(node: ir.Node) -> ir.Node | None:
    """A Relu or Clip behind a mover that alone reads what a product or sum computes."""
    mover = producer(node.inputs[0])
    if mover is None or clip_bounds(node) is None or not is_mover(mover) or is_op(mover, "Pad") or mover.op_type in _PICKERS:
        return None
    if single_use(mover.outputs[0]) is not node or mover.inputs[0] is None or single_use(mover.inputs[0]) is not mover:
        return None
    maker = producer(mover.inputs[0])
    return mover if maker is not None and (is_op(maker, *_BOUNDED) or is_mover(maker)) else None


def _bound_up(node: ir.Node, mover: ir.Node) -> None:
    source = mover.inputs[0]
    if source is not None:
        bounded = add_node(mover, node.op_type, [source, *node.inputs[1:]], kept(node), like=[source], domain="", name=node.name)
        substitute(node, move(mover, bounded.outputs[0], ir.DataType.FLOAT, None))


BOUND_UP = Rule("bound before moving", frozenset({"Relu", "Clip"}), _match_bound, _bound_up)
DEQUANTIZE_DOWN = Rule("move codes", MOVERS, _match_down, _move_down)
QUANTIZE_UP = Rule("quantize before moving", frozenset({"QuantizeLinear"}), _match_up, _move_up)
