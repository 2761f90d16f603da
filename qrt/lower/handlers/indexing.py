"""Handlers of ops that look elements up: Gather, GatherND, GatherElements, ScatterND, ScatterElements, OneHot, TopK, Trilu, EyeLike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import InvalidInput, ModelError
from qrt.graph import attr_int, attr_str, ir
from qrt.lower.handlers.reading import axis_of, optional, required, sized
from qrt.lower.lowering import Handler, Lowering, NotNative
from qrt.ops.movement import Slice
from qrt.ops.movement.gather import Gather, GatherElements, GatherND, ScatterElements, ScatterND, Triangle, require_indices
from qrt.ops.movement.one_hot import OneHot
from qrt.ops.op import View
from qrt.ops.reduction import Top

__all__ = ["HANDLERS"]


def _label(index: ir.Value) -> str:
    """What errors call the indices."""
    return f"indices {index.name!r}"


def _is_fed(value: ir.Value) -> bool:
    """Whether an input of the model has a part in what `value` holds."""
    seen: set[ir.Value] = set()
    open_ = [value]
    while open_:
        this = open_.pop()
        producer = this.producer()
        if producer is None and this.const_value is None:
            return True
        if producer is not None and this not in seen:
            open_ += [v for v in producer.inputs if v is not None]
        seen.add(this)
    return False


def _known_indices(low: Lowering, node: ir.Node, extents: Sequence[int]) -> np.ndarray | None:
    """The indices if they are known before the run. One out of range is the fault of what decides it: InvalidInput, or ModelError."""
    value = required(node, 1)
    index = low.const(value)
    if index is not None:
        try:
            require_indices(index, extents, _label(value))
        except InvalidInput as error:
            blamed = InvalidInput if _is_fed(value) else ModelError
            raise blamed(f"node {node.name!r} ({node.op_type}): {error}") from error
    return index


def _from_start(low: Lowering, index: np.ndarray, extent: int) -> np.ndarray:
    """Indices into an axis of `extent` elements, none of them negative: an array of its own for each axis, made once."""
    return low.constants.derived(index, ("indices", extent), lambda: np.where(index < 0, index + extent, index).astype(np.int64))


def _gather(low: Lowering, node: ir.Node) -> None:
    x, index = sized(low, required(node)), required(node, 1)
    shape, perm = low.shape(x), low.perm(x)
    axis = axis_of(node, attr_int(node, "axis", 0), len(shape))
    physical, rank = perm.index(axis), len(low.shape(index))
    source, known = low.get(x, perm), _known_indices(low, node, shape[axis : axis + 1])
    if known is not None and known.size == 1:
        starts = tuple(int(known.ravel()[0]) % shape[axis] if k == physical else 0 for k in range(len(perm)))
        extents = low.program.specs[source].shape
        part = (*extents[:physical], 1, *extents[physical + 1 :])
        result = low.call(Slice(starts, part, (1,) * len(perm)), [source])[0]
        result = low.call(View((*part[:physical], *known.shape, *part[physical + 1 :])), [result])[0]
    else:
        where = low.get(index) if known is None else low.constant(_from_start(low, known, shape[axis]))
        result = low.call(Gather(physical, _label(index)), [source, where])[0]
    # The axes of the indices stand where the axis was, in order.
    layout: list[int] = []
    for a in perm:
        layout += range(axis, axis + rank) if a == axis else [a if a < axis else a + rank - 1]
    low.bind(node.outputs[0], result, tuple(layout))


def _gather_elements(low: Lowering, node: ir.Node) -> None:
    x = sized(low, required(node))
    axis = axis_of(node, attr_int(node, "axis", 0), len(low.shape(x)))
    _known_indices(low, node, low.shape(x)[axis : axis + 1])
    low.bind(node.outputs[0], low.call(GatherElements(axis, _label(required(node, 1))), [low.get(x), low.get(required(node, 1))])[0])


def _check_tuples(low: Lowering, node: ir.Node, batch: int) -> None:
    """Raises for tuples of indices that are known before the run and out of range."""
    shape, index = low.shape(required(node)), low.shape(required(node, 1))
    if index and index[-1] <= len(shape) - batch:
        _known_indices(low, node, shape[batch : batch + index[-1]])


def _gather_nd(low: Lowering, node: ir.Node) -> None:
    batch = attr_int(node, "batch_dims", 0)
    _check_tuples(low, node, batch)
    low.bind(
        node.outputs[0],
        low.call(GatherND(batch, _label(required(node, 1))), [low.get(sized(low, required(node))), low.get(required(node, 1))])[0],
    )


def _no_reduction(node: ir.Node) -> None:
    if attr_str(node, "reduction", "none") != "none":
        raise NotNative(f"scattering with reduction {attr_str(node, 'reduction', 'none')!r}")


def _scatter_nd(low: Lowering, node: ir.Node) -> None:
    _no_reduction(node)
    _check_tuples(low, node, 0)
    sized(low, required(node))
    low.bind(node.outputs[0], low.call(ScatterND(_label(required(node, 1))), [low.get(required(node, k)) for k in range(3)])[0])


def _scatter_elements(low: Lowering, node: ir.Node) -> None:
    _no_reduction(node)
    x = sized(low, required(node))
    axis = axis_of(node, attr_int(node, "axis", 0), len(low.shape(x)))
    _known_indices(low, node, low.shape(x)[axis : axis + 1])
    low.bind(node.outputs[0], low.call(ScatterElements(axis, _label(required(node, 1))), [low.get(required(node, k)) for k in range(3)])[0])


def _trilu(low: Lowering, node: ir.Node) -> None:
    diagonal = optional(node, 1)
    k = 0 if diagonal is None else int(low.require_const(diagonal, "the diagonal").reshape(()))
    # Beyond the matrix every diagonal is the same; the kernel's arithmetic is in int64.
    k = max(-(1 << 31), min(k, 1 << 31))
    op = Triangle(bool(attr_int(node, "upper", 1)), k)
    low.bind(node.outputs[0], low.call(op, [low.get(sized(low, required(node)))])[0])


def _eye_like(low: Lowering, node: ir.Node) -> None:
    shape = low.shape(required(node))
    if len(shape) != 2:
        raise ModelError(f"node {node.name!r}: EyeLike needs a matrix, not a value of shape {shape}")
    dtype = ir.DataType(attr_int(node, "dtype", 0)).numpy() if "dtype" in node.attributes else low.dtype(required(node))
    low.bind_const(node.outputs[0], np.eye(*shape, k=attr_int(node, "k", 0), dtype=dtype))


def _count(low: Lowering, node: ir.Node, index: int, most: int, what: str) -> int:
    """The number of one element that input `index` holds, from 0 to `most`. Another one is the fault of what decides it."""
    value = required(node, index)
    array = low.require_const(value, what)
    count = int(array.reshape(-1)[0]) if array.size == 1 else -1
    if not 0 <= count <= most:
        blamed = InvalidInput if _is_fed(value) else ModelError
        raise blamed(f"node {node.name!r} ({node.op_type}): {what} must be one number within 0 … {most}; it is {array.tolist()}")
    return count


def _top_k(low: Lowering, node: ir.Node) -> None:
    x = required(node)
    shape, perm = low.shape(x), low.perm(x)
    axis = axis_of(node, attr_int(node, "axis", -1), len(shape))
    op = Top(_count(low, node, 1, shape[axis], "k"), perm.index(axis), bool(attr_int(node, "largest", 1)))
    for output, index in zip(node.outputs, low.call(op, [low.get(x, perm)]), strict=False):
        low.bind(output, index, perm)


def _one_hot(low: Lowering, node: ir.Node) -> None:
    index = required(node)
    rank = len(low.shape(index)) + 1
    op = OneHot(_count(low, node, 1, (1 << 31) - 1, "the depth"), axis_of(node, attr_int(node, "axis", -1), rank))
    low.bind(node.outputs[0], low.call(op, [low.get(index), low.get(sized(low, required(node, 2)))])[0])


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "EyeLike"): _eye_like,
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "GatherND"): _gather_nd,
    ("", "OneHot"): _one_hot,
    ("", "ScatterElements"): _scatter_elements,
    ("", "ScatterND"): _scatter_nd,
    ("", "TopK"): _top_k,
    ("", "Trilu"): _trilu,
}
