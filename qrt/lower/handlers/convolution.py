"""Conv, ConvTranspose and ConvInteger, in float and in the fused form."""

from __future__ import annotations

from collections.abc import Sequence

from qrt.core.errors import ModelError
from qrt.graph import attr_int, attr_ints, attr_str, ir
from qrt.lower.handlers import products
from qrt.lower.handlers.products import QRT
from qrt.lower.handlers.reading import optional
from qrt.lower.lowering import Handler, Lowering
from qrt.ops.conv import Conv, Depthwise, Window
from qrt.ops.gemm import Epilogue, Float, Int32, Weights
from qrt.ops.movement import Expand
from qrt.ops.op import Array, View

__all__ = ["HANDLERS", "window"]

# Up to here depthwise on repeated channels is faster than a product for each group, whose columns fill no vector: measured, 2 to 16 times.
MOST_REPEATS = 4


def window(node: ir.Node, space: Sequence[int], kernel: Sequence[int], transposed: bool = False) -> Window:
    """The node's window over an image of extents `space`; every way that ONNX spells padding becomes explicit."""
    rank = len(kernel)
    strides, dilations = attr_ints(node, "strides", (1,) * rank), attr_ints(node, "dilations", (1,) * rank)
    extra = attr_ints(node, "output_padding", (0,) * rank) if transposed else ()
    mode, reach = attr_str(node, "auto_pad", "NOTSET"), [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    wanted = attr_ints(node, "output_shape", ())
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ModelError(f"node {node.name!r}: no padding is called {mode!r}")
    if transposed and (wanted or mode in ("SAME_UPPER", "SAME_LOWER")):
        shape = wanted[-rank:] if wanted else tuple(n * s for n, s in zip(space, strides, strict=True))
        total = [max((n - 1) * s + e + r - o, 0) for n, s, e, r, o in zip(space, strides, extra, reach, shape, strict=True)]
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(space, strides, reach, strict=True)]
    else:
        pads = (0,) * (2 * rank) if mode == "VALID" else attr_ints(node, "pads", (0,) * (2 * rank))
        return Window(tuple(kernel), strides, dilations, pads, transposed, extra)
    # The odd pixel goes to the end for SAME_UPPER, else to the beginning (ConvTranspose's output_shape included).
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    pads = (*less, *more) if mode == "SAME_UPPER" else (*more, *less)
    return Window(tuple(kernel), strides, dilations, pads, transposed, extra)


