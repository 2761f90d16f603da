"""What a rule is: a pattern around a root node, a check that can say why not, and a rewrite; and the words rewrites are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qrt.core.record import record
from qrt.graph.nodes import new_initializer, replace

__all__ = ["DOMAIN", "Attributes", "Rule", "WhyNot", "add_node", "graph_of", "is_fused", "kept", "single_use", "substitute"]

# The domain of the fused form (docs/architecture.md).
DOMAIN = "ai.qrt"

# What a new node may carry: Python values, or attributes of the node it replaces.
_Attribute = int | float | str | Sequence[int] | Sequence[float] | ir.Attr
Attributes = Mapping[str, _Attribute]


class WhyNot(str):
    """Why a pattern that was nearly there did not match: one clause, for people."""


@record
class Rule:
    """One fusion.

    `roots`: the operator types (of any domain) that the pattern is looked for at. `match(node)`: what `rewrite(node, found)` needs; None
    where the pattern is not there at all; WhyNot where it nearly is.
    """

    name: str
    roots: frozenset[str]
    match: Callable[[ir.Node], Any]
    rewrite: Callable[[ir.Node, Any], None]


def is_fused(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these operators of the fused form."""
    return node is not None and node.domain == DOMAIN and node.op_type in op_types


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that holds `node`, which rules only meet inside one."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"node {node.name!r} stands in no graph")
    return graph


def single_use(value: ir.Value) -> ir.Node | None:
    """The one node of the same graph that reads `value`, if nothing else does and it is no graph output."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader, maker = uses[0].node, value.producer()
    return reader if maker is None or reader.graph is maker.graph else None


def kept(node: ir.Node, *names: str) -> dict[str, ir.Attr]:
    """The attributes of `node` called `names` (all of them without names), to hand on to another node."""
    return {name: attr for name, attr in node.attributes.items() if not names or name in names}


def add_node(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | np.ndarray | np.generic | None],
    attributes: Attributes | None = None,
    *,
    like: Sequence[ir.Value],
    dtype: ir.DataType | None = None,
    domain: str = DOMAIN,
    name: str | None = None,
) -> ir.Node:
    """A new node in front of `before`, with an output shaped like each value of `like`, of `dtype` (default: theirs).

    Arrays among the inputs become initializers. `name`: the node's, by default that of the node that makes like[0].
    """
    graph = graph_of(before)
    maker = like[0].producer()
    name = name or (maker.name if maker is not None else None) or before.name or op_type
    values = [_held(graph, f"{name}_input{i}", v) for i, v in enumerate(inputs)]
    while values and values[-1] is None:
        values.pop()
    outputs = [
        ir.Value(name=None, shape=None if v.shape is None else ir.Shape(v.shape), type=v.type if dtype is None else ir.TensorType(dtype))
        for v in like
    ]
    attrs = [_attribute(key, value) for key, value in (attributes or {}).items()]
    node = ir.Node(domain, op_type, values, attrs, outputs=outputs, name=name)
    graph.insert_before(before, node)
    return node


def _attribute(name: str, value: _Attribute) -> ir.Attr:
    """What `ir.node` makes of a value, in a hundredth of the time: that asks abstract classes one after the other."""
    match value:
        case ir.Attr():
            return value
        case int():
            return ir.AttrInt64(name, value)
        case float():
            return ir.AttrFloat32(name, value)
        case str():
            return ir.AttrString(name, value)
    integers = [v for v in value if isinstance(v, int)]
    return ir.AttrInt64s(name, integers) if len(integers) == len(value) else ir.AttrFloat32s(name, value)


def _held(graph: ir.Graph, name: str, value: ir.Value | np.ndarray | np.generic | None) -> ir.Value | None:
    return value if value is None or isinstance(value, ir.Value) else new_initializer(graph, name, np.asarray(value))


def substitute(old: ir.Node, outputs: Sequence[ir.Value]) -> None:
    """Let `outputs` take the place and the names of the outputs of `old`, and remove `old`."""
    for before, after in zip(old.outputs, outputs, strict=True):
        name = before.name
        replace(before, after)
        if not after.is_graph_output() and after.producer() is not None:
            before.name = f"{name}_replaced"
            after.name = name
    graph_of(old).remove(old, safe=True)
