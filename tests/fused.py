"""The fused form in NumPy, one node after the other: an evaluator for tests, independent of ops and kernels.

Products are summed exactly (float64 holds every sum of 8-bit products met here); results are rounded by core.numerics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qrt.core.dtypes import quint8
from qrt.core.numerics import quantize, requantize, round_clamp
from qrt.core.qparams import QParams
from qrt.graph import Model, attr_float, attr_int, attr_ints, attr_str, constant, ir
from qrt.graph.evaluate import evaluate

OPSETS = {"": 21}
# The attributes that the fused form adds to the standard ones.
OURS = ("qmin", "qmax", "signed", "residual_first", "activation", "activation_params")
F32 = np.float32
Arrays = list[np.ndarray | None]


def run(model: Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a fused model."""
    values: dict[ir.Value, np.ndarray] = {v: feeds[v.name or ""] for v in model.graph.inputs}
    for node in model.graph:
        inputs = [None if v is None else values[v] if v in values else constant(v) for v in node.inputs]
        if node.domain == "ai.qrt":
            results: list[np.ndarray] | None = [NODES[node.op_type](node, inputs)]
        else:
            results = evaluate(node, inputs, OPSETS)
        assert results is not None, f"{node.op_type} {node.name}"
        for value, array in zip(node.outputs, results, strict=True):
            assert value.dtype is None or value.dtype.numpy() == array.dtype, f"{node.op_type} {node.name}: {array.dtype}"
            values[value] = array
    return [values[v] for v in model.graph.outputs]


def _standard(op_type: str, inputs: Arrays, node: ir.Node | None = None, **attributes: object) -> np.ndarray:
    """One standard node, in float64 if its inputs are."""
    keep = {} if node is None else {name: attr for name, attr in node.attributes.items() if name not in OURS}
    values = [None if a is None else ir.Value(name=f"x{i}") for i, a in enumerate(inputs)]
    made = ir.node(op_type, values, {**keep, **attributes}, outputs=[ir.Value(name="y")])  # type: ignore[arg-type]
    results = evaluate(made, inputs, OPSETS)
    assert results is not None, op_type
    return results[0]


def _wide(codes: np.ndarray, zero_point: np.ndarray, axis: int | None = None) -> np.ndarray:
    zero_point = np.asarray(zero_point, np.float64)
    if zero_point.ndim and zero_point.size > 1 and axis is not None:
        shape = [1] * codes.ndim
        shape[axis] = -1
        zero_point = zero_point.reshape(shape)
    return codes.astype(np.float64) - zero_point


