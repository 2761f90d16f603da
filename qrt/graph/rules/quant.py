"""Reading quantization out of a graph: what Q/DQ nodes say, as QParams, or why it is not something the fused form can say."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.core.dtypes import QDType, qint8, qint16, qint32, quint8, quint16
from qrt.core.errors import QuantizationError
from qrt.core.numerics import dequantize, quantize
from qrt.core.qparams import QParams
from qrt.core.record import record
from qrt.graph.nodes import attr_int, constant, is_op, producer
from qrt.graph.rules.rule import WhyNot, single_use

__all__ = [
    "SIGNED",
    "Output",
    "Quant",
    "Weight",
    "activation",
    "arrays",
    "clip_bounds",
    "constant_of",
    "dequantized",
    "flip",
    "output",
    "qparams_of",
    "same",
    "weight",
]

_DTYPES = {
    ir.DataType.UINT8: quint8,
    ir.DataType.INT8: qint8,
    ir.DataType.UINT16: quint16,
    ir.DataType.INT16: qint16,
    ir.DataType.INT32: qint32,
}
# A constant as nodes take it: an initializer that is there, or what becomes one.
Constant = ir.Value | np.ndarray
_QUINT8, _FLOAT = ir.DataType.UINT8, ir.DataType.FLOAT
# In the meta of a QuantizeLinear: its codes were int8 before they were re-based.
SIGNED = "qrt.signed"


@record(eq=False)
class Quant:
    """A tensor of uint8 codes (or int8, int32 constants) and the qparams that give it meaning. `node`: which says so, if one does."""

    codes: ir.Value
    qparams: QParams
    node: ir.Node | None = None

    @property
    def inputs(self) -> tuple[Constant, Constant, Constant]:
        """Codes, scale and zero point of an activation, as nodes of the fused form take them. int8 constants are re-based."""
        held = constant(self.codes)
        if held is None or self.qparams.dtype != qint8:
            return self.codes, *_spelled(self.qparams, self.node)
        scale, zero_point = arrays(self.qparams)
        return flip(held), scale, flip(zero_point)


@record(eq=False)
class Weight:
    """A constant of int8 codes: `codes` in the layout of the file, `qparams` per tensor or along one axis. `found`: where both stand so."""

    codes: np.ndarray
    qparams: QParams
    found: Quant | None = None

    @property
    def inputs(self) -> tuple[Constant, Constant, Constant]:
        """Codes, scale and zero point, as nodes of the fused form take them."""
        if self.found is None or not self.found.codes.is_initializer():
            return self.codes, *arrays(self.qparams)
        return self.found.codes, *_spelled(self.qparams, self.found.node)


@record(eq=False)
class Output:
    """The QuantizeLinear that ends a pattern, its qparams, and the first and last code that a Relu or Clip before it leaves."""

    node: ir.Node
    qparams: QParams
    qmin: int
    qmax: int

    @property
    def inputs(self) -> tuple[Constant, Constant]:
        """Scale and zero point."""
        return _spelled(self.qparams, self.node)

    @property
    def signed(self) -> dict[str, int]:
        """The attribute that says that the file's codes are int8, for nodes whose rounding at ties depends on it."""
        return {"signed": 1} if self.node.meta.get(SIGNED) else {}

    @property
    def bounds(self) -> dict[str, int]:
        """The attributes that say what codes are left; none where all are."""
        full = (self.qparams.dtype.qmin, self.qparams.dtype.qmax)
        return {} if (self.qmin, self.qmax) == full else {"qmin": self.qmin, "qmax": self.qmax}


def arrays(qparams: QParams) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point as constants of the graph: float32, and the codes' own dtype."""
    return qparams.scale, qparams.zero_point.astype(qparams.dtype.storage)


def _spelled(qparams: QParams, node: ir.Node | None) -> tuple[Constant, Constant]:
    """`arrays`; of those that `node` reads already, the initializers: most of a graph's constants, which take long to make anew."""
    scale, zero_point = arrays(qparams)
    given = node.inputs[1:3] if node is not None else ()
    if len(given) != 2:
        return scale, zero_point
    return _standing(given[0], scale), _standing(given[1], zero_point)