def _weights(low: Lowering, node: ir.Node, w: int, points: int | None, bias: int, transposed: bool) -> tuple[Weights, tuple[int, ...]]:
    """The node's weights as [groups, taps, k, n] (inputs `w`, `points` and `bias`), and the kernel's extents.

    Groups that make a few channels of one become as many as there are channels in the result: depthwise, on repeated channels.
    """
    value = optional(node, w)
    shape = low.require_const(value, "weight").shape
    group = attr_int(node, "group", 1)
    if len(shape) < 3 or group < 1 or shape[0] % group or attr_ints(node, "kernel_shape", tuple(shape[2:])) != tuple(shape[2:]):
        raise ModelError(f"node {node.name!r}: weights of shape {list(shape)} do not fit its kernel_shape or its {group} groups")

    def lay(array: Array) -> Array:
        laid = array.reshape(group, shape[0] // group, shape[1], -1)
        laid = laid.transpose(0, 3, 1, 2) if transposed else laid.transpose(0, 3, 2, 1)
        _, taps, k, n = laid.shape
        return laid.transpose(0, 3, 1, 2).reshape(-1, taps, 1, 1) if group > 1 == k and n <= MOST_REPEATS else laid

    zero_points = optional(node, points) if points is not None else None
    return products.weights(low, value, zero_points, optional(node, bias), f"conv{group}{transposed}", lay), tuple(shape[2:])


def _convolve(
    low: Lowering,
    node: ir.Node,
    weights: Weights,
    kernel: tuple[int, ...],
    epilogue: Epilogue,
    zero_point: int,
    extra: list[int],
    transposed: bool,
) -> int:
    """Appends the convolution of input 0."""
    image = node.inputs[0]
    assert image is not None
    look = window(node, low.shape(image)[2:], kernel, transposed)
    groups, _, k, n = weights.w.shape
    x, zero_point = products.unsigned(low, low.image(image), zero_point)
    kind = Depthwise if k == n == 1 and groups > 1 else Conv
    if (multiplier := groups // attr_int(node, "group", 1)) > 1:
        x = _repeated(low, x, multiplier)
    return low.call(kind(look, weights, epilogue, zero_point), [x, *extra])[0]


def _repeated(low: Lowering, x: int, times: int) -> int:
    """Every channel of an image `times` times, one after the other."""
    *pixels, channels = low.program.specs[x].shape
    x = low.call(View((*pixels, channels, 1)), [x])[0]
    x = low.call(Expand((*pixels, channels, times)), [x])[0]
    return low.call(View((*pixels, channels * times)), [x])[0]


def _float(low: Lowering, node: ir.Node) -> None:
    transposed = "Transpose" in node.op_type
    residual = optional(node, 3)
    products.require_floats(low, optional(node, 0), optional(node, 1), optional(node, 2), residual)
    weights, kernel = _weights(low, node, 1, None, 2, transposed)
    extra = [low.image(residual)] if residual is not None else []
    apart = extra if residual is not None and not _fits(low, node, weights, kernel, residual, transposed) else []
    epilogue, activation = products.float_epilogue(node, bool(extra) and not apart)
    first, extra = (Float(), []) if apart else (epilogue, extra)
    y = products.added(low, _convolve(low, node, weights, kernel, first, 0, extra, transposed), apart, epilogue)
    low.bind_image(node.outputs[0], products.activate(low, y, activation))


def _fits(low: Lowering, node: ir.Node, weights: Weights, kernel: tuple[int, ...], residual: ir.Value, transposed: bool) -> bool:
    """Whether the residual has the result's shape, as rules expect of dimensions that nobody knows; else an op apart broadcasts it."""
    image = node.inputs[0]
    assert image is not None
    batch, _, *space = low.shape(image)
    groups, _, _, n = weights.w.shape
    return low.shape(residual) == (batch, groups * n, *window(node, space, kernel, transposed).out_space(space))


def _codes(low: Lowering, node: ir.Node) -> None:
    transposed = "Transpose" in node.op_type
    weights, kernel = _weights(low, node, 3, 5, 8, transposed)
    zero_point = products.zero_point(low, optional(node, 2))
    if node.op_type == "QConvAdd":
        residual = node.inputs[11]
        assert residual is not None
        if _fits(low, node, weights, kernel, residual, transposed):
            y = _convolve(low, node, weights, kernel, products.codes_add(low, node, weights), zero_point, [low.image(residual)], transposed)
        else:
            conv = products.codes(low, node, weights, (1, 4, 9), (0, 255))
            y = _convolve(low, node, weights, kernel, conv, zero_point, [], transposed)
            y = products.codes_added(low, node, y, low.image(residual))
    else:
        y = _convolve(low, node, weights, kernel, products.codes(low, node, weights, (1, 4, 6)), zero_point, [], transposed)
    low.bind_image(node.outputs[0], y)


def _codes_to_float(low: Lowering, node: ir.Node) -> None:
    weights, kernel = _weights(low, node, 3, 5, 6, False)
    scale, point = node.inputs[1], node.inputs[2]
    assert scale is not None
    assert point is not None
    y = _convolve(low, node, weights, kernel, products.dynamic(low, node, weights), 0, [low.get(scale), low.get(point)], False)
    low.bind_image(node.outputs[0], y)


def _integer(low: Lowering, node: ir.Node) -> None:
    weights, kernel = _weights(low, node, 1, 3, 4, False)
    y = _convolve(low, node, weights, kernel, Int32(), products.zero_point(low, optional(node, 2)), [], False)
    low.bind_image(node.outputs[0], y)


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "Conv"): _float,
    ("", "ConvTranspose"): _float,
    ("", "ConvInteger"): _integer,
    (QRT, "FusedConv"): _float,
    (QRT, "FusedConvTranspose"): _float,
    (QRT, "QConv"): _codes,
    (QRT, "QConvTranspose"): _codes,
    (QRT, "QConvAdd"): _codes,
    (QRT, "QConvFloat"): _codes_to_float,
}
