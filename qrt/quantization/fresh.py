"""New names and constants in a graph that is being rewritten."""

from __future__ import annotations

import numpy as np

from qrt.graph import ir, new_initializer, unique_name
from qrt.graph.nodes import value_names

__all__ = ["Fresh"]


class Fresh:
    """Names that no value of `graph` has. They are collected once, so whoever adds values asks here alone."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.taken = graph, value_names(graph)

    def name(self, hint: str) -> str:
        """`hint`, or `hint_1`, `hint_2` …; it is taken from now on."""
        return unique_name(self.graph, hint, self.taken)

    def constant(self, hint: str, array: np.ndarray) -> ir.Value:
        """A new initializer that holds `array`, of such a name."""
        return new_initializer(self.graph, hint, array, self.taken)
