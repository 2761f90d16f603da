"""Give every node and every value a name of its own."""

from __future__ import annotations

from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs

__all__ = ["name_everything"]


def name_everything(model: Model) -> bool:
    """Ensures: each node's name is its own in the whole model; outputs that somebody reads have names.

    A nameless node is called after what it does and its first output. Existing names that clash get a number.
    """
    changed = False
    values = {v.name for g in all_graphs(model.graph) for node in g for v in node.outputs}
    values |= {v.name for g in all_graphs(model.graph) for v in (*g.inputs, *g.initializers.values())}
    taken: set[str] = set()
    for graph in all_graphs(model.graph):
        for node in graph:
            for value in node.outputs:
                if not value.name and (value.uses() or value.is_graph_output()):
                    value.name = _free(f"{node.op_type}_value", values)
                    values.add(value.name)
                    changed = True
            name = _free(node.name or f"{node.op_type}_{node.outputs[0].name if node.outputs else ''}", taken)
            taken.add(name)
            if name != node.name:
                node.name = name
                changed = True
    return changed


def _free(hint: str, taken: set[str] | set[str | None]) -> str:
    name, count = hint, 0
    while name in taken:
        count += 1
        name = f"{hint}_{count}"
    return name
