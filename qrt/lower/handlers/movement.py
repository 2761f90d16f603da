"""Handlers of ops that rename, cut, join and repeat: shapes, Reshape, Transpose, Slice, Split, Concat, Pad, Expand, DepthToSpace."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import ModelError
from qrt.graph import attr_int, attr_ints, attr_str, ir
from qrt.lower.handlers.products import code_qparams, requantized
from qrt.lower.handlers.reading import axis_of, common_layout, optional, required, sized
from qrt.lower.lowering import Handler, Lowering, NotNative, Tensor, identity
from qrt.ops.movement import Concat, Expand, Pad, Slice, Transpose
from qrt.ops.op import View

__all__ = ["HANDLERS", "view"]

# A constant of more bytes than this does not come from a sound model.
MAX_CONSTANT_BYTES = 1 << 31


# -- views ------------------------------------------------------------------------------------------------------------------
def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest pairing of neighbouring axes of `old` with neighbouring axes of `new` that have the same product."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        source: list[int] = []
        target: list[int] = []
        have = want = 1
        while not (source or target) or have != want:
            if j == len(new) or (i < len(old) and have <= want):
                have *= old[i]
                source.append(i)
                i += 1
            else:
                want *= new[j]
                target.append(j)
                j += 1
        groups.append((source, target))
    return groups


def _regrouped(perm: tuple[int, ...], old: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """The layout in which the bytes of a value of shape `old` and layout `perm` are one of shape `new`; None if there is none."""
    order = [axis for axis in perm if old[axis] != 1]
    keys, last = [], -1
    groups = _groups(old, new)
    for source, _ in groups:
        axes = [axis for axis in source if old[axis] != 1]
        if axes:
            last = order.index(axes[0])
            if order[last : last + len(axes)] != axes:
                return None
        keys.append(last)
    return tuple(axis for k in sorted(range(len(groups)), key=keys.__getitem__) for axis in groups[k][1])


def view(low: Lowering, value: ir.Value, shape: Sequence[int]) -> Tensor:
    """`value` under another logical shape. Bytes move only if its layout splits axes that the shape joins."""
    shape, old = tuple(shape), low.shape(value)
    if prod(shape) != prod(old):
        raise ModelError(f"node {low.node.name if low.node else ''!r}: {value.name!r} of shape {old} cannot be given the shape {shape}")
    perm = _regrouped(low.perm(value), old, shape) if prod(shape) else None
    index = low.get(value) if perm is None else low.get(value, low.perm(value))
    perm = identity(len(shape)) if perm is None else perm
    physical = tuple(shape[axis] for axis in perm)
    if low.program.specs[index].shape != physical:
        index = low.call(View(physical), [index])[0]
    return Tensor(index, perm)


def _bind_view(low: Lowering, node: ir.Node, shape: Sequence[int]) -> None:
    tensor = view(low, required(node), shape)
    low.bind(node.outputs[0], tensor.value, tensor.perm)


def _reshape(low: Lowering, node: ir.Node) -> None:
    old = low.shape(required(node))
    wanted = [int(n) for n in low.require_const(node.inputs[1], "the shape").ravel()]
    if not attr_int(node, "allowzero", 0):
        if any(n == 0 and k >= len(old) for k, n in enumerate(wanted)):
            raise ModelError(f"node {node.name!r}: the shape {wanted} keeps an axis that a value of shape {old} does not have")
        wanted = [old[k] if n == 0 else n for k, n in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = prod(n for n in wanted if n != -1)
        if rest == 0 or prod(old) % rest:
            raise ModelError(f"node {node.name!r}: a value of shape {old} cannot be given the shape {wanted}")
        wanted[wanted.index(-1)] = prod(old) // rest
    if any(n < 0 for n in wanted):
        raise ModelError(f"node {node.name!r}: {wanted} is not a shape")
    _bind_view(low, node, wanted)


def _flatten(low: Lowering, node: ir.Node) -> None:
    shape = low.shape(required(node))
    axis = attr_int(node, "axis", 1)
    axis = axis if axis == len(shape) else axis_of(node, axis, max(len(shape), 1))
    _bind_view(low, node, (prod(shape[:axis]), prod(shape[axis:])))


def _squeeze(low: Lowering, node: ir.Node) -> None:
    shape = low.shape(required(node))
    axes = optional(node, 1)
    if axes is None:
        dropped = {k for k, n in enumerate(shape) if n == 1}
    else:
        dropped = {axis_of(node, int(axis), len(shape)) for axis in low.require_const(axes, "the list of axes").ravel()}
        if any(shape[axis] != 1 for axis in dropped):
            raise ModelError(f"node {node.name!r}: axes {sorted(dropped)} of a value of shape {shape} are not all 1")
    _bind_view(low, node, [n for k, n in enumerate(shape) if k not in dropped])


def _unsqueeze(low: Lowering, node: ir.Node) -> None:
    shape = low.shape(required(node))
    axes = low.require_const(node.inputs[1], "the list of axes").ravel()
    rank = len(shape) + len(axes)
    added = {axis_of(node, int(axis), rank) for axis in axes}
    if len(added) != len(axes):
        raise ModelError(f"node {node.name!r}: axes {axes.tolist()} are not distinct")
    rest = iter(shape)
    _bind_view(low, node, [1 if k in added else next(rest) for k in range(rank)])


def _transpose(low: Lowering, node: ir.Node) -> None:
    rank = len(low.shape(required(node)))
    axes = attr_ints(node, "perm", tuple(range(rank))[::-1])
    if sorted(axes) != list(range(rank)):
        raise ModelError(f"node {node.name!r}: {axes} does not permute {rank} axes")
    low.rename(required(node), node.outputs[0], axes)


# -- constants of shapes ----------------------------------------------------------------------------------------------------
def _shape(low: Lowering, node: ir.Node) -> None:
    shape = low.shape(required(node))
    bounds = slice(attr_int(node, "start", 0), attr_int(node, "end", len(shape)))
    low.bind_const(node.outputs[0], np.array(shape[bounds], np.int64))


def _size(low: Lowering, node: ir.Node) -> None:
    low.bind_const(node.outputs[0], np.array(prod(low.shape(required(node))), np.int64))


def _constant_of_shape(low: Lowering, node: ir.Node) -> None:
    shape = [int(n) for n in low.require_const(node.inputs[0], "the shape").ravel()]
    attr = node.attributes.get("value")
    value = np.zeros(1, np.float32) if attr is None else attr.as_tensor().numpy()
    if any(n < 0 for n in shape) or value.size != 1 or prod(shape) * value.itemsize > MAX_CONSTANT_BYTES:
        raise ModelError(f"node {node.name!r}: no constant of {value.size} element has the shape {shape}")
    low.bind_const(node.outputs[0], np.full(shape, value.ravel()[0], value.dtype))


def _range(low: Lowering, node: ir.Node) -> None:
    start, limit, delta = (low.require_const(node.inputs[k], "the range").reshape(()) for k in range(3))
    count = max(0, int(np.ceil((float(limit) - float(start)) / float(delta)))) if delta else 0
    if not delta or count * start.itemsize > MAX_CONSTANT_BYTES:
        raise ModelError(f"node {node.name!r}: no range goes from {start} to {limit} in steps of {delta}")
    low.bind_const(node.outputs[0], (start + np.arange(count).astype(start.dtype) * delta).astype(start.dtype))


# -- cutting and joining ----------------------------------------------------------------------------------------------------
def _cut(low: Lowering, value: ir.Value, target: ir.Value, starts: Sequence[int], shape: Sequence[int], strides: Sequence[int]) -> None:
    """Binds `target` to the part of `value` that Slice describes; the arguments are in logical order."""
    perm = low.perm(sized(low, value))
    order = [tuple(numbers[axis] for axis in perm) for numbers in (starts, shape, strides)]
    low.bind(target, low.call(Slice(*order), [low.get(value, perm)])[0], perm)


def _slice(low: Lowering, node: ir.Node) -> None:
    extents = low.shape(required(node))
    starts, ends = (low.require_const(node.inputs[k], "the bounds").ravel() for k in (1, 2))
    axes, steps = optional(node, 3), optional(node, 4)
    which = np.arange(len(starts)) if axes is None else low.require_const(axes, "the list of axes").ravel()
    strides = np.ones(len(starts), np.int64) if steps is None else low.require_const(steps, "the steps").ravel()
    if not len(starts) == len(ends) == len(which) == len(strides) or not strides.all():
        raise ModelError(f"node {node.name!r}: starts {starts}, ends {ends}, axes {which} and steps {strides} do not fit one another")
    begin, shape, stride = [0] * len(extents), list(extents), [1] * len(extents)
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), which.tolist(), strides.tolist(), strict=True):
        axis = axis_of(node, axis, len(extents))
        # Both bounds count from the end where they are negative; a walk backwards begins at the first element at the earliest.
        n = extents[axis]
        walk = range(n)[max(start, -n) if step < 0 else start : end : step]
        begin[axis], shape[axis], stride[axis] = (walk.start if len(walk) else 0), len(walk), walk.step
    _cut(low, required(node), node.outputs[0], begin, shape, stride)


def _split(low: Lowering, node: ir.Node) -> None:
    extents = low.shape(required(node))
    axis = axis_of(node, attr_int(node, "axis", 0), len(extents))
    given, count = optional(node, 1), len(node.outputs)
    if given is not None:
        sizes = [int(n) for n in low.require_const(given, "the sizes of the parts").ravel()]
    else:
        chunk = -(-extents[axis] // count)
        sizes = [max(0, min(chunk, extents[axis] - k * chunk)) for k in range(count)]
    if len(sizes) != count or sum(sizes) != extents[axis] or min(sizes) < 0:
        raise ModelError(f"node {node.name!r}: axis {axis} of a value of shape {extents} is not made of {count} parts of sizes {sizes}")
    begin = 0
    for target, n in zip(node.outputs, sizes, strict=True):
        starts, shape = [0] * len(extents), list(extents)
        starts[axis], shape[axis] = begin if n else 0, n
        if target.name:
            _cut(low, required(node), target, starts, shape, [1] * len(extents))
        begin += n


def _concat(low: Lowering, node: ir.Node) -> None:
    values = [sized(low, required(node, k)) for k in range(len(node.inputs))]
    axis = axis_of(node, attr_int(node, "axis", 0), len(low.shape(values[0])))
    if len({len(low.shape(v)) for v in values}) > 1:
        raise ModelError(f"node {node.name!r}: values of shapes {[low.shape(v) for v in values]} cannot be joined")
    perm = common_layout(low, values)
    low.bind(node.outputs[0], low.call(Concat(perm.index(axis)), [low.get(v, perm) for v in values])[0], perm)


def _qconcat(low: Lowering, node: ir.Node) -> None:
    values = [required(node, k) for k in range(2, len(node.inputs), 3)]
    if any(low.dtype(value) != np.uint8 for value in values):
        raise ModelError(f"node {node.name!r}: codes of dtypes {[str(low.dtype(value)) for value in values]}: expected uint8")
    axis = axis_of(node, attr_int(node, "axis", 0), len(low.shape(values[0])))
    perm, wanted = common_layout(low, values), code_qparams(low, node, 0)
    parts = [requantized(low, node, low.get(v, perm), code_qparams(low, node, 3 * k + 3), wanted) for k, v in enumerate(values)]
    low.bind(node.outputs[0], low.call(Concat(perm.index(axis)), parts)[0], perm)


def _pad(low: Lowering, node: ir.Node) -> None:
    value = sized(low, required(node))
    rank, perm, mode = len(low.shape(value)), low.perm(value), attr_str(node, "mode", "constant")
    if mode not in ("constant", "edge", "reflect"):
        raise NotNative(f"padding in mode {mode!r}")
    pads = low.require_const(node.inputs[1], "the padding").ravel().tolist()
    given = optional(node, 3)
    axes = (
        list(range(rank)) if given is None else [axis_of(node, int(a), rank) for a in low.require_const(given, "the list of axes").ravel()]
    )
    if len(pads) != 2 * len(axes):
        raise ModelError(f"node {node.name!r}: {len(pads)} widths of padding for {len(axes)} axes")
    before, after = [0] * rank, [0] * rank
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    inputs = [low.get(value, perm)]
    if min(pads, default=0) < 0:  # takes elements away, before others are put there
        starts = tuple(max(0, -before[axis]) for axis in perm)
        shape = tuple(low.shape(value)[axis] - start - max(0, -after[axis]) for axis, start in zip(perm, starts, strict=True))
        if min(shape) < 0:
            raise ModelError(f"node {node.name!r}: padding by {pads} takes more than there is of a value of shape {low.shape(value)}")
        inputs = [low.call(Slice(starts, shape, (1,) * rank), inputs)[0]]
        before, after = [max(0, n) for n in before], [max(0, n) for n in after]
    if mode == "constant":
        filler = optional(node, 2)
        inputs.append(low.constant(np.zeros((), low.dtype(value))) if filler is None else low.get(filler))
    op = Pad(tuple(before[axis] for axis in perm), tuple(after[axis] for axis in perm), mode)
    low.bind(node.outputs[0], low.call(op, inputs)[0], perm)


# -- repeating and rearranging ----------------------------------------------------------------------------------------------
def _expand(low: Lowering, node: ir.Node) -> None:
    value = sized(low, required(node))
    wanted = tuple(int(n) for n in low.require_const(node.inputs[1], "the shape").ravel())
    try:
        shape = np.broadcast_shapes(low.shape(value), wanted)
    except ValueError as error:
        raise ModelError(f"node {node.name!r}: a value of shape {low.shape(value)} cannot be expanded to {wanted}") from error
    tensor = view(low, value, (1,) * (len(shape) - len(low.shape(value))) + low.shape(value))
    physical = tuple(shape[axis] for axis in tensor.perm)
    index = tensor.value if low.program.specs[tensor.value].shape == physical else low.call(Expand(physical), [tensor.value])[0]
    low.bind(node.outputs[0], index, tensor.perm)


def _tile(low: Lowering, node: ir.Node) -> None:
    value = sized(low, required(node))
    perm = low.perm(value)
    repeats = [int(n) for n in low.require_const(node.inputs[1], "the repeats").ravel()]
    if len(repeats) != len(perm) or min(repeats, default=0) < 0:
        raise ModelError(f"node {node.name!r}: {repeats} does not say how often to repeat each axis of {low.shape(value)}")
    pairs = [(repeats[axis], low.shape(value)[axis]) for axis in perm]
    index = low.call(View(tuple(n for _, extent in pairs for n in (1, extent))), [low.get(value, perm)])[0]
    index = low.call(Expand(tuple(n for pair in pairs for n in pair)), [index])[0]
    low.bind(node.outputs[0], low.call(View(tuple(a * b for a, b in pairs)), [index])[0], perm)


def _image(low: Lowering, node: ir.Node) -> tuple[int, tuple[int, ...], int]:
    """The input channels-last, its shape so, and the block size."""
    if len(low.shape(required(node))) != 4 or attr_int(node, "blocksize", 0) < 1 or attr_str(node, "mode", "DCR") not in ("DCR", "CRD"):
        raise ModelError(f"node {node.name!r}: {node.op_type} needs an image (N, C, H, W), a block size ≥ 1 and a mode DCR or CRD")
    index = low.image(sized(low, required(node)))
    return index, low.program.specs[index].shape, attr_int(node, "blocksize", 0)


def _rearrange(low: Lowering, node: ir.Node, index: int, split: tuple[int, ...], perm: tuple[int, ...], joined: tuple[int, ...]) -> None:
    index = low.call(View(split), [index])[0]
    index = low.call(Transpose(perm), [index])[0]
    low.bind_image(node.outputs[0], low.call(View(joined), [index])[0])


def _depth_to_space(low: Lowering, node: ir.Node) -> None:
    index, (n, h, w, c), b = _image(low, node)
    if c % (b * b):
        raise ModelError(f"node {node.name!r}: {c} channels are not made of blocks of {b} × {b}")
    joined = (n, h * b, w * b, c // (b * b))
    if attr_str(node, "mode", "DCR") == "DCR":
        _rearrange(low, node, index, (n, h, w, b, b, joined[3]), (0, 1, 3, 2, 4, 5), joined)
    else:
        _rearrange(low, node, index, (n, h, w, joined[3], b, b), (0, 1, 4, 2, 5, 3), joined)


def _space_to_depth(low: Lowering, node: ir.Node) -> None:
    index, (n, h, w, c), b = _image(low, node)
    if h % b or w % b:
        raise ModelError(f"node {node.name!r}: an image of {h} × {w} is not made of blocks of {b} × {b}")
    perm = (0, 1, 3, 2, 4, 5) if attr_str(node, "mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    _rearrange(low, node, index, (n, h // b, b, w // b, b, c), perm, (n, h // b, w // b, b * b * c))


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "Concat"): _concat,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "DepthToSpace"): _depth_to_space,
    ("", "Expand"): _expand,
    ("", "Flatten"): _flatten,
    ("", "Pad"): _pad,
    ("", "Range"): _range,
    ("", "Reshape"): _reshape,
    ("", "Shape"): _shape,
    ("", "Size"): _size,
    ("", "Slice"): _slice,
    ("", "SpaceToDepth"): _space_to_depth,
    ("", "Split"): _split,
    ("", "Squeeze"): _squeeze,
    ("", "Tile"): _tile,
    ("", "Transpose"): _transpose,
    ("", "Unsqueeze"): _unsqueeze,
    ("ai.qrt", "QConcat"): _qconcat,
}
