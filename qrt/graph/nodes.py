"""Reading and making nodes and values: the small words that passes, rules and the lowering are written with."""

from __future__ import annotations

from collections.abc import Iterator, MutableSet
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir

__all__ = [
    "all_graphs",
    "attr_float",
    "attr_int",
    "attr_ints",
    "attr_str",
    "constant",
    "has_subgraph",
    "is_constant",
    "is_graph_output",
    "is_op",
    "naming",
    "new_initializer",
    "only_use",
    "producer",
    "replace",
    "unique_name",
    "value_names",
]


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these operators of the standard ONNX domain."""
    return node is not None and node.domain == "" and node.op_type in op_types


def attr_int(node: ir.Node, name: str, default: int) -> int:
    """The integer attribute `name`, or `default` where the node does not carry it."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def attr_ints(node: ir.Node, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The attribute `name` as a tuple of integers, or `default` where the node does not carry it."""
    attr = node.attributes.get(name)
    return default if attr is None else tuple(attr.as_ints())


def attr_float(node: ir.Node, name: str, default: float) -> float:
    """The float attribute `name`, or `default` where the node does not carry it."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_float()


def attr_str(node: ir.Node, name: str, default: str) -> str:
    """The string attribute `name`, or `default` where the node does not carry it."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_string()


def has_subgraph(node: ir.Node) -> bool:
    """Whether the node carries a graph (If, Loop, Scan, SequenceMap)."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def all_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """`graph`, then every graph that its nodes carry, at any depth."""
    yield graph
    yield from graph.subgraphs()


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array that `value` always has (an initializer, or the output of a Constant node), else None."""
    if value is None:
        return None
    tensor = value.const_value if value.is_initializer() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer or the output of a Constant node."""
    return value is not None and (value.is_initializer() or is_op(value.producer(), "Constant"))


def producer(value: ir.Value | None) -> ir.Node | None:
    """The node that computes `value`; None for an input, an initializer or an omitted input."""
    return None if value is None else value.producer()


def is_graph_output(value: ir.Value) -> bool:
    """Whether `value` is an output of the graph (or subgraph) that holds it."""
    return value.is_graph_output()


def only_use(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, if it reads it once and the value is not a graph output."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def value_names(graph: ir.Graph) -> set[str | None]:
    """The names of all values of the model's top graph `graph` and of its subgraphs."""
    names: set[str | None] = set()
    for g in all_graphs(graph):
        names.update(g.initializers)
        names.update(v.name for v in g.inputs)
        names.update(v.name for node in g for v in node.outputs)
    return names


# Where a graph holds the names in use, while `naming` is open.
_NAMES = "qrt.names"


@contextmanager
def naming(graph: ir.Graph) -> Iterator[None]:
    """Within it, who asks for several names of the model's top graph `graph` has the names in use collected once, and not each time.

    All new names of the graph must come from `unique_name` then.
    """
    graph.meta[_NAMES] = value_names(graph)
    try:
        yield
    finally:
        del graph.meta[_NAMES]


def unique_name(graph: ir.Graph, hint: str, taken: MutableSet[str | None] | None = None) -> str:
    """A name that no value of the model's top graph `graph` nor of its subgraphs has: `hint`, or `hint_1`, `hint_2` …

    `taken`: `value_names(graph)`, for who asks for several, as it takes a walk over all nodes; the name is added to it.
    """
    if taken is None:
        taken = graph.meta[_NAMES] if _NAMES in graph.meta else value_names(graph)
    name, count = hint, 0
    while name in taken:
        count += 1
        name = f"{hint}_{count}"
    taken.add(name)
    return name


def new_initializer(graph: ir.Graph, name: str, array: np.ndarray, taken: MutableSet[str | None] | None = None) -> ir.Value:
    """A new initializer of the model's top graph that holds `array`, called `name` or, where that is `taken`, `name_1` … (`unique_name`).

    Nodes of subgraphs may read it as well: constants all live in the top graph.
    """
    tensor = ir.Tensor(np.asarray(array, order="C"), name=unique_name(graph, name, taken))
    value = ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old` read `new`; where `old` is a graph output, `new` becomes it and takes its name.

    `new` must not be a graph input, an initializer or another graph output if `old` is a graph output.
    """
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None if old.producer() is None else f"{name}_replaced"
    new.name = name
