"""What ONNX Runtime's quantized operators mean, spelled with standard ones, so that shape inference can see through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir
from onnx import helper

from qrt.graph.passes.spell_out import VENDOR_DOMAIN

__all__ = ["VENDOR_DOMAIN", "VENDOR_OPS", "expand_vendor_op"]


class _Builder:
    """Collects the nodes that stand for `node`; its inner values are named after the node's output."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.inputs = [v.name or "" if v is not None else "" for v in node.inputs]
        self.nodes: list[onnx.NodeProto] = []

    def __getitem__(self, index: int) -> str:
        return self.inputs[index] if index < len(self.inputs) else ""

    def op(self, op_type: str, inputs: Sequence[str], *, last: bool = False, keep: Sequence[str] = ()) -> str:
        """Add a node with the attributes `keep` of the original; the `last` one writes the original's output."""
        original = self.node.outputs[0].name or ""
        output = original if last else f"{original}__{len(self.nodes)}"
        proto = helper.make_node(op_type, [*inputs], [output])
        for name in keep:
            if name in self.node.attributes:
                ir.serde.serialize_attribute_into(proto.attribute.add(), self.node.attributes[name])
        self.nodes.append(proto)
        return output

    def dequantize(self, first: int) -> str:
        """The real values of the input at `first`, followed by its scale and zero point."""
        return self.op("DequantizeLinear", [self[first], self[first + 1], self[first + 2]])

    def quantize(self, real: str, scale: int) -> None:
        """The original's output: codes of `real`, by the scale at input `scale` and the zero point after it."""
        self.op("QuantizeLinear", [real, self[scale], self[scale + 1]], last=True)


def _unary(op_type: str, *keep: str) -> Callable[[_Builder], None]:
    def build(b: _Builder) -> None:
        b.quantize(b.op(op_type, [b.dequantize(0)], keep=keep), 3)

    return build


def _binary(op_type: str) -> Callable[[_Builder], None]:
    def build(b: _Builder) -> None:
        b.quantize(b.op(op_type, [b.dequantize(0), b.dequantize(3)]), 6)

    return build


def _concat(b: _Builder) -> None:
    b.quantize(b.op("Concat", [b.dequantize(i) for i in range(2, len(b.inputs), 3)], keep=("axis",)), 0)


def _gemm(b: _Builder) -> None:
    codes = bool(b[7])
    # The bias is int32, in units of the product of both scales; its values do not matter here.
    real = b.op("Gemm", [b.dequantize(0), b.dequantize(3)], last=not codes, keep=("transA", "transB"))
    if codes:
        b.quantize(real, 7)


def _dynamic_matmul(b: _Builder) -> None:
    b.op("MatMul", [b[0], b.op("DequantizeLinear", [b[1], b[2], b[3]])], last=True)


# Every operator of the domain that qrt takes; rules bring them to the fused form.
VENDOR_OPS: dict[str, Callable[[_Builder], None]] = {
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _unary("AveragePool", "auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"),
    "QLinearConcat": _concat,
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearSoftmax": _unary("Softmax", "axis"),
}


def expand_vendor_op(node: ir.Node) -> list[onnx.NodeProto] | None:
    """Standard nodes with the types and shapes of `node`, if it is one of VENDOR_OPS with its channels first, else None."""
    build = VENDOR_OPS.get(node.op_type) if node.domain == VENDOR_DOMAIN else None
    if build is None:
        return None
    builder = _Builder(node)
    build(builder)
    return builder.nodes