def _along(vector: np.ndarray, rank: int, axis: int) -> np.ndarray:
    if vector.ndim == 0:
        return vector
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def _narrow(node: ir.Node, acc: np.ndarray, multiplier: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    codes = requantize(acc.astype(np.int32), np.asarray(multiplier, F32), zero_point, quint8)
    return _bounded(node, codes)


def _bounded(node: ir.Node, codes: np.ndarray) -> np.ndarray:
    return np.clip(codes, attr_int(node, "qmin", 0), attr_int(node, "qmax", 255)).astype(np.uint8)


def _codes(node: ir.Node, real: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    return _bounded(node, quantize(real.astype(F32), QParams(scale, zero_point, quint8)))


def _real(codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    return (codes.astype(np.int32) - np.int32(zero_point)).astype(F32) * scale


def _conv_acc(node: ir.Node, i: Arrays, transposed: bool, bias: np.ndarray | None) -> np.ndarray:
    x, _, x_zp, w, _, w_zp = i[:6]
    channel = 1 if transposed else 0
    acc = _standard("ConvTranspose" if transposed else "Conv", [_wide(x, x_zp), _wide(w, w_zp, channel)], node)
    return acc if bias is None else acc + _along(bias, acc.ndim, 1)


def _q_conv(node: ir.Node, i: Arrays, transposed: bool = False) -> np.ndarray:
    acc = _conv_acc(node, i, transposed, i[8] if len(i) > 8 else None)
    return _narrow(node, acc, _along((i[1] * i[4]) / i[6], acc.ndim, 1), i[7])


def _q_conv_add(node: ir.Node, i: Arrays) -> np.ndarray:
    acc = _conv_acc(node, i, False, i[8])
    c_scale, c_zp, r, r_scale, r_zp = i[9:14]
    c = requantize(acc.astype(np.int32), _along((i[1] * i[4]) / c_scale, acc.ndim, 1).astype(F32), c_zp, quint8)
    operands = (r, r_scale, r_zp, c, c_scale, c_zp) if attr_int(node, "residual_first", 0) else (c, c_scale, c_zp, r, r_scale, r_zp)
    return _sum(node, *operands, i[6], i[7])


def _sum(node: ir.Node, *i: np.ndarray) -> np.ndarray:
    """The sum as docs/architecture.md defines it, which is how ONNX Runtime computes it: the zero point is added before rounding."""
    a, a_scale, a_zp, b, b_scale, b_zp, y_scale, y_zp = i
    ra, rb = a_scale / y_scale, b_scale / y_scale
    base = 128 if attr_int(node, "signed", 0) else 0
    a, a_zp, b, b_zp, y_zp = (np.asarray(v, np.float64) - base for v in (a, a_zp, b, b_zp, y_zp))
    k = F32(y_zp) - _fma(a_zp, ra, rb * F32(b_zp))
    return _bounded(node, round_clamp(_fma(a, ra, _fma(b, rb, k)), np.asarray(base), 0, 255))


def _fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x · y + z rounded once to float32: codes times float32 is exact in float64, and so is the sum unless y is next to nothing."""
    return (np.asarray(x, np.float64) * np.asarray(y, np.float64) + np.asarray(z, np.float64)).astype(F32)


def _q_conv_float(node: ir.Node, i: Arrays) -> np.ndarray:
    acc = _conv_acc(node, i, False, None).astype(F32)
    y = acc * _along(i[1] * i[4], acc.ndim, 1)
    return (y if len(i) < 7 else y + _along(i[6], acc.ndim, 1)).astype(F32)


def _product(node: ir.Node, i: Arrays) -> np.ndarray:
    b = i[3]
    axis = -2 if attr_int(node, "transB", 0) else -1
    wide = _wide(b, i[5], axis)
    return np.matmul(_wide(i[0], i[2]), np.swapaxes(wide, -1, -2) if attr_int(node, "transB", 0) else wide)


def _q_matmul(node: ir.Node, i: Arrays) -> np.ndarray:
    acc = _product(node, i) + (i[8] if len(i) > 8 else 0)
    return _narrow(node, acc, (i[1] * i[4]) / i[6], i[7])


def _q_matmul_float(node: ir.Node, i: Arrays) -> np.ndarray:
    y = _product(node, i).astype(F32) * (i[1] * i[4])
    return (y if len(i) < 7 else y + i[6]).astype(F32)


def _q_binary(function: Callable[..., np.ndarray]) -> Callable[[ir.Node, Arrays], np.ndarray]:
    def compute(node: ir.Node, i: Arrays) -> np.ndarray:
        return _codes(node, function(_real(*i[:3]), _real(*i[3:6])), i[6], i[7])

    return compute


def _q_concat(node: ir.Node, i: Arrays) -> np.ndarray:
    parts = [_real(*i[k : k + 3]) for k in range(2, len(i), 3)]
    return _codes(node, np.concatenate(parts, attr_int(node, "axis", 0)), i[0], i[1])


def _q_spatial(op_type: str) -> Callable[[ir.Node, Arrays], np.ndarray]:
    def compute(node: ir.Node, i: Arrays) -> np.ndarray:
        return _codes(node, _standard(op_type, [_real(*i[:3]), *i[5:]], node), i[3], i[4])

    return compute


def _q_average(node: ir.Node, i: Arrays) -> np.ndarray:
    """Over a whole image: one multiplication of the integer sum, as ONNX Runtime has it."""
    x, x_scale, x_zp, y_scale, y_zp = i
    extents = x.shape[2:]
    if node.op_type == "QAveragePool" and attr_ints(node, "kernel_shape") != extents:
        return _q_spatial("AveragePool")(node, i)
    total = _wide(x, x_zp).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
    return _narrow(node, total, x_scale / (y_scale * F32(np.prod(extents))), y_zp)


def _activate(node: ir.Node, y: np.ndarray) -> np.ndarray:
    params = node.attributes["activation_params"].as_floats()
    match attr_str(node, "activation", ""):
        case "":
            return y
        case "Relu":
            return np.maximum(y, F32(0))
        case "Clip":
            return np.clip(y, F32(params[0]), F32(params[1]))
        case "LeakyRelu":
            return np.where(y < 0, F32(params[0]) * y, y)
        case "HardSwish":
            return y * np.clip(y / 6 + F32(0.5), 0, 1)
        case "Sigmoid":
            return 1 / (1 + np.exp(-y))
        case "SiLU":
            return y / (1 + np.exp(-y))
    raise AssertionError(attr_str(node, "activation", ""))


def _fused(op_type: str) -> Callable[[ir.Node, Arrays], np.ndarray]:
    def compute(node: ir.Node, i: Arrays) -> np.ndarray:
        bias, residual = (i[k] if len(i) > k else None for k in (2, 3))
        y = _standard(op_type, i[:2] if op_type == "MatMul" else i[:3], node)
        if op_type == "MatMul" and bias is not None:
            y = y + bias
        assert op_type != "Gemm" or attr_float(node, "alpha", 1.0) == 1.0
        return _activate(node, y if residual is None else y + residual).astype(F32)

    return compute


def _layer_norm(node: ir.Node, i: Arrays) -> np.ndarray:
    x = i[0] + i[1]
    away = x - x.mean(-1, keepdims=True)
    y = away / np.sqrt(np.square(away).mean(-1, keepdims=True) + F32(attr_float(node, "epsilon", 1e-5))) * i[2]
    return y + i[3] if len(i) > 3 else y


def _softmax(node: ir.Node, i: Arrays) -> np.ndarray:
    scores = i[0] * F32(attr_float(node, "scale", 1.0))
    scores = scores if len(i) == 1 else scores + i[1]
    power = np.exp(scores - scores.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


NODES: dict[str, Callable[[ir.Node, Arrays], np.ndarray]] = {
    "QConv": _q_conv,
    "QConvTranspose": lambda node, i: _q_conv(node, i, transposed=True),
    "QConvAdd": _q_conv_add,
    "QConvFloat": _q_conv_float,
    "QMatMul": _q_matmul,
    "QMatMulFloat": _q_matmul_float,
    "QAdd": lambda node, i: _sum(node, *i),
    "QMul": _q_binary(np.multiply),
    "QConcat": _q_concat,
    "QLut": lambda node, i: i[1][i[0]],
    "QAveragePool": _q_average,
    "QGlobalAveragePool": _q_average,
    "QResize": _q_spatial("Resize"),
    "QSoftmax": _q_spatial("Softmax"),
    "QReduceMean": _q_spatial("ReduceMean"),
    "FlipSign": lambda node, i: (i[0].view(np.uint8) ^ np.uint8(128)).view(np.int8 if i[0].dtype == np.uint8 else np.uint8),
    "FusedConv": _fused("Conv"),
    "FusedConvTranspose": _fused("ConvTranspose"),
    "FusedGemm": _fused("Gemm"),
    "FusedMatMul": _fused("MatMul"),
    "FusedLayerNorm": _layer_norm,
    "FusedSoftmax": _softmax,
}
