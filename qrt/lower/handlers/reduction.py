"""Operators that fold axes, and those that normalize by what they fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.graph import attr_float, attr_int, attr_ints, ir
from qrt.lower.handlers.elementwise import aligned, combined
from qrt.lower.handlers.products import QRT, code_qparams, scalar, zero_point
from qrt.lower.handlers.reading import axis_of, optional, required
from qrt.lower.lowering import Handler, Lowering, NotNative, Tensor, identity
from qrt.ops.conv import Window
from qrt.ops.elementwise import Binary, Unary
from qrt.ops.normalization import ImageNorm, LayerNorm, LpNorm, RmsNorm, ScaledSoftmax, Softmax
from qrt.ops.op import View
from qrt.ops.pool import QAveragePool
from qrt.ops.quantization import Dequantize, Quantize
from qrt.ops.reduction import KINDS, ArgReduce, CumSum, Reduce
from qrt.ops.reduction.arg import DTYPES as ARG_DTYPES
from qrt.ops.reduction.cumsum import DTYPES as CUMSUM_DTYPES

__all__ = ["HANDLERS"]

_LARGEST = float(np.finfo(np.float32).max)


# -- folding axes ---------------------------------------------------------------------------------------------------------
def _axes(low: Lowering, node: ir.Node, index: int) -> tuple[int, ...] | None:
    """The logical axes that a node names as input `index` or by attribute; all if it names none, None if it then does nothing."""
    rank = len(low.shape(required(node)))
    if rank == 0:
        raise NotNative(f"{node.op_type} of a scalar")
    given = optional(node, index)
    axes = attr_ints(node, "axes") if given is None else tuple(int(a) for a in low.require_const(given, "axes").reshape(-1))
    if not axes:
        return None if attr_int(node, "noop_with_empty_axes", 0) == 1 else tuple(range(rank))
    return tuple(sorted({axis_of(node, axis, rank) for axis in axes}))


def _runs(axes: Sequence[int], shape: Sequence[int]) -> list[tuple[int, int]]:
    """Physical axes as half-open runs of neighbours, last run first; extents of 1 between them do not part them."""
    runs: list[list[int]] = []
    for axis in sorted(axes):
        if runs and all(shape[k] == 1 for k in range(runs[-1][1], axis)):
            runs[-1][1] = axis + 1
        else:
            runs.append([axis, axis + 1])
    return [(first, last) for first, last in reversed(runs)]


def _fold(low: Lowering, kind: str, x: int, axes: Sequence[int]) -> int:
    """Physical axes of x folded; they stay with extent 1. The runs after the first fold what the first one left."""
    for first, last in _runs(axes, low.program.specs[x].shape):
        x = low.call(Reduce(kind, first, last), [x])[0]
        kind = {"l1": "sum", "sum_square": "sum"}.get(kind, kind)
    return x


def _squeeze(low: Lowering, x: Tensor, axes: Sequence[int]) -> Tensor:
    """`x` without the logical `axes`, which have extent 1."""
    left = [axis for axis in x.perm if axis not in axes]
    shape = low.program.specs[x.value].shape
    view = View(tuple(shape[k] for k, axis in enumerate(x.perm) if axis not in axes))
    return Tensor(low.call(view, [x.value])[0], tuple(sorted(left).index(axis) for axis in left))


def _bind(low: Lowering, node: ir.Node, y: Tensor, axes: Sequence[int]) -> None:
    """Binds output 0 to y, without `axes` unless keepdims says so."""
    if attr_int(node, "keepdims", 1) != 1:
        y = _squeeze(low, y, axes)
    low.bind(node.outputs[0], y.value, y.perm)


def _reduce(kind: str, finish: Callable[[Lowering, int], int] | None = None) -> Handler:
    """The handler of a fold, followed by what `finish` does to the result."""

    def handler(low: Lowering, node: ir.Node) -> None:
        x = required(node)
        dtype, axes = low.dtype(x), _axes(low, node, 1)
        if dtype.name not in KINDS[kind].dtypes or (finish is not None and dtype != np.float32):
            raise NotNative(f"{node.op_type} has no kernel for {dtype}")
        if axes is None:
            if finish is not None or kind in ("l1", "sum_square"):
                raise NotNative(f"{node.op_type} along no axes")
            low.rename(x, node.outputs[0], identity(len(low.shape(x))))
            return
        if not KINDS[kind].of_nothing and any(low.shape(x)[axis] == 0 for axis in axes):
            raise NotNative("a fold of no elements")
        perm = low.perm(x)
        y = _fold(low, kind, low.get(x, perm), [perm.index(axis) for axis in axes])
        _bind(low, node, Tensor(finish(low, y) if finish is not None else y, perm), axes)

    return handler


def _then(name: str) -> Callable[[Lowering, int], int]:
    return lambda low, y: low.call(Unary(name), [y])[0]


def _log_sum_exp(low: Lowering, node: ir.Node) -> None:
    """max + log Σ exp(x − max): the largest is kept finite, so that infinities come out as they should."""
    x = required(node)
    axes = _axes(low, node, 1)
    if low.dtype(x) != np.float32 or axes is None or any(low.shape(x)[axis] == 0 for axis in axes):
        raise NotNative(f"{node.op_type} has no kernel for {low.dtype(x)}{low.shape(x)}")
    perm = low.perm(x)
    value, physical = low.get(x, perm), [perm.index(axis) for axis in axes]
    largest = low.call(Unary("clip", (-_LARGEST, _LARGEST)), [_fold(low, "max", value, physical)])[0]
    powers = low.call(Unary("exp"), low.call(Binary("sub"), [value, largest]))[0]
    logarithm = low.call(Unary("log"), [_fold(low, "sum", powers, physical)])[0]
    _bind(low, node, Tensor(low.call(Binary("add"), [logarithm, largest])[0], perm), axes)


def _arg(kind: str) -> Handler:
    def handler(low: Lowering, node: ir.Node) -> None:
        x = required(node)
        axis = axis_of(node, attr_int(node, "axis", 0), len(low.shape(x)))
        if low.dtype(x).name not in ARG_DTYPES or low.shape(x)[axis] == 0:
            raise NotNative(f"{node.op_type} has no kernel for {low.dtype(x)}{low.shape(x)}")
        perm = low.perm(x)
        op = ArgReduce(kind, perm.index(axis), bool(attr_int(node, "select_last_index", 0)))
        _bind(low, node, Tensor(low.call(op, [low.get(x, perm)])[0], perm), (axis,))

    return handler


def _cumsum(low: Lowering, node: ir.Node) -> None:
    x = required(node)
    if low.dtype(x).name not in CUMSUM_DTYPES:
        raise NotNative(f"CumSum has no kernel for {low.dtype(x)}")
    axis = axis_of(node, int(scalar(low, required(node, 1), "axis")), len(low.shape(x)))
    perm = low.perm(x)
    op = CumSum(perm.index(axis), bool(attr_int(node, "exclusive", 0)), bool(attr_int(node, "reverse", 0)))
    low.bind(node.outputs[0], low.call(op, [low.get(x, perm)])[0], perm)


def _global_pool(kind: str) -> Handler:
    def handler(low: Lowering, node: ir.Node) -> None:
        x = required(node)
        rank, perm = len(low.shape(x)), low.perm(x)
        if low.dtype(x) != np.float32 or rank < 3 or 0 in low.shape(x)[2:]:
            raise NotNative(f"{node.op_type} has no kernel for {low.dtype(x)}{low.shape(x)}")
        y = _fold(low, kind, low.get(x, perm), [perm.index(axis) for axis in range(2, rank)])
        low.bind(node.outputs[0], y, perm)

    return handler


def _mean_of_codes(low: Lowering, node: ir.Node) -> None:
    """ReduceMean of codes: the axes are brought together and averaged as an image of one space axis."""
    x, axes = required(node), _axes(low, node, 5)
    shape = low.shape(x)
    if not axes or any(shape[axis] == 0 for axis in axes):
        raise ModelError(f"node {node.name!r}: the mean of codes of shape {shape} along {axes}, where there are none")
    perm = low.perm(x)
    runs = _runs([perm.index(axis) for axis in axes], [shape[axis] for axis in perm])
    if len(runs) > 1:
        perm = (*(axis for axis in range(len(shape)) if axis not in axes), *axes)
        runs = [(len(shape) - len(axes), len(shape))]
    (first, last), physical = runs[0], [shape[axis] for axis in perm]
    outer, n, inner = (int(np.prod(part, dtype=np.int64)) for part in (physical[:first], physical[first:last], physical[last:]))
    x_scale, y_scale = (scalar(low, required(node, k), "scale") for k in (1, 3))
    x_zero, y_zero = (zero_point(low, required(node, k)) for k in (2, 4))
    bounds = attr_int(node, "qmin", 0), attr_int(node, "qmax", 255)
    op = QAveragePool(Window((n,), (1,), (1,), (0, 0)), None, x_scale, x_zero, y_scale, y_zero, *bounds)
    y = low.call(op, low.call(View((outer, n, inner)), [low.get(x, perm)]))[0]
    y = low.call(View(tuple(1 if axis in axes else shape[axis] for axis in perm)), [y])[0]
    _bind(low, node, Tensor(y, perm), axes)


# -- normalizing ------------------------------------------------------------------------------------------------------------
def _float(low: Lowering, node: ir.Node) -> ir.Value:
    """Input 0, which has to be float32."""
    x = required(node)
    if low.dtype(x) != np.float32:
        raise NotNative(f"{node.op_type} has no kernel for {low.dtype(x)}")
    return x


def _softmax(log: bool) -> Handler:
    def handler(low: Lowering, node: ir.Node) -> None:
        x = _float(low, node)
        axis, perm = axis_of(node, attr_int(node, "axis", -1), len(low.shape(x))), low.perm(x)
        low.bind(node.outputs[0], low.call(Softmax(perm.index(axis), log), [low.get(x, perm)])[0], perm)

    return handler


def _scaled_softmax(low: Lowering, node: ir.Node) -> None:
    x, mask, scale = _float(low, node), optional(node, 1), attr_float(node, "scale", 1.0)
    rank = len(low.shape(x))
    (scores, *masks), perm = aligned(low, [x] if mask is None else [x, mask])
    try:
        if perm[-1] != rank - 1:
            raise UnsupportedOp("rows do not lie in one piece")
        y = low.call(ScaledSoftmax(scale), [scores, *masks])[0]
    except UnsupportedOp:
        y = low.call(Binary("mul"), [scores, low.constant(np.full((1,) * len(perm), scale, np.float32))])[0]
        for index in masks:
            y = combined(low, Binary("add"), y, index)
        y = low.call(Softmax(perm.index(len(perm) - 1)), [y])[0]
    low.bind(node.outputs[0], y, perm)


def _softmax_of_codes(low: Lowering, node: ir.Node) -> None:
    x = required(node)
    axis, perm = axis_of(node, attr_int(node, "axis", -1), len(low.shape(x))), low.perm(x)
    real = low.call(Dequantize(code_qparams(low, node, 1)), [low.get(x, perm)])
    codes = Quantize(code_qparams(low, node, 3), attr_int(node, "qmin", 0), attr_int(node, "qmax", 255))
    low.bind(node.outputs[0], low.call(codes, low.call(Softmax(perm.index(axis)), real))[0], perm)


def _of_rows(low: Lowering, node: ir.Node, default_axis: int) -> tuple[int, tuple[int, ...], int]:
    """x with its rows last, its layout, and the axis that rows start at. Rows of one axis keep the layout where they can."""
    x = _float(low, node)
    rank = len(low.shape(x))
    axis = axis_of(node, attr_int(node, "axis", default_axis), rank)
    perm = low.perm(x)
    if perm[axis:] != tuple(range(axis, rank)):
        perm = identity(rank)
    return low.get(x, perm), perm, axis


def _repeats(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a value of `shape`, broadcast, takes the shape `wanted`."""
    return len(shape) <= len(wanted) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(wanted), strict=False))


