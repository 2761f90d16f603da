"""Compute shapes, and pieces of shapes, that are known although some other dimension is not.

Exporters write "this tensor's height, doubled" as Shape → Gather → Mul. With a symbolic batch the Shape itself is no constant, but the
height is. An entry of a shape is an int, the name of a symbolic dimension, or None where nothing is known.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qrt.graph.model import Model
from qrt.graph.nodes import attr_int, constant, is_constant, is_op, new_initializer

__all__ = ["fold_shapes"]

# Longer vectors are data, not shapes.
_MAX_ENTRIES = 64

_ARITHMETIC: dict[str, Callable[[int, int], int]] = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul}


def fold_shapes(model: Model) -> bool:
    """Requires: shapes are inferred. Ensures: integers of the top graph that its known dimensions determine are initializers.

    A Reshape whose target is known but for one entry (or for symbols that stay where they were) gets a constant target.
    """
    changed = False
    known: dict[ir.Value, np.ndarray] = {}
    for node in list(model.graph):
        entries = _entries(node, known)
        if entries is None or entries.size > _MAX_ENTRIES or not _fit(entries, node.outputs[0]):
            changed |= is_op(node, "Reshape") and _fix_target(model, node, known)
            continue
        value = node.outputs[0]
        known[value] = entries
        if all(isinstance(e, int) for e in entries.flat) and not value.is_graph_output() and value.dtype is not None:
            array = np.array(entries.tolist(), value.dtype.numpy()).reshape(entries.shape)
            value.replace_all_uses_with(new_initializer(model.graph, f"{value.name}_folded", array))
            model.graph.remove(node, safe=True)
            changed = True
    return changed


def _fit(entries: np.ndarray, value: ir.Value) -> bool:
    """Whether no entry wraps around in the dtype of `value`, as it would in the run."""
    if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return False
    bounds = np.iinfo(value.dtype.numpy())
    return all(bounds.min <= e <= bounds.max for e in entries.flat if isinstance(e, int))


def _read(value: ir.Value | None, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    if value is None:
        return None
    if value in known:
        return known[value]
    if not is_constant(value) or value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    array = constant(value)
    return None if array is None or array.size > _MAX_ENTRIES else _object(array.tolist(), array.shape)


def _object(entries: object, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(shape, object)
    array[...] = entries
    return array


def _entries(node: ir.Node, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    """What `node` makes, entry by entry, if it is one of the operators that shapes are computed with."""
    if is_op(node, "Shape"):
        return _shape(node)
    if not is_op(node, *_MOVES, *_ARITHMETIC, "Concat"):
        return None
    inputs = [_read(v, known) for v in node.inputs]
    if not inputs or inputs[0] is None:
        return None
    if node.op_type == "Concat":
        parts = [a for a in inputs if a is not None and a.ndim == 1]
        return np.concatenate(parts) if len(parts) == len(inputs) else None
    if node.op_type in _ARITHMETIC:
        return None if inputs[1] is None else _combine(_ARITHMETIC[node.op_type], inputs[0], inputs[1])
    if any(v is not None and a is None for v, a in zip(node.inputs[1:], inputs[1:], strict=True)):
        return None
    try:
        return _MOVES[node.op_type](node, inputs[0], [None if a is None else [int(e) for e in a.flat] for a in inputs[1:]])
    except (IndexError, TypeError, ValueError):  # an index that is not a number, or out of range: left to the run
        return None


def _shape(node: ir.Node) -> np.ndarray | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in source.shape]
    dims = dims[attr_int(node, "start", 0) : attr_int(node, "end", len(dims))]
    return _object(dims, (len(dims),))


def _combine(op: Callable[[int, int], int], a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    if a.ndim > 1 or b.ndim > 1 or (a.ndim == b.ndim == 1 and a.size != b.size and 1 not in (a.size, b.size)):
        return None
    shape = np.broadcast_shapes(a.shape, b.shape)
    pairs = zip(np.broadcast_to(a, shape).flat, np.broadcast_to(b, shape).flat, strict=True)
    entries = [op(x, y) if isinstance(x, int) and isinstance(y, int) else None for x, y in pairs]
    return _object(entries if shape else entries[0], shape)


def _gather(node: ir.Node, a: np.ndarray, rest: list[list[int] | None]) -> np.ndarray | None:
    source = node.inputs[1]
    if rest[0] is None or source is None or source.shape is None or a.ndim != 1:
        return None
    picked = [a[i] for i in rest[0]]
    return _object(picked if len(source.shape) else picked[0], tuple(int(d) for d in source.shape.numpy()))


def _slice(node: ir.Node, a: np.ndarray, rest: list[list[int] | None]) -> np.ndarray | None:
    starts, ends, axes, steps = (*rest, None, None)[:4]
    if a.ndim != 1 or starts is None or ends is None or len(starts) != 1 or axes not in (None, [0], [-1]):
        return None
    start, end, step = starts[0], ends[0], steps[0] if steps else 1
    # A walk backwards begins at the first entry at the earliest.
    return a[max(start, -a.size) if step < 0 else start : end : step]


def _squeeze(node: ir.Node, a: np.ndarray, rest: list[list[int] | None]) -> np.ndarray | None:
    return a.reshape(()) if a.shape == (1,) else None


def _unsqueeze(node: ir.Node, a: np.ndarray, rest: list[list[int] | None]) -> np.ndarray | None:
    return a.reshape(1) if a.ndim == 0 and rest[0] in ([0], [-1]) else None


def _cast(node: ir.Node, a: np.ndarray, rest: list[list[int] | None]) -> np.ndarray | None:
    return a if attr_int(node, "to", 0) in (ir.DataType.INT64, ir.DataType.INT32) else None


_MOVES: dict[str, Callable[[ir.Node, np.ndarray, list[list[int] | None]], np.ndarray | None]] = {
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}


def _fix_target(model: Model, node: ir.Node, known: dict[ir.Value, np.ndarray]) -> bool:
    """Give a Reshape a constant target: 0 copies a symbolic dimension that stays in its place, -1 stands for one unknown entry."""
    data, target = node.inputs[0], node.inputs[1]
    if data is None or target not in known or attr_int(node, "allowzero", 0):
        return False
    dims = () if data.shape is None else tuple(d if isinstance(d, int) else d.value for d in data.shape)
    entries: list[int] = []
    for axis, entry in enumerate(known[target].tolist()):
        if isinstance(entry, int):
            entries.append(entry)
        else:
            stays = entry is not None and axis < len(dims) and dims[axis] == entry
            entries.append(0 if stays else -1)
    if entries.count(-1) > 1 or all(isinstance(e, int) for e in known[target].flat):
        return False
    if any(e == 0 for e in known[target].flat):
        return False
    node.replace_input_with(1, new_initializer(model.graph, f"{node.name}_target", np.array(entries, np.int64)))
    return True
