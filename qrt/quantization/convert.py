"""Writes Q/DQ: QuantizeLinear → DequantizeLinear at every site, DequantizeLinear of int8 weights and int32 biases. Standard ONNX."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qrt.core.dtypes import qint8, quint8
from qrt.core.errors import QuantizationError
from qrt.core.numerics import quantize
from qrt.core.qparams import QParams
from qrt.graph import Model, attr_int, constant, ir, is_op, new_initializer, unique_name
from qrt.graph.rules.bias import bias_qparams
from qrt.observers import MinMaxObserver, ObserverBase, PerChannelMinMaxObserver
from qrt.quantization.placement import Placement, Site
from qrt.quantization.qconfig import QConfig, weight_observer
from qrt.quantization.rules import RULES

__all__ = ["convert", "weight_axis", "weight_qparams"]

# A bias may use this part of the range of int32; the rest is room for the sum of products.
_BIAS_LIMIT = 2.0**30


def convert(model: Model, placement: Placement, qparams: Mapping[Site, QParams]) -> None:
    """Write Q/DQ into `model` in place. `qparams`: what was learned for every site that is its own origin and not fixed."""
    writer = _Writer(model)
    found = {value: _site_qparams(site, qparams) for value, site in placement.sites.items()}
    for node, qconfig in placement.products.items():
        source = node.inputs[0]
        if source is not None and node.inputs[1] is not None and constant(node.inputs[1]) is not None:
            writer.weight(node, qconfig, found[source])
    for node, index in placement.operands:
        writer.operand(node, index)
    for value, params in found.items():
        writer.activation(value, params)


def _site_qparams(site: Site, learned: Mapping[Site, QParams]) -> QParams:
    origin = site.origin
    return origin.fixed if origin.fixed is not None else learned[origin]


def weight_axis(node: ir.Node) -> int | None:
    """The output channels' axis of a product's weight; None where a scale per channel cannot be written."""
    weight = node.inputs[1]
    rank = len(weight.shape) if weight is not None and weight.shape is not None else 2
    if is_op(node, "Conv", "ConvInteger"):
        return 0
    if is_op(node, "ConvTranspose"):
        return 1 if attr_int(node, "group", 1) == 1 else None
    if is_op(node, "Gemm"):
        return 0 if attr_int(node, "transB", 0) else 1
    return rank - 1 if rank == 2 else None


def weight_qparams(weight: np.ndarray, axis: int | None, qconfig: QConfig, site: str) -> QParams:
    """The qparams of a weight by its QConfig's observer, along `axis` where that observer has channels.

    Raises QuantizationError for an observer that does not give int8 around zero.
    """
    observer: ObserverBase = qconfig.weight()
    if isinstance(observer, PerChannelMinMaxObserver):
        if axis is None:
            observer = weight_observer()
        else:
            observer.ch_axis = axis
    observer.site = site
    observer(weight)
    params = observer.calculate_qparams()
    if params.dtype != qint8 or params.zero_point.any():
        raise QuantizationError(f"the weight observer of {site!r} gives {params.dtype!r}; weights take symmetric qrt.qint8")
    return params


class _Writer:
    def __init__(self, model: Model) -> None:
        self.model, self.graph = model, model.graph

    def activation(self, value: ir.Value, params: QParams) -> None:
        """Q and DQ behind `value`; whatever read it reads the DQ."""
        name = value.name or "value"
        scale, zero_point = self._params(name, params)
        codes = ir.Value(
            name=unique_name(self.graph, f"{name}_QuantizeLinear_Output"), shape=value.shape, type=ir.TensorType(ir.DataType.UINT8)
        )
        quantized = ir.node("QuantizeLinear", [value, scale, zero_point], outputs=[codes], name=f"{name}_QuantizeLinear")
        real = ir.Value(name=unique_name(self.graph, f"{name}_DequantizeLinear_Output"), shape=value.shape, type=value.type)
        dequantized = ir.node("DequantizeLinear", [codes, scale, zero_point], outputs=[real], name=f"{name}_DequantizeLinear")
        maker = value.producer()
        if maker is not None:
            self.graph.insert_after(maker, [quantized, dequantized])
        else:
            self.graph.insert_before(next(iter(self.graph)), [quantized, dequantized])
        was_output = value.is_graph_output()
        for use in tuple(value.uses()):
            if use.node is not quantized:
                use.node.replace_input_with(use.idx, real)
        if was_output and maker is not None:
            self.graph.outputs[list(self.graph.outputs).index(value)] = real
            value.name = unique_name(self.graph, f"{name}_QuantizeLinear_Input")
            real.name = name

    def weight(self, node: ir.Node, qconfig: QConfig, x: QParams) -> None:
        """The weight of a product as int8 and its bias as int32, each behind a DQ."""
        value, axis = node.inputs[1], weight_axis(node)
        held = constant(value)
        if value is None or held is None:
            return
        params = weight_qparams(held, axis, qconfig, value.name or "weight")
        given = node.inputs[2] if RULES[node.op_type].bias is not None and len(node.inputs) > 2 else None
        bias = constant(given)
        if bias is not None:
            channels = held.shape[axis] if axis is not None else held.shape[1] * attr_int(node, "group", 1)
            bias = np.broadcast_to(bias.reshape(-1), (channels,))
            params = _room_for_bias(params, bias, x)
        node.replace_input_with(1, self._constant(value.name or "weight", held, params, node))
        if bias is not None and given is not None:
            node.replace_input_with(2, self._constant(given.name or "bias", bias, bias_qparams(x, params), node))

    def operand(self, node: ir.Node, index: int) -> None:
        """A constant operand of a sum, product or concatenation as uint8 codes."""
        value = node.inputs[index]
        held = constant(value)
        if value is None or held is None:
            return
        observer = MinMaxObserver(site=value.name or "constant")
        observer(held)
        node.replace_input_with(index, self._constant(value.name or "constant", held, observer.calculate_qparams(), node))

    def _constant(self, name: str, real: np.ndarray, params: QParams, reader: ir.Node) -> ir.Value:
        """The dequantized codes of a constant."""
        codes = new_initializer(self.graph, f"{name}_quantized", quantize(real, params))
        scale, zero_point = self._params(name, params)
        output = ir.Value(
            name=unique_name(self.graph, f"{name}_DequantizeLinear_Output"), shape=codes.shape, type=ir.TensorType(ir.DataType.FLOAT)
        )
        attributes = {} if params.axis is None else {"axis": params.axis}
        node = ir.node("DequantizeLinear", [codes, scale, zero_point], attributes, outputs=[output], name=f"{output.name}_node")
        self.graph.insert_before(reader, node)
        return output

    def _params(self, name: str, params: QParams) -> tuple[ir.Value, ir.Value]:
        scale = new_initializer(self.graph, f"{name}_scale", params.scale)
        return scale, new_initializer(self.graph, f"{name}_zero_point", params.zero_point.astype(params.dtype.storage))


def _room_for_bias(params: QParams, bias: np.ndarray, x: QParams) -> QParams:
    """`params` with the scales of channels raised whose bias would not fit int32: dead channels, whose weights are (next to) nothing."""
    most = np.abs(bias) if params.scale.ndim else np.abs(bias).max(initial=0)
    floor = (most / (np.float64(x.scale) * _BIAS_LIMIT)).astype(np.float32)
    return QParams(np.maximum(params.scale, floor), params.zero_point, params.dtype, params.axis)


def check_activation(params: QParams, site: str) -> None:
    """Raises QuantizationError for an observer that does not give uint8 codes with one scale."""
    if params.dtype != quint8 or params.axis is not None:
        raise QuantizationError(f"the activation observer of {site!r} gives {params.dtype!r} codes; activations take qrt.quint8 per tensor")