def _parameter(low: Lowering, value: ir.Value, row: tuple[int, ...]) -> int | None:
    """A scale or bias that all rows of shape `row` share, in that shape; None for any other, and for one that is computed and repeats."""
    shape, held = low.shape(value), low.const(value)
    above = max(len(shape) - len(row), 0)
    own = shape[above:]
    if set(shape[:above]) - {1} or not _repeats(own, row) or (held is None and own != row):
        return None
    if held is None:
        return low.call(View(row), [low.get(value)])[0] if above else low.get(value)
    return low.constant(
        low.constants.derived(held, ("repeated", row), lambda: np.ascontiguousarray(np.broadcast_to(held.reshape(own), row)))
    )


def _normalize(
    low: Lowering, node: ir.Node, op: LayerNorm | RmsNorm, given: list[int], values: list[ir.Value], perm: tuple[int, ...]
) -> None:
    """Binds output 0 to what `op` makes of `given` and of `values`, the scale and bias: within it, or from the first on that `_parameter`
    cannot lay out, after it."""
    shape, row = low.program.specs[given[0]].shape, low.program.specs[given[0]].shape[op.axis :]
    logical = tuple(shape[perm.index(axis)] for axis in range(len(shape)))
    within: list[int] = []
    for value in values:
        if not _repeats(low.shape(value), logical):
            raise ModelError(f"node {node.name!r}: a scale or bias of shape {low.shape(value)} does not fit a value of shape {logical}")
        index = _parameter(low, value, row)
        if index is None:
            break
        within.append(index)
    ones = [] if within else [low.constant(np.ones(row, np.float32))]
    low.bind(node.outputs[0], low.call(op, [*given, *within, *ones])[0], perm)
    for name, value in list(zip(("mul", "add"), values, strict=False))[len(within) :]:
        operands, perm = aligned(low, [node.outputs[0], value])
        low.bind(node.outputs[0], low.call(Binary(name), operands)[0], perm)


