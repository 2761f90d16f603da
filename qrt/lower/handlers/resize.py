"""Handlers of Resize and QResize: where each output element lies on the input, axis by axis. And of GridSample and AffineGrid."""

from __future__ import annotations

import numpy as np

from qrt.core.errors import ModelError
from qrt.graph import attr_int, attr_ints, attr_str, ir
from qrt.lower.handlers.products import QRT, code_qparams, requantized
from qrt.lower.handlers.reading import axis_of, optional, required, sized
from qrt.lower.lowering import Handler, Lowering, NotNative, channels_last
from qrt.ops.gemm import BatchedMatMul, Float
from qrt.ops.op import Array, View
from qrt.ops.quantization import Dequantize, Quantize
from qrt.ops.resize import Linear, Nearest, QLinear, Sample
from qrt.ops.resize.sample import MODES, PADDINGS

__all__ = ["HANDLERS"]

F32 = np.float32


def _extents(low: Lowering, node: ir.Node, first: int) -> dict[int, tuple[int, np.float32]]:
    """For each axis that changes, its new extent and its scale. `first`: which input holds the scales; the sizes follow."""
    shape = low.shape(required(node))
    axes = [axis_of(node, a, len(shape)) for a in attr_ints(node, "axes", tuple(range(len(shape))))]
    scales, sizes = optional(node, first), optional(node, first + 1)
    found: dict[int, tuple[int, np.float32]] = {}
    given = low.require_const(scales, "the scales") if scales is not None else np.empty(0, F32)
    if given.size:
        numbers = [(int(np.floor(F32(shape[a]) * s)), F32(s)) for a, s in zip(axes, given.astype(F32), strict=False)]
    elif sizes is not None:
        if attr_str(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            raise NotNative("sizes that keep the aspect ratio")
        wanted = low.require_const(sizes, "the sizes")
        numbers = [(int(m), F32(m) / F32(max(shape[a], 1))) for a, m in zip(axes, wanted, strict=False)]
    else:
        raise ModelError(f"node {node.name!r}: Resize has neither scales nor sizes")
    if len(numbers) != len(axes) or any(
        m < 0 or not 0 < s < np.inf or shape[a] == 0 for a, (m, s) in zip(axes, numbers, strict=False) if s != 1
    ):
        raise ModelError(f"node {node.name!r}: a value of shape {shape} cannot be resized along axes {axes} to (extent, scale) {numbers}")
    for axis, (extent, scale) in zip(axes, numbers, strict=True):
        if extent != shape[axis] or scale != 1:
            found[axis] = (extent, scale)
    return found


def _places(node: ir.Node, n: int, m: int, scale: np.float32) -> Array:
    """Where each of m elements lies on an axis of n, in float32 as ONNX Runtime computes it."""
    mode, at = attr_str(node, "coordinate_transformation_mode", "half_pixel"), np.arange(m, dtype=F32)
    half_pixel = (at + F32(0.5)) / scale - F32(0.5)
    if mode == "half_pixel":
        return half_pixel
    if mode == "pytorch_half_pixel":
        return half_pixel if m > 1 else np.zeros(m, F32)
    if mode == "half_pixel_symmetric":
        return F32(n / 2) * (F32(1) - F32(m) / (scale * F32(n))) + half_pixel
    if mode == "align_corners":
        return at * F32(n - 1) / F32(m - 1) if m > 1 else np.zeros(m, F32)
    if mode == "asymmetric":
        return at / scale
    raise NotNative(f"coordinate transformation {mode!r}")


def _rounded(node: ir.Node, places: Array, n: int) -> Array:
    """The nearest element of each place."""
    mode = attr_str(node, "nearest_mode", "round_prefer_floor")
    if mode == "round_prefer_floor":
        nearest = np.ceil(places - F32(0.5))
    elif mode == "round_prefer_ceil":
        nearest = np.floor(places + F32(0.5))
    elif mode in ("floor", "ceil"):
        nearest = np.floor(places) if mode == "floor" else np.ceil(places)
    else:
        raise NotNative(f"nearest mode {mode!r}")
    return np.clip(nearest, 0, n - 1).astype(np.int64)


def _resize(low: Lowering, node: ir.Node) -> None:
    value = sized(low, required(node))
    mode, codes = attr_str(node, "mode", "nearest"), node.domain == QRT
    if mode not in ("nearest", "linear") or attr_int(node, "antialias", 0):
        raise NotNative(f"resizing in mode {mode!r}, antialias {attr_int(node, 'antialias', 0)}")
    shape = low.shape(value)
    extents = _extents(low, node, 6 if codes else 2)
    # Space axes first wanted together; any other layout stays as it is.
    perm = channels_last(len(shape)) if all(axis > 1 for axis in extents) else low.perm(value)
    places: dict[int, Array] = {}
    for axis, (m, scale) in extents.items():
        found = _places(node, shape[axis], m, scale)
        places[perm.index(axis)] = _rounded(node, found, shape[axis]) if mode == "nearest" else np.clip(found, F32(0), F32(shape[axis] - 1))
    index = low.get(value, perm)
    if codes:
        index = _codes(low, node, index, places, mode)
    else:
        index = _pairs(low, index, places, mode)
    low.bind(node.outputs[0], index, perm)


def _pairs(low: Lowering, index: int, places: dict[int, Array], mode: str) -> int:
    """Resizes all axes of `places`."""
    while places:
        index = _pair(low, index, places, mode)
    return index


def _pair(low: Lowering, index: int, places: dict[int, Array], mode: str) -> int:
    """Resizes the last axis of `places`, with the one before it if that is there too, and takes them out."""
    physical = low.program.specs[index].shape
    last = max(places)
    columns = tuple(places.pop(last).tolist())
    first = last - 1
    rows = tuple(places.pop(first).tolist()) if first in places else None
    if rows is None:
        # An axis of its own: the one before it is an axis of 1, put there for the op.
        index = low.call(View((*physical[:last], 1, *physical[last:])), [index])[0]
        rows, first = (0,), last
    index = low.call(Nearest(first, rows, columns) if mode == "nearest" else Linear(first, rows, columns), [index])[0]
    resized = (*physical[:last], len(columns), *physical[last + 1 :])
    return index if first != last else low.call(View(resized), [index])[0]


def _codes(low: Lowering, node: ir.Node, index: int, places: dict[int, Array], mode: str) -> int:
    """Resizes codes in one rounding: by an op of codes where two neighbouring axes change, else as float32 in between."""
    given, wanted = code_qparams(low, node, 1), code_qparams(low, node, 3)
    if mode == "nearest":
        return _pairs(low, requantized(low, node, index, given, wanted), places, mode)
    bounds = attr_int(node, "qmin", 0), attr_int(node, "qmax", 255)
    physical = low.program.specs[index].shape
    first = min(min(places, default=0), len(physical) - 2)
    if set(places) <= {first, first + 1}:
        rows, columns = (tuple(map(float, places.get(axis, np.arange(physical[axis])).tolist())) for axis in (first, first + 1))
        numbers = (given.scale.item(), given.zero_point.item(), wanted.scale.item(), wanted.zero_point.item())
        return low.call(QLinear(first, rows, columns, *numbers, *bounds), [index])[0]
    index = _pairs(low, low.call(Dequantize(given), [index])[0], places, mode)
    return low.call(Quantize(wanted, *bounds), [index])[0]


def _grid_sample(low: Lowering, node: ir.Node) -> None:
    x, grid = required(node), required(node, 1)
    mode, padding = attr_str(node, "mode", "linear"), attr_str(node, "padding_mode", "zeros")
    if len(low.shape(x)) != 4:
        raise NotNative(f"sampling a value of shape {low.shape(x)}")
    if mode not in MODES or padding not in PADDINGS:
        raise ModelError(f"node {node.name!r}: GridSample has no mode {mode!r}, or no padding {padding!r}")
    op = Sample(mode, padding, bool(attr_int(node, "align_corners", 0)))
    low.bind_image(node.outputs[0], low.call(op, [low.image(x), low.get(grid)])[0])


def _affine_grid(low: Lowering, node: ir.Node) -> None:
    """theta (n, d, d + 1) times the places of all pixels, from −1 to 1: (n, …, d), the last axis of space first."""
    theta, align = required(node), bool(attr_int(node, "align_corners", 0))
    size = [int(n) for n in low.require_const(required(node, 1), "the size").ravel()]
    shape, extents = low.shape(theta), size[2:]
    if low.dtype(theta) != F32 or min(size, default=0) < 1:
        raise NotNative(f"a grid of {low.dtype(theta)} for images of shape {size}")
    if len(size) not in (4, 5) or shape != (size[0], len(extents), len(extents) + 1):
        raise ModelError(f"node {node.name!r}: AffineGrid of shape {size} by matrices of shape {shape}")
    along = [np.linspace(-1, 1, n) if align and n > 1 else (2 * np.arange(n) + 1 - n) / n for n in extents]
    places = np.stack([*np.meshgrid(*along, indexing="ij")[::-1], np.ones(extents)], axis=-1).astype(F32)
    points = low.constant(places.reshape(-1, len(extents) + 1))
    op = BatchedMatMul(Float(), (0, 1), (0, 2, 1), (0, 1, 2), None)
    y = low.call(op, [points, low.get(theta)])[0]
    low.bind(node.outputs[0], low.call(View((size[0], *extents, len(extents))), [y])[0])


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "AffineGrid"): _affine_grid,
    ("", "GridSample"): _grid_sample,
    ("", "Resize"): _resize,
    (QRT, "QResize"): _resize,
}
