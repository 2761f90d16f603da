"""Handlers of pooling; resizing has a file of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qrt.core.errors import ModelError
from qrt.graph import attr_int, attr_ints, ir
from qrt.lower.handlers import resize
from qrt.lower.handlers.convolution import window
from qrt.lower.handlers.products import QRT, scalar
from qrt.lower.handlers.reading import optional, required
from qrt.lower.lowering import Handler, Lowering, NotNative
from qrt.ops.conv import Window
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
    if low.dtype(required(node)) not in (np.float32, np.uint8, np.int8):
        raise NotNative(f"pooling of {low.dtype(required(node))}")
    op = MaxPool(_window(low, node)[0])
    low.bind_image(node.outputs[0], low.call(op, [low.image(required(node))])[0])


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


HANDLERS: dict[tuple[str, str], Handler] = {
    **resize.HANDLERS,
    ("", "AveragePool"): _average_pool,
    ("", "MaxPool"): _max_pool,
    (QRT, "QAveragePool"): _average_pool,
    (QRT, "QGlobalAveragePool"): _global_average_of_codes,
}
