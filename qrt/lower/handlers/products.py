"""What the handlers of products share: constants as weights, scales as multipliers, activations as bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qrt.core.dtypes import quint8
from qrt.core.errors import ModelError, QuantizationError
from qrt.core.qparams import QParams
from qrt.graph import attr_int, attr_str, ir
from qrt.lower.handlers.reading import optional
from qrt.lower.lowering import Lowering, NotNative
from qrt.ops.elementwise import Binary, Unary
from qrt.ops.gemm import Codes, CodesAdd, DynamicFloat, Float, Weights
from qrt.ops.op import Array
from qrt.ops.quantization import Lut, QBinary, requantizing

__all__ = [
    "QRT",
    "activate",
    "added",
    "code_qparams",
    "codes",
    "codes_add",
    "codes_added",
    "dynamic",
    "flip",
    "float_epilogue",
    "requantized",
    "require_floats",
    "scalar",
    "unsigned",
    "weights",
    "zero_point",
]

# The domain of the fused form.
QRT = "ai.qrt"

# Activations that are not bounds: the unary op that follows the product.
_UNARY = {"LeakyRelu": "leaky_relu", "HardSwish": "hard_swish", "Sigmoid": "sigmoid"}
# The codes with their top bit flipped, by the dtype that they have before.
_FLIPPED = {"int8": (np.arange(256) ^ 128).astype(np.uint8), "uint8": (np.arange(256) ^ 128).astype(np.uint8).view(np.int8)}


def scalar(low: Lowering, value: ir.Value | None, what: str) -> float:
    """A constant of one element; 0 where it is omitted."""
    if value is None:
        return 0
    array = low.require_const(value, what)
    if array.size != 1:
        raise NotNative(f"{what} has {array.size} values; one is supported here")
    return float(array.reshape(())) if array.dtype.kind == "f" else int(array.reshape(()))


def zero_point(low: Lowering, value: ir.Value | None) -> int:
    """A constant uint8 zero point; 0 where it is omitted."""
    return int(scalar(low, value, "zero point"))


def code_qparams(low: Lowering, node: ir.Node, index: int) -> QParams:
    """The constant scale and zero point of uint8 codes, inputs `index` and `index` + 1."""
    scale, point = scalar(low, optional(node, index), "scale"), zero_point(low, optional(node, index + 1))
    try:
        return QParams(np.asarray(scale, np.float32), np.asarray(point, np.int32), quint8)
    except QuantizationError as error:
        raise ModelError(f"node {node.name!r}: {error}") from error


def requantized(low: Lowering, node: ir.Node, index: int, given: QParams, wanted: QParams) -> int:
    """The uint8 codes `index` under `wanted`, within the node's bounds: themselves, or looked up in a table."""
    bounds = attr_int(node, "qmin", 0), attr_int(node, "qmax", 255)
    old, new = ((q.scale.item(), q.zero_point.item()) for q in (given, wanted))
    if old == new and bounds == (0, 255):
        return index
    return low.call(Lut(), [index, low.constant(requantizing(old, new, *bounds))])[0]


def require_floats(low: Lowering, *values: ir.Value | None) -> None:
    """NotNative unless all of the values that are there are float32."""
    for value in values:
        if value is not None and low.dtype(value) != np.float32:
            raise NotNative(f"operands of {low.dtype(value)}")


def flip(low: Lowering, index: int) -> int:
    """The codes of program value `index` with their top bit flipped: int8 as uint8, or back."""
    return low.call(Lut(), [index, low.constant(_FLIPPED[low.program.specs[index].dtype.name])])[0]


def unsigned(low: Lowering, index: int, point: int) -> tuple[int, int]:
    """Codes as products take them, with their zero point: int8 becomes uint8."""
    return (flip(low, index), point + 128) if low.program.specs[index].dtype == np.int8 else (index, point)


def weights(
    low: Lowering, value: ir.Value | None, points: ir.Value | None, bias: ir.Value | None, how: str, lay: Callable[[Array], Array]
) -> Weights:
    """The constant `value` as int8 or float32 Weights: `lay` brings it into [groups, taps, k, n]. uint8 becomes int8."""
    source = low.require_const(value, "weight")
    shift = 128 if source.dtype == np.uint8 else 0
    if source.dtype not in (np.uint8, np.int8, np.float32):
        raise NotNative(f"weights of {source.dtype}")

    def make() -> Array:
        laid = lay(source)  # a view, where it can be: packing reads it as it lies
        return (laid ^ np.uint8(128)).view(np.int8) if shift else laid

    w = low.constants.derived(source, ("weights", how), make)
    per_column = None
    if points is not None and w.dtype == np.int8:
        array = per_channel(low, points, "weight zero point", w)
        per_column = np.resize(array.astype(np.int32).reshape(-1) - shift, w.shape[0] * w.shape[3])
    elif shift:
        per_column = np.full(w.shape[0] * w.shape[3], -shift, np.int32)
    if per_column is not None and not per_column.any():
        per_column = None
    flat = None
    if bias is not None:
        held, columns = per_channel(low, bias, "bias", w), w.shape[0] * w.shape[3]
        flat = low.constants.derived(held, ("flat", columns), lambda: np.resize(held, columns))
    return Weights(w, per_column, flat)