def _only_first(node: ir.Node) -> None:
    if any(v.name and (tuple(v.uses()) or v.is_graph_output()) for v in node.outputs[1:]):
        raise NotNative("statistics are read beside the result")


def _layer_norm(low: Lowering, node: ir.Node) -> None:
    _only_first(node)
    x, perm, axis = _of_rows(low, node, -1)
    values = [value for value in (required(node, 1), optional(node, 2)) if value is not None]
    _normalize(low, node, LayerNorm(axis, attr_float(node, "epsilon", 1e-5)), [x], values, perm)


def _residual_layer_norm(low: Lowering, node: ir.Node) -> None:
    (x, residual), perm = aligned(low, [_float(low, node), required(node, 1)])
    rank, specs, fused = len(perm), low.program.specs, perm[-1] == len(perm) - 1
    fused = fused and specs[x] == specs[residual]
    if not fused:
        low.bind(node.outputs[0], combined(low, Binary("add"), x, residual), perm)
        perm = identity(rank)
        x = low.get(node.outputs[0], perm)
    values = [value for value in (required(node, 2), optional(node, 3)) if value is not None]
    op = LayerNorm(rank - 1, attr_float(node, "epsilon", 1e-5), fused)
    _normalize(low, node, op, [x, residual] if fused else [x], values, perm)


