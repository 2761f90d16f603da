"""The types of what If, Loop and Scan make, from the graphs that they carry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from qrt.core.errors import ModelError
from qrt.graph.nodes import all_graphs, attr_int, attr_ints

__all__ = ["BODY_OPS", "infer_bodies"]

_Infer = Callable[[ir.Graph], bool]
_Dims = tuple[int | str | None, ...]


def infer_bodies(node: ir.Node, infer: _Infer) -> None:
    """Infer the graphs that `node` carries, with `infer`, and set the types of its outputs. Raises ModelError where they do not fit it."""
    BODY_OPS[node.op_type](node, infer)


def _if(node: ir.Node, infer: _Infer) -> None:
    branches = [attr.as_graph() for attr in node.attributes.values() if attr.type == ir.AttributeType.GRAPH]
    for branch in branches:
        infer(branch)
        _expect(node, len(branch.outputs) == len(node.outputs), "a branch has another number of outputs")
    for k, output in enumerate(node.outputs):
        made = [branch.outputs[k] for branch in branches]
        output.type = made[0].type
        _expect(node, all(v.dtype == output.dtype for v in made), f"the branches make {output.name!r} with different types")
        output.shape = _shape(_common([_dims(v) for v in made]))


def _loop(node: ir.Node, infer: _Infer) -> None:
    """Carried values keep a shape if the body, given it, makes it again: then every turn does."""
    body = node.attributes["body"].as_graph()
    carried = node.inputs[2:]
    _expect(node, len(body.inputs) == len(carried) + 2, "its body has another number of inputs")
    _expect(
        node, len(body.outputs) == len(node.outputs) + 1 and len(node.outputs) >= len(carried), "its body has another number of outputs"
    )
    for value, dtype in zip(body.inputs[:2], (ir.DataType.INT64, ir.DataType.BOOL), strict=True):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(())
    shapes = _carry(node, body, body.inputs[2:], carried, body.outputs[1:], infer)
    for k, output in enumerate(node.outputs):
        made = body.outputs[k + 1]
        output.type = made.type
        if k < len(carried):
            output.shape = _shape(shapes[k])
        else:
            turns = _dims(made)
            output.shape = None if turns is None else _shape((None, *turns))


def _scan(node: ir.Node, infer: _Infer) -> None:
    body = node.attributes["body"].as_graph()
    scanned = attr_int(node, "num_scan_inputs", 0)
    states = len(node.inputs) - scanned
    _expect(node, states >= 0 and len(body.inputs) == len(node.inputs), "its body has another number of inputs")
    _expect(node, len(body.outputs) == len(node.outputs) >= states, "its body has another number of outputs")
    axes = attr_ints(node, "scan_input_axes", (0,) * scanned)
    length: int | str | None = None
    for value, source, axis in zip(body.inputs[states:], node.inputs[states:], axes, strict=False):
        dims = None if source is None else _dims(source)
        if source is None or dims is None:
            continue
        _expect(node, -len(dims) <= axis < len(dims), f"it scans axis {axis} of {source.name!r}, which has {len(dims)}")
        axis %= len(dims)
        length = dims[axis] if length is None else length
        value.type, value.shape = source.type, _shape(dims[:axis] + dims[axis + 1 :])
    shapes = _carry(node, body, body.inputs[:states], node.inputs[:states], body.outputs[:states], infer)
    out_axes = attr_ints(node, "scan_output_axes", (0,) * (len(node.outputs) - states))
    for k, output in enumerate(node.outputs):
        output.type = body.outputs[k].type
        if k < states:
            output.shape = _shape(shapes[k])
            continue
        dims, axis = _dims(body.outputs[k]), out_axes[k - states] if k - states < len(out_axes) else 0
        if dims is None:
            output.shape = None
            continue
        _expect(node, -len(dims) - 1 <= axis <= len(dims), f"it stacks {output.name!r} along axis {axis}, which it does not have")
        axis %= len(dims) + 1
        output.shape = _shape((*dims[:axis], length, *dims[axis:]))


def _carry(
    node: ir.Node,
    body: ir.Graph,
    formals: Sequence[ir.Value],
    initial: Sequence[ir.Value | None],
    made: Sequence[ir.Value],
    infer: _Infer,
) -> list[_Dims | None]:
    """Infer the body with the shapes that its carried values start with, then with fewer and fewer claims, until it keeps them."""
    starts = [None if v is None else _dims(v) for v in initial]
    for attempt in (starts, [None if d is None else (None,) * len(d) for d in starts], [None] * len(starts)):
        _forget(body)
        for formal, source, dims in zip(formals, initial, attempt, strict=True):
            if source is not None:
                formal.type, formal.shape = source.type, _shape(dims)
        infer(body)
        for formal, result in zip(formals, made, strict=False):
            _expect(node, formal.dtype == result.dtype or result.dtype is None, f"{formal.name!r} changes its type from turn to turn")
        if all(dims is None or _dims(v) == dims or (None in dims and _same_rank(v, dims)) for dims, v in zip(attempt, made, strict=False)):
            break
    return list(attempt)


def _same_rank(value: ir.Value, dims: _Dims) -> bool:
    known = _dims(value)
    return known is not None and len(known) == len(dims) and all(d is None or d == k for d, k in zip(dims, known, strict=True))


def _forget(body: ir.Graph) -> None:
    for graph in all_graphs(body):
        for node in graph:
            for value in node.outputs:
                value.shape = None


def _common(shapes: Sequence[_Dims | None]) -> _Dims | None:
    first = shapes[0]
    if first is None or any(s is None or len(s) != len(first) for s in shapes):
        return None
    return tuple(column[0] if len(set(column)) == 1 else None for column in zip(*(s for s in shapes if s is not None), strict=True))


def _dims(value: ir.Value) -> _Dims | None:
    return None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _shape(dims: Iterable[int | str | None] | None) -> ir.Shape | None:
    return None if dims is None else ir.Shape(dims)


def _expect(node: ir.Node, holds: bool, reason: str) -> None:
    if not holds:
        raise ModelError(f"node {node.name!r} ({node.op_type}) is ill-typed: {reason}; export the model again")


BODY_OPS: dict[str, Callable[[ir.Node, _Infer], None]] = {"If": _if, "Loop": _loop, "Scan": _scan}
