"""Handlers of pooling, of boxes in images and of local response normalization; resizing has a file of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qrt.core.errors import ModelError
from qrt.graph import attr_float, attr_int, attr_ints, attr_str, ir
from qrt.lower.handlers.convolution import window
from qrt.lower.handlers.products import QRT, scalar
from qrt.lower.handlers.reading import optional, required
from qrt.lower.lowering import Handler, Lowering, NotNative
from qrt.ops.conv import Window
from qrt.ops.detection import RoiAlign
from qrt.ops.elementwise import Binary, Cast
from qrt.ops.movement import Pad, Slice
from qrt.ops.pool import AveragePool, MaxPool, QAveragePool

__all__ = ["HANDLERS"]


def _window(low: Lowering, node: ir.Node) -> tuple[Window, tuple[int, ...]]:
    """The node's window, with rows added at the ends where its extents are rounded up, and the pads without them."""
    space = low.shape(required(node))[2:]
    kernel = attr_ints(node, "kernel_shape")
    if len(kernel) != len(space) or not kernel:
        raise ModelError(f"node {node.name!r}: a kernel {kernel} does not fit an image of shape {low.shape(required(node))}")
    look = window(node, space, kernel)
    if attr_int(node, "ceil_mode", 0) != 1:
        return look, look.pads
    rank, pads = len(kernel), list(look.pads)
    for k, n in enumerate(space):
        begin, end, stride = pads[k], pads[k + rank], look.strides[k]
        reach = (look.kernel[k] - 1) * look.dilations[k] + 1
        out = -(-(n + begin + end - reach) // stride) + 1
        # A window that would start behind the image and its padding at the beginning is left out.
        if (out - 1) * stride >= n + begin:
            out -= 1
        pads[k + rank] = max(end, (out - 1) * stride + reach - n - begin)
    return replace(look, pads=tuple(pads)), look.pads


def _pooled(low: Lowering, node: ir.Node) -> None:
    if len(low.shape(required(node))) not in (3, 4, 5):
        raise NotNative(f"pooling of a value of shape {low.shape(required(node))}")


def _max_pool(low: Lowering, node: ir.Node) -> None:
    _pooled(low, node)
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise NotNative("the indices of the largest elements")
    dtype, op = low.dtype(required(node)), MaxPool(_window(low, node)[0])
    if dtype not in (np.float32, np.uint8, np.int8, np.uint16, np.int16):
        raise NotNative(f"pooling of {dtype}")
    index = low.image(required(node))
    if dtype.itemsize == 2:  # no kernel: float32 holds 16 bits exactly
        index = low.call(Cast(dtype.name), low.call(op, low.call(Cast("float32"), [index])))[0]
    else:
        index = low.call(op, [index])[0]
    low.bind_image(node.outputs[0], index)


def _average_pool(low: Lowering, node: ir.Node) -> None:
    _pooled(low, node)
    look, pads = _window(low, node)
    counted = pads if attr_int(node, "count_include_pad", 0) else None
    if node.domain == QRT:
        low.bind_image(node.outputs[0], low.call(_codes(low, node, look, counted), [low.image(required(node))])[0])
        return
    if low.dtype(required(node)) != np.float32:
        raise NotNative(f"averages of {low.dtype(required(node))}")
    low.bind_image(node.outputs[0], low.call(AveragePool(look, counted), [low.image(required(node))])[0])


def _codes(low: Lowering, node: ir.Node, look: Window, counted: tuple[int, ...] | None) -> QAveragePool:
    x_scale, x_point, y_scale, y_point = (scalar(low, optional(node, k), "scale or zero point") for k in range(1, 5))
    bounds = attr_int(node, "qmin", 0), attr_int(node, "qmax", 255)
    return QAveragePool(look, counted, x_scale, int(x_point), y_scale, int(y_point), *bounds)


def _global_average_of_codes(low: Lowering, node: ir.Node) -> None:
    _pooled(low, node)
    space = low.shape(required(node))[2:]
    rank = len(space)
    look = Window(space, (1,) * rank, (1,) * rank, (0,) * (2 * rank))
    low.bind_image(node.outputs[0], low.call(_codes(low, node, look, None), [low.image(required(node))])[0])


def _lrn(low: Lowering, node: ir.Node) -> None:
    """y = x / (bias + alpha / size · Σ x²)^beta, the sum over `size` neighbouring channels: their slices are added in order."""
    x = required(node)
    if low.dtype(x) != np.float32:
        raise NotNative(f"a response normalized over {low.dtype(x)}")
    size, perm = attr_int(node, "size", 0), low.perm(x)
    if size < 1 or len(perm) < 2:
        raise ModelError(f"node {node.name!r}: {size} channels of a value of shape {low.shape(x)}")
    index, axis = low.get(x, perm), perm.index(1)
    shape = low.program.specs[index].shape

    def along(n: int) -> tuple[int, ...]:
        return tuple(n if k == axis else 0 for k in range(len(perm)))

    def number(value: float) -> int:
        return low.constant(np.full((1,) * len(perm), value, np.float32))

    last = max(shape[axis] - 1, 0)
    before, after = min((size - 1) // 2, last), min(size // 2, last)
    squares = low.call(Binary("mul"), [index, index])[0]
    padded = low.call(Pad(along(before), along(after), "constant"), [squares, low.constant(np.zeros((), np.float32))])[0]
    total, *rest = (low.call(Slice(along(k), shape, (1,) * len(perm)), [padded])[0] for k in range(before + after + 1))
    for part in rest:
        total = low.call(Binary("add"), [total, part])[0]
    scaled = low.call(Binary("mul"), [total, number(attr_float(node, "alpha", 1e-4) / size)])[0]
    scaled = low.call(Binary("add"), [scaled, number(attr_float(node, "bias", 1.0))])[0]
    scaled = low.call(Binary("pow"), [scaled, number(attr_float(node, "beta", 0.75))])[0]
    low.bind(node.outputs[0], low.call(Binary("div"), [index, scaled])[0], perm)


def _roi_align(low: Lowering, node: ir.Node) -> None:
    mode, corners = attr_str(node, "mode", "avg"), attr_str(node, "coordinate_transformation_mode", "half_pixel")
    if mode not in ("avg", "max") or corners not in ("half_pixel", "output_half_pixel"):
        raise ModelError(f"node {node.name!r}: RoiAlign has no mode {mode!r}, or no coordinates {corners!r}")
    op = RoiAlign(
        mode == "max",
        attr_int(node, "output_height", 1),
        attr_int(node, "output_width", 1),
        attr_int(node, "sampling_ratio", 0),
        attr_float(node, "spatial_scale", 1.0),
        corners == "half_pixel",
    )
    inputs = [low.image(required(node)), low.get(required(node, 1)), low.get(required(node, 2))]
    low.bind_image(node.outputs[0], low.call(op, inputs)[0])


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "AveragePool"): _average_pool,
    ("", "LRN"): _lrn,
    ("", "MaxPool"): _max_pool,
    ("", "RoiAlign"): _roi_align,
    (QRT, "QAveragePool"): _average_pool,
    (QRT, "QGlobalAveragePool"): _global_average_of_codes,
}
