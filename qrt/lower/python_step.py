"""The fallback: one node run by onnx.reference, with the bodies of If, Loop and Scan inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.graph import Model, ir, single_node_model
from qrt.lower.reference_gaps import gap
from qrt.lower.spelled import spell_out

if TYPE_CHECKING:
    from qrt.ops.op import Array

__all__ = ["PythonStep"]


class PythonStep:
    """A node without a kernel: slow and right. `inputs` holds the values it reads, those its bodies capture included.

    `function`: what carries the node out, one array in and one out; by default onnx.reference does.
    """

    def __init__(self, node: ir.Node, model: Model, function: Callable[[Array], Array] | None = None) -> None:
        self.node, self.function = node, function
        if function is not None:
            self.inputs, self.outputs = [v for v in node.inputs if v is not None], list(node.outputs)
            return
        from onnx.reference import ReferenceEvaluator

        from qrt.lower.loops import LOOPS

        self.inputs, self.outputs, proto = single_node_model(model, node)
        spell_out(proto.graph)
        wrong = gap(proto.graph)
        if wrong:
            raise UnsupportedOp(f"node {node.name!r}: neither qrt nor onnx.reference can run {node.op_type} with {wrong}")
        try:
            self._evaluator = ReferenceEvaluator(proto, new_ops=LOOPS)
        except Exception as error:  # onnx.reference raises many kinds; all mean that it does not know the operator
            raise UnsupportedOp(f"node {node.name!r}: neither qrt nor onnx.reference can run {node.op_type}: {error}") from error

    def run(self, values: Mapping[ir.Value, Array]) -> list[Array]:
        """The node's outputs for the values known so far."""
        if self.function is not None:
            return [np.ascontiguousarray(self.function(values[self.inputs[0]]))]
        feeds = {v.name or "": values[v] for v in self.inputs}
        try:
            with np.errstate(all="ignore"):  # a value that overflows does so in silence, as in the kernels
                results = self._evaluator.run(None, feeds)
        except Exception as error:  # as above: its errors are not ours, and the node's name is what the user needs
            raise UnsupportedOp(f"node {self.node.name!r} ({self.node.op_type}) failed in onnx.reference: {error}") from error
        if not all(isinstance(r, np.ndarray | np.generic) for r in results):
            raise UnsupportedOp(
                f"node {self.node.name!r} ({self.node.op_type}) gives a sequence or an optional; qrt passes on tensors only"
            )
        # Some of them are views, and kernels take addresses.
        return [np.asarray(r, order="C") for r in results]
