"""Before quantization: an Add of a constant for each output channel goes into the bias of the product before it.

What is left between a product and its bias would be rounded to 8 bits. MatMul of matrices with a constant becomes Gemm, as it has a bias.
"""

from __future__ import annotations

import numpy as np

from qrt.graph import Model, attr_float, constant, ir, is_op, new_initializer, only_use, replace

__all__ = ["absorb_bias"]


def absorb_bias(model: Model) -> None:
    """Rewrites `model` in place. Requires: a prepared model."""
    for node in list(model.graph):
        if is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") and node.graph is model.graph:
            _absorb(model, node)


def _absorb(model: Model, node: ir.Node) -> None:
    add = only_use(node.outputs[0])
    shape = node.outputs[0].shape
    if add is None or add.graph is not model.graph or not is_op(add, "Add") or shape is None or constant(node.inputs[1]) is None:
        return
    channels = shape[1 if is_op(node, "Conv", "ConvTranspose") else -1] if len(shape) > 1 else None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = np.zeros((), np.float32) if given is None else constant(given)
    other = constant(add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0])
    if not isinstance(channels, int) or bias is None or other is None or other.dtype != np.float32 or bias.size not in (1, channels):
        return
    if not _per_channel(other, channels, len(shape), 1 if is_op(node, "Conv", "ConvTranspose") else len(shape) - 1):
        return
    if is_op(node, "MatMul") and (len(shape) != 2 or any(v is None or v.shape is None or len(v.shape) != 2 for v in node.inputs)):
        return
    # The C of a Gemm may differ from row to row, and be scaled.
    if is_op(node, "Gemm") and given is not None and (attr_float(node, "beta", 1.0) != 1.0 or not _per_channel(bias, channels, 2, 1)):
        return
    total = (bias.reshape(-1) + other.reshape(-1)).astype(np.float32)
    value = new_initializer(model.graph, f"{node.name}_bias", np.broadcast_to(total, (channels,)))
    if is_op(node, "MatMul"):
        node.op_type = "Gemm"
    node.resize_inputs(3)
    node.replace_input_with(2, value)
    total, was_output = add.outputs[0], add.outputs[0].is_graph_output()
    replace(total, node.outputs[0])
    model.graph.remove(add, safe=True)
    if not was_output:  # else it has the name already
        node.outputs[0].name = total.name
    # The node now computes what the Add did: notes about that (the numeric debugger's) are about this.
    node.meta.update(add.meta)
    node.metadata_props.update(add.metadata_props)


def _per_channel(array: np.ndarray, channels: int, rank: int, axis: int) -> bool:
    """Whether `array`, broadcast to `rank` axes, has one number, or one for each of `channels` along `axis`."""
    if array.ndim > rank:
        return False
    full = (1,) * (rank - array.ndim) + array.shape
    return array.size == 1 or (array.size == channels and full[axis] == channels)
