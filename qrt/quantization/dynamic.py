"""Dynamic quantization: weights become int8 now, activations uint8 as they come: no calibration data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qrt.core.errors import QuantizationError
from qrt.core.numerics import quantize
from qrt.core.qparams import QParams
from qrt.graph import Model, attr_float, attr_int, constant, ir, is_op, new_initializer, replace, unique_name
from qrt.graph.passes import prepare
from qrt.graph.passes.drop_dead import drop_dead
from qrt.graph.passes.name_everything import name_everything
from qrt.graph.rules.rule import kept
from qrt.observers import HistogramObserver
from qrt.quantization.absorb import absorb_bias
from qrt.quantization.convert import weight_axis, weight_qparams
from qrt.quantization.placement import excluded_nodes
from qrt.quantization.qconfig import QConfig, per_channel_weight_observer, weight_observer

__all__ = ["quantize_dynamic"]

_FLOAT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT32


def quantize_dynamic(model: Model, *, exclude: Iterable[str] = (), per_channel: bool = True) -> Model:
    """Quantize the constant weights of MatMul, Gemm and Conv to int8, and their inputs to uint8 at run time, by the range of each input.

    `exclude`: names or globs of nodes to leave float. `per_channel`: a scale per output channel rather than one per weight.

    Returns a new model in standard ONNX (DynamicQuantizeLinear, MatMulInteger or ConvInteger, Cast, Mul) with the same inputs and outputs.
    Raises QuantizationError where nothing can be quantized or `exclude` matches nothing.
    """
    prepared = prepare(model)
    excluded = excluded_nodes(prepared, exclude)
    absorb_bias(prepared)
    nodes = [node for node in prepared.graph if node.name not in excluded and _can(node)]
    if not nodes:
        raise QuantizationError(f"{model.name}: nothing to quantize: no MatMul, Gemm or Conv of float32 with a constant weight is left")
    writer = _Writer(prepared, QConfig(HistogramObserver, per_channel_weight_observer if per_channel else weight_observer))
    for node in nodes:
        writer.write(node)
    drop_dead(prepared)
    name_everything(prepared)
    return prepared


def _can(node: ir.Node) -> bool:
    """Whether the node multiplies a computed float32 array by a constant weight, and adds nothing that is computed."""
    if not is_op(node, "MatMul", "Gemm", "Conv") or node.outputs[0].dtype != _FLOAT or node.outputs[0].shape is None:
        return False
    weight, bias = constant(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.ndim < 2 or constant(node.inputs[0]) is not None or (bias is not None and constant(bias) is None):
        return False
    if is_op(node, "Gemm"):
        return not attr_int(node, "transA", 0) and attr_float(node, "alpha", 1.0) == 1.0 and attr_float(node, "beta", 1.0) == 1.0
    return True


class _Writer:
    def __init__(self, model: Model, qconfig: QConfig) -> None:
        self.model, self.graph, self.qconfig = model, model.graph, qconfig
        # Inputs that several products read (the queries, keys and values of one attention) are quantized once.
        self.quantized: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def write(self, node: ir.Node) -> None:
        """Put the integer product in the place of `node`."""
        x, source = node.inputs[0], node.inputs[1]
        held = constant(source)
        if x is None or source is None or held is None:
            return
        conv, output = is_op(node, "Conv"), node.outputs[0]
        params = weight_qparams(held, weight_axis(node), self.qconfig, source.name or "weight")
        codes = quantize(held, params)
        if is_op(node, "Gemm") and attr_int(node, "transB", 0):
            codes = codes.T
        weight = new_initializer(self.graph, f"{node.name}_weight_quantized", codes)
        scale = new_initializer(self.graph, f"{node.name}_weight_scale", _spread(params, output, conv))
        x_codes, x_scale, x_zero_point = self._quantize(node, x)
        acc = self._add(node, "ConvInteger" if conv else "MatMulInteger", [x_codes, weight, x_zero_point], output, _INT32, conv=conv)
        real = self._add(node, "Cast", [acc], output, _FLOAT)
        both = self._add(node, "Mul", [x_scale, scale], scale, _FLOAT)
        result = self._add(node, "Mul", [real, both], output, _FLOAT)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None:
            spread = bias.reshape(-1, *[1] * (held.ndim - 2)) if conv else bias
            result = self._add(node, "Add", [result, new_initializer(self.graph, f"{node.name}_bias", spread)], output, _FLOAT)
        replace(output, result)
        self.graph.remove(node, safe=True)

    def _quantize(self, node: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        if x not in self.quantized:
            types = ((ir.DataType.UINT8, x.shape), (_FLOAT, ir.Shape(())), (ir.DataType.UINT8, ir.Shape(())))
            names = ("quantized", "scale", "zero_point")
            outputs = [
                ir.Value(name=unique_name(self.graph, f"{x.name}_{name}"), shape=shape, type=ir.TensorType(dtype))
                for name, (dtype, shape) in zip(names, types, strict=True)
            ]
            made = ir.node("DynamicQuantizeLinear", [x], outputs=outputs, name=f"{x.name}_QuantizeLinear")
            self.graph.insert_before(node, made)
            self.quantized[x] = (outputs[0], outputs[1], outputs[2])
        return self.quantized[x]

    def _add(
        self, node: ir.Node, op_type: str, inputs: list[ir.Value], like: ir.Value, dtype: ir.DataType, *, conv: bool = False
    ) -> ir.Value:
        """A node in front of `node`, its output shaped like `like`."""
        attributes: dict[str, ir.Attr | int] = dict(kept(node)) if conv else {}
        if op_type == "Cast":
            attributes["to"] = int(_FLOAT)
        name = f"{node.name}_{op_type.lower()}"
        output = ir.Value(name=unique_name(self.graph, name), shape=like.shape, type=ir.TensorType(dtype))
        self.graph.insert_before(node, ir.node(op_type, inputs, attributes, outputs=[output], name=name))
        return output


def _spread(params: QParams, output: ir.Value, conv: bool) -> np.ndarray:
    """The scales, to be broadcast over a product: along its channels."""
    rank = len(output.shape) if output.shape is not None else 2
    return params.scale.reshape(-1, *[1] * (rank - 2)) if conv and params.scale.ndim else params.scale
