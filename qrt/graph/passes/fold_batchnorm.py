"""Fold an inference BatchNormalization into the weights of the convolution or Gemm before it (Jacob et al. 2018, section 3.2)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs, attr_float, attr_int, constant, is_op, new_initializer, only_use, replace

__all__ = ["fold_batchnorm", "scale_and_shift"]


def scale_and_shift(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """An inference BatchNormalization as y = scale · x + shift, float64 vectors of its channels; None if they are not constant."""
    if not is_op(node, "BatchNormalization") or attr_int(node, "training_mode", 0):
        return None
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return None
    gamma, beta, mean, var = (constant(v) for v in node.inputs[1:5])
    if gamma is None or beta is None or mean is None or var is None:
        return None
    # In float64, so that the folded weights are rounded once.
    with np.errstate(all="ignore"):
        scale = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + attr_float(node, "epsilon", 1e-5))
        return scale, beta.astype(np.float64) - mean.astype(np.float64) * scale


def fold_batchnorm(model: Model) -> bool:
    """Requires: constants are initializers. Ensures: no BatchNormalization is left that could go into what computes its input.

    It can where it alone reads the output of a Conv, ConvTranspose or Gemm whose weight and bias are constant.
    """
    changed = False
    for graph in list(all_graphs(model.graph)):
        for node in list(graph):
            changed |= _fold(model, node)
    return changed


def _fold(model: Model, node: ir.Node) -> bool:
    affine = scale_and_shift(node)
    linear = node.inputs[0].producer() if affine is not None and node.inputs[0] is not None else None
    if affine is None or linear is None or not is_op(linear, "Conv", "ConvTranspose", "Gemm"):
        return False
    if only_use(linear.outputs[0]) is not node or linear.graph is not node.graph:
        return False
    weight, bias = constant(linear.inputs[1]), constant(linear.inputs[2]) if len(linear.inputs) > 2 else None
    has_bias = len(linear.inputs) > 2 and linear.inputs[2] is not None
    if weight is None or (has_bias and bias is None):
        return False
    scale, shift = affine
    new_weight = _scaled(linear, weight, scale)
    new_bias = _shifted(linear, bias, scale, shift)
    if new_weight is None or new_bias is None:
        return False
    name = linear.name or linear.op_type
    linear.replace_input_with(1, new_initializer(model.graph, f"{name}_weight", new_weight.astype(weight.dtype)))
    linear.resize_inputs(3)
    linear.replace_input_with(2, new_initializer(model.graph, f"{name}_bias", new_bias.astype(weight.dtype)))
    if is_op(linear, "Gemm"):
        linear.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    replace(node.outputs[0], linear.outputs[0])
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    return True


def _scaled(linear: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
    """The weight with each output channel scaled; None where the channels do not count the same."""
    wide: np.ndarray = weight.astype(np.float64)
    if is_op(linear, "ConvTranspose"):
        # (C_in, C_out / groups, …): the input channels of one group follow each other.
        groups = attr_int(linear, "group", 1)
        if wide.shape[1] * groups != scale.size or wide.shape[0] % groups:
            return None
        per_input = np.repeat(scale.reshape(groups, -1), wide.shape[0] // groups, axis=0)
        return np.asarray(wide * per_input.reshape(wide.shape[0], wide.shape[1], *[1] * (wide.ndim - 2)))
    axis = 1 if is_op(linear, "Gemm") and not attr_int(linear, "transB", 0) else 0
    if wide.shape[axis] != scale.size:
        return None
    shape = [1] * wide.ndim
    shape[axis] = -1
    return np.asarray(wide * scale.reshape(shape))


def _shifted(linear: ir.Node, bias: np.ndarray | None, scale: np.ndarray, shift: np.ndarray) -> np.ndarray | None:
    """The bias after the fold; None where a Gemm's bias differs from row to row, or a bias is for other channels."""
    if bias is None:
        return shift
    if bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1) or bias.size not in (1, scale.size):
        return None
    factor = attr_float(linear, "beta", 1.0) if is_op(linear, "Gemm") else 1.0
    wide: np.ndarray = bias.astype(np.float64).reshape(-1)
    return np.asarray(factor * wide * scale + shift)
