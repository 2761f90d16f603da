"""Dynamic products: weights become int8 now, activations uint8 in each run, by their range at that moment. Standard ONNX."""

from __future__ import annotations

import numpy as np

from qrt.core.numerics import quantize
from qrt.core.qparams import QParams
from qrt.graph import attr_int, constant, ir, is_op, replace
from qrt.graph.rules.rule import kept
from qrt.quantization.fresh import Fresh

__all__ = ["DynamicWriter"]

_FLOAT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT32


class DynamicWriter:
    """Writes DynamicQuantizeLinear, MatMulInteger or ConvInteger, Cast and Mul in the place of products."""

    def __init__(self, graph: ir.Graph, fresh: Fresh) -> None:
        self.graph, self.fresh = graph, fresh
        # Inputs that several products read (the queries, keys and values of one attention) are quantized once.
        self.quantized: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def write(self, node: ir.Node, params: QParams) -> None:
        """Put the integer product in the place of `node`, whose constant weight has the qparams `params`."""
        x, source = node.inputs[0], node.inputs[1]
        held = constant(source)
        if x is None or source is None or held is None:
            return
        conv, output = is_op(node, "Conv"), node.outputs[0]
        codes = quantize(held, params)
        if is_op(node, "Gemm") and attr_int(node, "transB", 0):
            codes = codes.T
        weight = self.fresh.constant(f"{node.name}_weight_quantized", codes)
        scale = self.fresh.constant(f"{node.name}_weight_scale", _spread(params, output, conv))
        x_codes, x_scale, x_zero_point = self._quantize(node, x)
        acc = self._add(node, "ConvInteger" if conv else "MatMulInteger", [x_codes, weight, x_zero_point], output, _INT32, conv=conv)
        real = self._add(node, "Cast", [acc], output, _FLOAT)
        both = self._add(node, "Mul", [x_scale, scale], scale, _FLOAT)
        result = self._add(node, "Mul", [real, both], output, _FLOAT)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None:
            spread = bias.reshape(-1, *[1] * (held.ndim - 2)) if conv else bias
            result = self._add(node, "Add", [result, self.fresh.constant(f"{node.name}_bias", spread)], output, _FLOAT)
        replace(output, result)
        self.graph.remove(node, safe=True)

    def _quantize(self, node: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        if x not in self.quantized:
            types = ((ir.DataType.UINT8, x.shape), (_FLOAT, ir.Shape(())), (ir.DataType.UINT8, ir.Shape(())))
            names = ("quantized", "scale", "zero_point")
            outputs = [
                ir.Value(name=self.fresh.name(f"{x.name}_{name}"), shape=shape, type=ir.TensorType(dtype))
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
        output = ir.Value(name=self.fresh.name(name), shape=like.shape, type=ir.TensorType(dtype))
        self.graph.insert_before(node, ir.node(op_type, inputs, attributes, outputs=[output], name=name))
        return output


def _spread(params: QParams, output: ir.Value, conv: bool) -> np.ndarray:
    """The scales, to be broadcast over a product: along its channels."""
    rank = len(output.shape) if output.shape is not None else 2
    return params.scale.reshape(-1, *[1] * (rank - 2)) if conv and params.scale.ndim else params.scale