def _standing(value: ir.Value | None, array: np.ndarray) -> Constant:
    """`value` if it is an initializer of this dtype and shape, else `array`, which holds the same numbers."""
    held = constant(value) if value is not None and value.is_initializer() else None
    return value if value is not None and held is not None and (held.dtype, held.shape) == (array.dtype, array.shape) else array


def flip(codes: np.ndarray) -> np.ndarray:
    """int8 codes as uint8, uint8 codes as int8: 128 further up or down, which is the top bit flipped."""
    other = np.int8 if codes.dtype == np.uint8 else np.uint8
    return np.asarray((codes.view(np.uint8) ^ np.uint8(128)).view(other))


def same(a: QParams, b: QParams) -> bool:
    """Whether both give every code the same meaning."""
    return a.dtype == b.dtype and a.axis == b.axis and np.array_equal(a.scale, b.scale) and np.array_equal(a.zero_point, b.zero_point)


def qparams_of(node: ir.Node) -> QParams | WhyNot:
    """What the scale and zero point of a QuantizeLinear or DequantizeLinear say."""
    if attr_int(node, "block_size", 0):
        return WhyNot(f"{node.name!r} is quantized block by block")
    if is_op(node, "DequantizeLinear") and attr_int(node, "output_dtype", _FLOAT) not in (0, _FLOAT):
        return WhyNot(f"{node.name!r} does not give float32")
    scale = constant(node.inputs[1])
    if scale is None:
        return WhyNot(f"the scale of {node.name!r} is computed at run time")
    if scale.dtype != np.float32:
        return WhyNot(f"the scale of {node.name!r} is {scale.dtype}, not float32")
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None:
        zero_point, code_type = constant(given), given.dtype
        if zero_point is None:
            return WhyNot(f"the zero point of {node.name!r} is computed at run time")
    else:
        zero_point, code_type = np.zeros(scale.shape, np.int32), _default_code_type(node)
    dtype = _DTYPES.get(code_type) if code_type is not None else None
    if dtype is None:
        return WhyNot(f"the codes of {node.name!r} are {'of unknown type' if code_type is None else code_type.name.lower()}")
    return _qparams(node, scale, zero_point, dtype)


def _default_code_type(node: ir.Node) -> ir.DataType | None:
    if is_op(node, "DequantizeLinear"):
        return node.inputs[0].dtype if node.inputs[0] is not None else None
    return ir.DataType(attr_int(node, "output_dtype", 0) or _QUINT8)


def _qparams(node: ir.Node, scale: np.ndarray, zero_point: np.ndarray, dtype: QDType) -> QParams | WhyNot:
    if scale.size == 1 and zero_point.size == 1:
        scale, zero_point, axis = scale.reshape(()), zero_point.reshape(()), None
    elif scale.ndim == 1 and scale.shape == zero_point.shape:
        axis = attr_int(node, "axis", 1)
    else:
        return WhyNot(f"{node.name!r} has {scale.shape} scales and {zero_point.shape} zero points")
    try:
        return QParams(scale, zero_point, dtype, axis)
    except QuantizationError as error:
        return WhyNot(f"{node.name!r}: {error}")


def dequantized(value: ir.Value | None) -> Quant | WhyNot:
    """The codes that a DequantizeLinear makes `value` from."""
    node = producer(value)
    if value is None or node is None or not is_op(node, "DequantizeLinear") or node.inputs[0] is None:
        return WhyNot(f"{'an omitted input' if value is None else repr(value.name)} is float: no DequantizeLinear makes it")
    qparams = qparams_of(node)
    return qparams if isinstance(qparams, WhyNot) else Quant(node.inputs[0], qparams, node)


def activation(value: ir.Value | None) -> Quant | WhyNot:
    """`dequantized`, where the codes are uint8 (or an int8 constant) with one scale."""
    found = dequantized(value)
    if isinstance(found, WhyNot):
        return found
    held = constant(found.codes) is not None
    return _plain(found.qparams, repr(found.codes.name), (quint8, qint8) if held else (quint8,)) or found