def _rms_norm(low: Lowering, node: ir.Node) -> None:
    x, perm, axis = _of_rows(low, node, -1)
    _normalize(low, node, RmsNorm(axis, attr_float(node, "epsilon", 1e-5)), [x], [required(node, 1)], perm)


def _lp_norm(low: Lowering, node: ir.Node) -> None:
    x = _float(low, node)
    rank = len(low.shape(x))
    axis = axis_of(node, attr_int(node, "axis", -1), rank)
    perm = low.perm(x)
    if rank and perm[-1] != axis:
        perm = (*(k for k in range(rank) if k != axis), axis)
    low.bind(node.outputs[0], low.call(LpNorm(attr_int(node, "p", 2)), [low.get(x, perm)])[0], perm)


def _image_norm(low: Lowering, node: ir.Node) -> None:
    x = _float(low, node)
    shape = low.shape(x)
    if len(shape) < 3:
        raise NotNative(f"{node.op_type} of a value of {len(shape)} axes")
    groups = attr_int(node, "num_groups", 1) if node.op_type == "GroupNormalization" else shape[1]
    inputs = [low.image(x), *(low.get(required(node, k)) for k in (1, 2))]
    low.bind_image(node.outputs[0], low.call(ImageNorm(groups, attr_float(node, "epsilon", 1e-5)), inputs)[0])