def per_channel(low: Lowering, value: ir.Value | None, what: str, w: Array) -> Array:
    """A constant of one element, or of one for each column of the weights [groups, taps, k, n]."""
    array = low.require_const(value, what)
    if array.size not in (1, w.shape[0] * w.shape[3]):
        name = low.node.name if low.node is not None else ""
        raise ModelError(f"node {name!r}: {what} of {array.size} values for {w.shape[0] * w.shape[3]} channels")
    return array


def codes(low: Lowering, node: ir.Node, w: Weights, scales: Sequence[int], result: tuple[int, int] | None = None) -> Codes:
    """The epilogue to codes. `scales`: indices of the inputs x_scale, w_scale, y_scale; y's zero point follows y_scale.

    `result`: the bounds of the codes; None: the node's attributes."""
    x_scale, y_scale = (np.float32(scalar(low, optional(node, i), "scale")) for i in (scales[0], scales[2]))
    w_scale = per_channel(low, optional(node, scales[1]), "weight scale", w.w)
    columns = w.w.shape[0] * w.w.shape[3]

    def make() -> Array:
        return np.resize((x_scale * w_scale.reshape(-1).astype(np.float32)) / y_scale, columns)

    multiplier = low.constants.derived(w.w, ("multiplier", node.name, tuple(scales)), make)
    lo, hi = result or (attr_int(node, "qmin", 0), attr_int(node, "qmax", 255))
    return Codes(multiplier, zero_point(low, optional(node, scales[2] + 1)), lo, hi)


def codes_add(low: Lowering, node: ir.Node, w: Weights) -> CodesAdd:
    """The epilogue of QConvAdd."""
    y_scale, c_scale, r_scale = (np.float32(scalar(low, optional(node, i), "scale")) for i in (6, 9, 12))
    conv = codes(low, node, w, (1, 4, 9), (0, 255))
    lo, hi = attr_int(node, "qmin", 0), attr_int(node, "qmax", 255)
    points = (zero_point(low, optional(node, 13)), zero_point(low, optional(node, 7)))
    flags = (bool(attr_int(node, name, 0)) for name in ("signed", "residual_first"))
    return CodesAdd(conv, float(c_scale / y_scale), float(r_scale / y_scale), *points, lo, hi, *flags)


def codes_added(low: Lowering, node: ir.Node, conv: int, residual: int) -> int:
    """The sum of a QConvAdd whose residual is broadcast: of the convolution's own codes and the residual's."""
    c, r, y = ((scalar(low, optional(node, k), "scale"), zero_point(low, optional(node, k + 1))) for k in (9, 12, 6))
    bounds, signed = (attr_int(node, "qmin", 0), attr_int(node, "qmax", 255)), bool(attr_int(node, "signed", 0))
    if attr_int(node, "residual_first", 0):
        return low.call(QBinary("add", *r, *c, *y, *bounds, signed), [residual, conv])[0]
    return low.call(QBinary("add", *c, *r, *y, *bounds, signed), [conv, residual])[0]


def dynamic(low: Lowering, node: ir.Node, w: Weights) -> DynamicFloat:
    """The epilogue of QMatMulFloat and QConvFloat: b_scale is input 4."""
    scale = per_channel(low, optional(node, 4), "weight scale", w.w)
    columns = w.w.shape[0] * w.w.shape[3]
    return DynamicFloat(low.constants.derived(scale, ("flat", columns), lambda: np.resize(scale.astype(np.float32), columns)))


def float_epilogue(node: ir.Node, residual: bool) -> tuple[Float, Unary | None]:
    """The epilogue of a float product, and the activation that it cannot take in."""
    name = attr_str(node, "activation", "")
    params = node.attributes["activation_params"].as_floats() if "activation_params" in node.attributes else ()
    if name == "":
        return Float(residual=residual), None
    if name == "Relu":
        return Float(0.0, residual=residual), None
    if name == "Clip":
        return Float(params[0], params[1], residual), None
    if name == "SiLU":
        return Float(residual=residual), Unary("swish", (1.0,))
    return Float(residual=residual), Unary(_UNARY[name], tuple(params))


def added(low: Lowering, index: int, others: Sequence[int], epilogue: Float) -> int:
    """The product and what was not added in its epilogue, within the bounds that the epilogue could not apply before."""
    for other in others:
        index = low.call(Binary("add"), [index, other])[0]
    if others and (epilogue.lo != float("-inf") or epilogue.hi != float("inf")):
        index = low.call(Unary("clip", (epilogue.lo, epilogue.hi)), [index])[0]
    return index


def activate(low: Lowering, index: int, activation: Unary | None) -> int:
    """The value after the activation that did not fit the epilogue."""
    return index if activation is None else low.call(activation, [index])[0]
