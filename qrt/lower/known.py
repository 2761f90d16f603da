"""What depends on constants alone: known before any run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

from qrt.core.errors import UnsupportedOp
from qrt.graph import Model, has_subgraph, ir
from qrt.graph.passes.fold_constants import RANDOM, known_bytes, room
from qrt.lower.python_step import PythonStep

if TYPE_CHECKING:
    from qrt.ops.op import Array

__all__ = ["computed", "is_of", "of_constants", "with_constants"]


def is_of(node: ir.Node, known: Set[ir.Value]) -> bool:
    """Whether what `node` gives depends on constants and on values of `known` alone."""
    if not node.inputs or has_subgraph(node) or node.op_type in RANDOM:
        return False
    return all(value is None or value.const_value is not None or value in known for value in node.inputs)


def of_constants(nodes: Sequence[ir.Node], why_python: Mapping[str, str]) -> list[ir.Node]:
    """The native nodes that depend on constants alone, such as those that dequantize weights."""
    values: set[ir.Value] = set()
    found = []
    for node in nodes:
        if (node.name or node.op_type) not in why_python and is_of(node, values):
            found.append(node)
            values.update(node.outputs)
    return found


def with_constants(nodes: list[ir.Node], known: Sequence[ir.Node]) -> list[ir.Node]:
    """`nodes` of a stage, after those nodes of `known` that they need from other stages: a weight stays a constant wherever it is made."""
    own, needed = set(nodes), {value for node in nodes for value in node.inputs}
    others = []
    for node in reversed(known):
        if node not in own and not needed.isdisjoint(node.outputs):
            others.append(node)
            needed.update(node.inputs)
    return [*reversed(others), *nodes]


def computed(node: ir.Node, model: Model) -> dict[ir.Value, Array] | None:
    """What a node without a kernel gives for constants; None where that is no numbers, an error, which a run says, or too much: it must not
    turn a small file into a big one, though weights may be large."""
    if sum(size for v in node.outputs if (size := known_bytes(v)) < math.inf) > room(node):
        return None
    step = PythonStep(node, model)
    try:
        results = step.run({})
    except UnsupportedOp:
        return None
    if not all(a.dtype.kind in "biuf" for a in results) or sum(a.nbytes for a in results) > room(node):
        return None
    return dict(zip(step.outputs, results, strict=True))
