"""Whatever is a function of one quantized tensor, element by element, becomes a table of 256 codes: QLut.

The function may be a chain or any graph of element-wise nodes with scalar constants (Relu, HardSwish, x · sigmoid(x), the many nodes of a
Gelu), tables inside included, so that a quantized SiLU keeps the rounding of its sigmoid. Without any node it requantizes: DequantizeLinear
→ QuantizeLinear with other qparams; with the same, both vanish.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.core.dtypes import quint8
from qrt.core.numerics import dequantize, quantize
from qrt.core.qparams import QParams
from qrt.core.record import record
from qrt.graph.evaluate import evaluate
from qrt.graph.nodes import constant, is_op, producer
from qrt.graph.rules.quant import constant_of, dequantized, qparams_of, same
from qrt.graph.rules.rule import Rule, WhyNot, add_node, graph_of, is_fused, substitute

__all__ = ["LUT", "UNARY"]

_CURVES = {"Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh"}
_MATHS = {"Abs", "Ceil", "Clip", "Cos", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Relu", "Round", "Sign", "Sin", "Sqrt"}
UNARY = frozenset({*_CURVES, *_MATHS, "Swish", "ThresholdedRelu"})
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"})
# A function of more nodes than this is no activation.
_MAX_NODES = 64


@record(eq=False)
class _Function:
    """`codes` (uint8) go through `table`; `identity`: they come out as they went in."""

    codes: ir.Value
    table: np.ndarray
    identity: bool


def _match(node: ir.Node) -> _Function | WhyNot | None:
    if not is_op(node, "QuantizeLinear") or node.inputs[0] is None or constant(node.inputs[0]) is not None:
        return None
    qparams = qparams_of(node)
    if isinstance(qparams, WhyNot) or qparams.axis is not None or qparams.dtype != quint8:
        return None
    leaves = _leaves(node.inputs[0])
    if leaves is None:
        return None
    codes = _one_source(leaves)
    if codes is None or codes.shape is None or node.outputs[0].shape is None or len(codes.shape) != len(node.outputs[0].shape):
        return None
    table = _table(node.inputs[0], codes, qparams)
    if table is None:
        return WhyNot("onnx.reference cannot compute its table")
    return _Function(codes, table, _is_identity(node, qparams))


def _is_identity(node: ir.Node, qparams: QParams) -> bool:
    direct = dequantized(node.inputs[0])
    return not isinstance(direct, WhyNot) and same(direct.qparams, qparams)


def _leaves(value: ir.Value) -> set[ir.Value] | None:
    """The uint8 codes that `value` is an element-wise function of; None where it is not one of codes alone."""
    leaves: set[ir.Value] = set()
    open_, seen = [value], set[ir.Value]()
    while open_:
        this = open_.pop()
        if this in seen:
            continue
        seen.add(this)
        node = producer(this)
        if node is None or len(seen) > _MAX_NODES:
            return None
        if is_op(node, "DequantizeLinear"):
            found = dequantized(this)
            if isinstance(found, WhyNot) or found.qparams.axis is not None or found.qparams.dtype != quint8:
                return None
            leaves.add(found.codes)
            continue
        inputs = _operands(node)
        if inputs is None:
            return None
        open_ += inputs
    return leaves


def _operands(node: ir.Node) -> list[ir.Value] | None:
    """The inputs of an element-wise node that are not scalar constants; None if it is no such node."""
    if not is_op(node, *UNARY, *_BINARY):
        return None
    given = [v for v in node.inputs if v is not None]
    known = [constant_of(v) for v in given]
    if any(k is not None and k.size != 1 for k in known):
        return None
    operands = [v for v, k in zip(given, known, strict=True) if k is None]
    return operands if operands and (operands == given[: len(operands)] or is_op(node, *_BINARY)) else None


def _one_source(leaves: set[ir.Value]) -> ir.Value | None:
    """The one tensor of codes that all `leaves` are, or are tables of."""
    sources = set(leaves)
    while len(sources) > 1:
        table = next((v for v in sources if is_fused(producer(v), "QLut")), None)
        maker = producer(table)
        if table is None or maker is None or maker.inputs[0] is None:
            return None
        sources = (sources - {table}) | {maker.inputs[0]}
    return next(iter(sources), None)


def _table(value: ir.Value, codes: ir.Value, qparams: QParams) -> np.ndarray | None:
    """The code of `value` for each of the 256 codes."""
    known: dict[ir.Value, np.ndarray] = {codes: np.arange(256, dtype=np.uint8)}
    real = _real(value, known)
    return None if real is None or real.shape != (256,) else quantize(real, qparams)


def _real(value: ir.Value, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    """What `value` is for each entry of `known`."""
    if value in known:
        return known[value]
    node = producer(value)
    held = constant_of(value)
    if held is not None:
        return held.reshape(())
    if node is None:
        return None
    if is_op(node, "DequantizeLinear"):
        found = dequantized(value)
        if isinstance(found, WhyNot):
            return None
        codes = _codes(found.codes, known)
        result: np.ndarray | None = None if codes is None else dequantize(codes, found.qparams)
    else:
        inputs = [None if v is None else _real(v, known) for v in node.inputs]
        if any(v is not None and a is None for v, a in zip(node.inputs, inputs, strict=True)):
            return None
        outputs = evaluate(node, inputs, graph_of(node).opset_imports)
        result = None if outputs is None else outputs[0].astype(np.float32)
    if result is not None:
        known[value] = result
    return result


def _codes(value: ir.Value, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    if value not in known:
        maker = producer(value)
        if maker is None or not is_fused(maker, "QLut") or maker.inputs[0] is None:
            return None
        table, inner = constant(maker.inputs[1]), _codes(maker.inputs[0], known)
        if table is None or inner is None:
            return None
        known[value] = table[inner]
    return known[value]


def _rewrite(node: ir.Node, found: _Function) -> None:
    if found.identity and not node.outputs[0].is_graph_output():
        node.outputs[0].replace_all_uses_with(found.codes)
        graph_of(node).remove(node, safe=True)
        return
    maker = producer(node.inputs[0])
    name = maker.name if maker is not None and not is_op(maker, "DequantizeLinear") else node.name
    substitute(node, add_node(node, "QLut", [found.codes, found.table], like=node.outputs, name=name).outputs)


LUT = Rule("table of codes", frozenset({"QuantizeLinear"}), _match, _rewrite)