def _plain(qparams: QParams, what: str, dtypes: tuple[QDType, ...] = (quint8,)) -> WhyNot | None:
    if qparams.axis is not None:
        return WhyNot(f"{what} has a scale per channel; activations take one scale")
    if qparams.dtype not in dtypes:
        return WhyNot(f"{what} has codes of {qparams.dtype!r}; kernels take 8 bits")
    return None


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The float contents of a constant, dequantized if it is quantized; None if `value` is computed."""
    known = constant(value)
    if known is not None:
        return known
    found = dequantized(value)
    codes = None if isinstance(found, WhyNot) else constant(found.codes)
    if codes is None or isinstance(found, WhyNot):
        return None
    try:
        return dequantize(codes, found.qparams)
    except QuantizationError:
        return None


def weight(value: ir.Value | None, axis: int) -> Weight | WhyNot:
    """The int8 codes of a constant weight whose scales, if there are many, lie along `axis`. uint8 weights are re-based."""
    found = dequantized(value)
    if isinstance(found, WhyNot):
        return found
    codes, qparams = constant(found.codes), found.qparams
    if codes is None:
        return WhyNot(f"the weight {found.codes.name!r} is computed at run time")
    if qparams.dtype not in (qint8, quint8):
        return WhyNot(f"the weight {found.codes.name!r} has codes of {qparams.dtype!r}; kernels take 8 bits")
    if qparams.axis is not None:
        if qparams.axis % codes.ndim != axis % codes.ndim:
            return WhyNot(f"the weight {found.codes.name!r} has a scale per index of axis {qparams.axis}, not of its output channels")
        if codes.shape[axis] != qparams.scale.size:
            return WhyNot(f"the weight {found.codes.name!r} has {codes.shape[axis]} channels and {qparams.scale.size} scales")
    if qparams.dtype == quint8:
        return Weight(flip(codes), QParams(qparams.scale, qparams.zero_point - 128, qint8, qparams.axis))
    return Weight(codes, qparams, found)


def output(value: ir.Value) -> Output | WhyNot:
    """The QuantizeLinear that alone reads `value`, through Relu and Clip, which become bounds on its codes.

    Exact: rounding is monotonic, so to clamp the codes is to clamp what they are rounded from.
    """
    low, high = -np.inf, np.inf
    while True:
        node = single_use(value)
        if node is None:
            return WhyNot(f"its float result {value.name!r} is {'a graph output' if value.is_graph_output() else 'read more than once'}")
        if is_op(node, "QuantizeLinear") and node.inputs[0] is value:
            break
        bounds = clip_bounds(node)
        if bounds is None or node.inputs[0] is not value:
            return WhyNot(f"its result goes to {node.op_type} {node.name!r} in float: no QuantizeLinear follows")
        # The later bound wins where they cross, as it does when one runs after the other.
        low, high = (min(max(bound, bounds[0]), bounds[1]) for bound in (low, high))
        value = node.outputs[0]
    qparams = qparams_of(node)
    if isinstance(qparams, WhyNot):
        return qparams
    reason = _plain(qparams, repr(node.outputs[0].name)) or _rounded_otherwise(node)
    if reason is not None:
        return reason
    first, last = (_code(bound, qparams) for bound in (low, high))
    return Output(node, qparams, first, last)


def _code(bound: float, qparams: QParams) -> int:
    if np.isinf(bound):  # as most are, and `quantize` says the same
        return qparams.dtype.qmin if bound < 0 else qparams.dtype.qmax
    return int(quantize(np.asarray(bound, np.float32), qparams))


def _rounded_otherwise(node: ir.Node) -> WhyNot | None:
    if node.inputs[0] is not None and node.inputs[0].dtype not in (ir.DataType.FLOAT, None):
        return WhyNot(f"{node.name!r} quantizes {node.inputs[0].dtype.name.lower() if node.inputs[0].dtype else 'unknown'}, not float32")
    return None


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """The range that a Relu, or a Clip with constant bounds, leaves; None for any other node."""
    if is_op(node, "Relu"):
        return 0.0, float(np.inf)
    if not is_op(node, "Clip"):
        return None
    ends = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        given = node.inputs[index] if len(node.inputs) > index else None
        value = np.asarray(default) if given is None else constant_of(given)
        if value is None or value.size != 1 or np.isnan(value).any():
            return None
        ends.append(float(value.reshape(())))
    # Clip is min(max(x, low), high).
    return min(ends[0], ends[1]), ends[1]
