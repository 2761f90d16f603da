"""Operators between real numbers and codes, and element-wise operators on codes. Products and pools of codes stand with the float ones."""

from __future__ import annotations

import numpy as np

from qrt.core.dtypes import QDType, qint8, qint16, qint32, quint8, quint16
from qrt.core.errors import QuantizationError
from qrt.core.qparams import QParams
from qrt.graph import attr_int, ir
from qrt.lower.handlers.elementwise import aligned, combined
from qrt.lower.handlers.products import QRT, flip, scalar, zero_point
from qrt.lower.handlers.reading import axis_of, optional, required
from qrt.lower.lowering import Handler, Lowering, NotNative
from qrt.ops.op import Op
from qrt.ops.quantization import Dequantize, DynamicQuantize, Lut, QBinary, Quantize

__all__ = ["HANDLERS"]

_QDTYPES: dict[str, QDType] = {d.storage.name: d for d in (quint8, qint8, quint16, qint16, qint32)}


def _qparams(low: Lowering, node: ir.Node, dtype: np.dtype[np.generic]) -> QParams:
    """The constant qparams of a QuantizeLinear or DequantizeLinear, on the physical axis."""
    if attr_int(node, "block_size", 0):
        raise NotNative("scales of blocks")
    if dtype.name not in _QDTYPES:
        raise NotNative(f"codes of {dtype}")
    x = required(node)
    scale = low.require_const(required(node, 1), "scale")
    if scale.dtype != np.float32:
        raise NotNative(f"scales of {scale.dtype}")
    given = optional(node, 2)
    zero = np.zeros(scale.shape, np.int32) if given is None else low.require_const(given, "zero point")
    axis = None
    if scale.size != 1:
        axis = low.perm(x).index(axis_of(node, attr_int(node, "axis", 1), len(low.shape(x))))
    shape = () if axis is None else (scale.size,)
    key = ("qparams", dtype.name, axis, zero.tobytes())
    scale = low.constants.derived(scale, key, lambda: scale.reshape(shape))
    try:
        return QParams(scale, zero.reshape(shape), _QDTYPES[dtype.name], axis)
    except QuantizationError as error:
        raise NotNative(str(error)) from error


def _along(low: Lowering, node: ir.Node, op: Op) -> None:
    """Applies `op` to input 0, whose layout stays."""
    x = required(node)
    perm = low.perm(x)
    low.bind(node.outputs[0], low.call(op, [low.get(x, perm)])[0], perm)


def _quantize(low: Lowering, node: ir.Node) -> None:
    if low.dtype(required(node)) != np.float32:
        raise NotNative(f"QuantizeLinear of {low.dtype(required(node))}")
    given, wanted = optional(node, 2), attr_int(node, "output_dtype", 0)
    try:
        dtype = low.dtype(given) if given is not None else ir.DataType(wanted or ir.DataType.UINT8).numpy()
    except (TypeError, ValueError) as error:
        raise NotNative("codes of a dtype that NumPy lacks") from error
    qparams = _qparams(low, node, dtype)
    if qparams.dtype is qint32:
        raise NotNative("codes of int32")
    _along(low, node, Quantize(qparams))


def _dequantize(low: Lowering, node: ir.Node) -> None:
    if attr_int(node, "output_dtype", ir.DataType.FLOAT) not in (0, ir.DataType.FLOAT):
        raise NotNative("a result that is not float32")
    _along(low, node, Dequantize(_qparams(low, node, low.dtype(required(node)))))


def _dynamic(low: Lowering, node: ir.Node) -> None:
    x = required(node)
    perm = low.perm(x)
    codes, scale, zero = low.call(DynamicQuantize(), [low.get(x, perm)])
    low.bind(node.outputs[0], codes, perm)
    for value, index in zip(node.outputs[1:], (scale, zero), strict=False):
        low.bind(value, index)


def _lut(low: Lowering, node: ir.Node) -> None:
    x = required(node)
    perm = low.perm(x)
    low.bind(node.outputs[0], low.call(Lut(), [low.get(x, perm), low.get(required(node, 1))])[0], perm)


def _flip(low: Lowering, node: ir.Node) -> None:
    x = required(node)
    perm = low.perm(x)
    low.bind(node.outputs[0], flip(low, low.get(x, perm)), perm)


def _binary(name: str) -> Handler:
    def handler(low: Lowering, node: ir.Node) -> None:
        scales = [scalar(low, required(node, k), "scale") for k in (1, 4, 6)]
        zeros = [zero_point(low, required(node, k)) for k in (2, 5, 7)]
        a, b, y = zip(scales, zeros, strict=True)
        bounds = attr_int(node, "qmin", 0), attr_int(node, "qmax", 255)
        op = QBinary(name, *a, *b, *y, *bounds, signed=bool(attr_int(node, "signed", 0)))
        (left, right), perm = aligned(low, [required(node), required(node, 3)])
        low.bind(node.outputs[0], combined(low, op, left, right), perm)

    return handler


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "DequantizeLinear"): _dequantize,
    ("", "DynamicQuantizeLinear"): _dynamic,
    ("", "QuantizeLinear"): _quantize,
    (QRT, "FlipSign"): _flip,
    (QRT, "QAdd"): _binary("add"),
    (QRT, "QLut"): _lut,
    (QRT, "QMul"): _binary("mul"),
}
