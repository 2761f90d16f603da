"""What spells one node with others: the words that the tables of spellings are written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.graph.nodes import attr_float, attr_int, attr_str, constant, new_initializer, unique_name

__all__ = ["VENDOR_DOMAIN", "Spell", "Spelling", "Unsaid"]

VENDOR_DOMAIN = "com.microsoft"

Operand = ir.Value | np.ndarray | None
_Attribute = int | float | str | Sequence[int] | Sequence[float]


class Unsaid(Exception):
    """The node stays as it is: there is no spelling, or none before more is known of its inputs."""


class Spelling:
    """The nodes that stand for `node`, in the making. `top`: the model's top graph, which holds the constants; `opset`: that of the model,
    or a newer one that the nodes need.

    `results` are what stands for the node's outputs; None for an output that is not made.
    """

    def __init__(self, node: ir.Node, top: ir.Graph, opset: int) -> None:
        self.node, self.top, self.opset = node, top, opset
        self.nodes: list[ir.Node] = []
        self.results: list[ir.Value | None] = []

    # -- reading ------------------------------------------------------------------------------------------------------------
    def given(self, index: int) -> ir.Value | None:
        """Input `index`, or None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def needed(self, index: int) -> ir.Value:
        """Input `index`; ModelError if the node lacks it."""
        value = self.given(index)
        if value is None:
            raise ModelError(f"node {self.node.name!r} ({self.node.op_type}) lacks its input {index}; export the model again")
        return value

    def wanted(self, index: int) -> bool:
        """Whether somebody reads output `index`."""
        value = self.node.outputs[index] if index < len(self.node.outputs) else None
        return value is not None and bool(value.uses() or value.is_graph_output())

    def rank(self, value: ir.Value) -> int:
        """How many axes `value` has."""
        if value.shape is None:
            raise Unsaid(value.name)
        return len(value.shape)

    def dtype(self, value: ir.Value) -> ir.DataType:
        """The type of the elements of `value`."""
        if value.dtype is None:
            raise Unsaid(value.name)
        return value.dtype

    def extent(self, value: ir.Value, axis: int, what: str) -> int:
        """A dimension of `value` that has to be known: UnsupportedOp, with `what` it is, where it is not."""
        dim = value.shape[axis] if value.shape is not None and -self.rank(value) <= axis < self.rank(value) else None
        if not isinstance(dim, int):
            raise UnsupportedOp(f"node {self.node.name!r} ({self.node.op_type}): {what} is not known before the run")
        return dim

    def extent_or(self, value: ir.Value, axis: int) -> int:
        """A dimension of `value`; 0 where it is not known."""
        dim = value.shape[axis] if value.shape is not None else 0
        return dim if isinstance(dim, int) else 0

    def held(self, index: int, what: str) -> np.ndarray:
        """The contents of input `index`, which has to be constant."""
        array = constant(self.needed(index))
        if array is None:
            raise UnsupportedOp(f"node {self.node.name!r} ({self.node.op_type}): {what} is computed; qrt needs a constant there")
        return array

    def integer(self, name: str, default: int = 0) -> int:
        """The node's attribute `name`."""
        return attr_int(self.node, name, default)

    def number(self, name: str, default: float) -> float:
        """The node's attribute `name`."""
        return attr_float(self.node, name, default)

    def text(self, name: str, default: str = "") -> str:
        """The node's attribute `name`."""
        return attr_str(self.node, name, default)

    @property
    def floats(self) -> np.dtype[Any]:
        """The dtype of the node's real numbers: that of its first input that holds some."""
        kinds = (value.dtype.numpy() for value in self.node.inputs if value is not None and value.dtype is not None)
        return next((kind for kind in kinds if np.issubdtype(kind, np.floating)), np.dtype(np.float32))

    def real(self, number: float) -> np.ndarray:
        """A real number; a finite one as far as `floats` reach."""
        largest = float(np.finfo(self.floats).max) if np.isfinite(number) else np.inf
        return np.asarray(min(max(number, -largest), largest), self.floats)

    def refuse(self, reason: str) -> UnsupportedOp:
        """The error for what qrt does not take."""
        return UnsupportedOp(f"node {self.node.name!r} ({self.node.op_type}): {reason} is not supported")

    # -- writing ------------------------------------------------------------------------------------------------------------
    def ops(
        self, op_type: str, inputs: Sequence[Operand], outputs: int, domain: str = "", **attributes: _Attribute | ir.Attr
    ) -> list[ir.Value]:
        """Adds a node; arrays among the inputs become initializers. Gives its outputs."""
        name = f"{self.node.name}_{op_type.lower()}"
        values = [self.hold(value, f"{name}_{k}") if isinstance(value, np.ndarray) else value for k, value in enumerate(inputs)]
        attrs = [a if isinstance(a, ir.Attr) else ir.convenience.convert_attribute(key, a) for key, a in attributes.items()]
        made = [ir.Value(name=unique_name(self.top, f"{name}_value")) for _ in range(outputs)]
        self.nodes.append(ir.Node(domain, op_type, values, attrs, outputs=made, name=name))
        return made

    def op(self, op_type: str, *inputs: Operand, **attributes: _Attribute | ir.Attr) -> ir.Value:
        """`ops`, of one output."""
        return self.ops(op_type, inputs, 1, "", **attributes)[0]

    def hold(self, array: np.ndarray, name: str = "") -> ir.Value:
        """`array` as an initializer."""
        return new_initializer(self.top, name or f"{self.node.name}_constant", array)

    def kept(self, *names: str) -> dict[str, ir.Attr]:
        """Those attributes of the node, to hand on."""
        return {name: self.node.attributes[name] for name in names if name in self.node.attributes}

    # -- phrases ------------------------------------------------------------------------------------------------------------
    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` with elements of `dtype`."""
        return value if value.dtype == dtype else self.op("Cast", value, to=int(dtype))

    def scaled(self, value: ir.Value, factor: float) -> ir.Value:
        """`value` times a number."""
        return value if factor == 1.0 else self.op("Mul", value, self.real(factor))

    def sum(self, *values: ir.Value | None) -> ir.Value:
        """The sum of those values that are there."""
        first, *rest = (value for value in values if value is not None)
        for value in rest:
            first = self.op("Add", first, value)
        return first

    def dim(self, value: ir.Value, axis: int) -> ir.Value:
        """Extent `axis` ≥ 0 of `value`, in the run: (1,) int64."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def reshape(self, value: ir.Value, *target: int) -> ir.Value:
        """`value` with the shape `target`, as Reshape takes it: 0 keeps an extent, −1 stands for what is left."""
        return self.op("Reshape", value, np.array(target, np.int64))


Spell = Callable[[Spelling], None]
