"""The geometry of convolutions and pools with padding spelled out: kernel_shape, strides, dilations and pads, no auto_pad."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qrt.graph.nodes import attr_ints, attr_str, is_op
from qrt.graph.rules.rule import WhyNot, kept

__all__ = ["conv_attributes", "explicit_pads"]


def conv_attributes(node: ir.Node, weight_shape: Sequence[int]) -> dict[str, ir.Attr | Sequence[int]] | WhyNot:
    """The attributes of a Conv or ConvTranspose (domain "" or a quantized spelling) with explicit `pads` and `kernel_shape`."""
    kernel = attr_ints(node, "kernel_shape", tuple(weight_shape[2:]))
    if not kernel or tuple(kernel) != tuple(weight_shape[2:]):
        return WhyNot(f"kernel_shape {kernel} does not fit its weight of shape {tuple(weight_shape)}")
    if is_op(node, "ConvTranspose") and ("output_shape" in node.attributes or attr_str(node, "auto_pad", "NOTSET") != "NOTSET"):
        return WhyNot("its padding follows from an output shape")
    pads = explicit_pads(node, kernel)
    if isinstance(pads, WhyNot):
        return pads
    return {**kept(node, "dilations", "group", "strides", "output_padding"), "kernel_shape": kernel, "pads": pads}


def explicit_pads(node: ir.Node, kernel: Sequence[int]) -> tuple[int, ...] | WhyNot:
    """Padding at the begin of each spatial axis, then at the end of each."""
    rank = len(kernel)
    mode = attr_str(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        return attr_ints(node, "pads", (0,) * 2 * rank)
    if mode == "VALID":
        return (0,) * 2 * rank
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    strides, dilations = attr_ints(node, "strides", (1,) * rank), attr_ints(node, "dilations", (1,) * rank)
    begins, ends = [], []
    for i in range(rank):
        extent = shape[2 + i] if shape is not None else None
        span = (kernel[i] - 1) * dilations[i] + 1
        if isinstance(extent, int):
            total = max((-(-extent // strides[i]) - 1) * strides[i] + span - extent, 0)
        elif strides[i] == 1:
            total = span - 1
        else:
            return WhyNot(f"auto_pad {mode} depends on a shape that is not known")
        less, more = total // 2, total - total // 2
        begins.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    return (*begins, *ends)
