"""Reading a node: the words that handlers of several families share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from qrt.core.errors import ModelError
from qrt.graph import ir
from qrt.lower.lowering import Lowering, NotNative

__all__ = ["axis_of", "common_layout", "optional", "required", "sized"]


def required(node: ir.Node, index: int = 0) -> ir.Value:
    """Input `index`; ModelError if the node lacks it."""
    value = optional(node, index)
    if value is None:
        raise ModelError(f"node {node.name!r} ({node.op_type}) lacks its input {index}")
    return value


def optional(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`, or None."""
    return node.inputs[index] if index < len(node.inputs) else None


def axis_of(node: ir.Node, axis: int, rank: int) -> int:
    """`axis`, counted from the end if it is negative, as one of 0 … rank − 1."""
    if not -rank <= axis < rank:
        raise ModelError(f"node {node.name!r} ({node.op_type}): a value of {rank} axes has no axis {axis}")
    return axis % rank


def common_layout(low: Lowering, values: Sequence[ir.Value]) -> tuple[int, ...]:
    """The layout of the largest of `values` that is not known before the run."""
    return low.perm(max(values, key=lambda v: (low.const(v) is None, prod(low.shape(v)))))


def sized(low: Lowering, value: ir.Value) -> ir.Value:
    """`value`, whose elements have a size that copies can be made of: NotNative for strings and complex128."""
    dtype = low.dtype(value)
    if dtype.hasobject or dtype.kind in "US" or dtype.itemsize not in (1, 2, 4, 8):
        raise NotNative(f"elements of dtype {dtype}")
    return value