def _mean_variance(low: Lowering, node: ir.Node) -> None:
    """(x − mean) / (sqrt(mean of (x − mean)²) + 1e-9), as the ONNX function body says."""
    x = _float(low, node)
    rank, perm = len(low.shape(x)), low.perm(x)
    axes = [perm.index(axis_of(node, axis, rank)) for axis in attr_ints(node, "axes", (0, 2, 3))]
    value = low.get(x, perm)
    away = low.call(Binary("sub"), [value, _fold(low, "mean", value, axes)])[0]
    deviation = low.call(Unary("sqrt"), [_fold(low, "mean", low.call(Unary("square"), [away])[0], axes)])[0]
    small = low.constant(np.full((1,) * rank, 1e-9, np.float32))
    deviation = low.call(Binary("add"), [deviation, small])[0]
    low.bind(node.outputs[0], low.call(Binary("div"), [away, deviation])[0], perm)


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "ArgMax"): _arg("max"),
    ("", "ArgMin"): _arg("min"),
    ("", "CumSum"): _cumsum,
    ("", "GlobalAveragePool"): _global_pool("mean"),
    ("", "GlobalMaxPool"): _global_pool("max"),
    ("", "GroupNormalization"): _image_norm,
    ("", "InstanceNormalization"): _image_norm,
    ("", "LayerNormalization"): _layer_norm,
    ("", "LogSoftmax"): _softmax(log=True),
    ("", "LpNormalization"): _lp_norm,
    ("", "MeanVarianceNormalization"): _mean_variance,
    ("", "RMSNormalization"): _rms_norm,
    ("", "ReduceL1"): _reduce("l1"),
    ("", "ReduceL2"): _reduce("sum_square", _then("sqrt")),
    ("", "ReduceLogSum"): _reduce("sum", _then("log")),
    ("", "ReduceLogSumExp"): _log_sum_exp,
    ("", "ReduceMax"): _reduce("max"),
    ("", "ReduceMean"): _reduce("mean"),
    ("", "ReduceMin"): _reduce("min"),
    ("", "ReduceProd"): _reduce("prod"),
    ("", "ReduceSum"): _reduce("sum"),
    ("", "ReduceSumSquare"): _reduce("sum_square"),
    ("", "Softmax"): _softmax(log=False),
    (QRT, "QReduceMean"): _mean_of_codes,
    (QRT, "FusedLayerNorm"): _residual_layer_norm,
    (QRT, "FusedSoftmax"): _scaled_softmax,
    (QRT, "QSoftmax"): _softmax_of_codes,
}
