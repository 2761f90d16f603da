"""Element-wise operators: unary, binary, n-ary, Where, Cast, and those that change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.graph import attr_float, attr_int, attr_str, ir, is_graph_output, is_op
from qrt.lower.lowering import Handler, Lowering, NotNative, identity
from qrt.ops.elementwise import BINARY, CASTS, SIXTEEN, UNARY, Binary, Cast, Unary, Where
from qrt.ops.movement import Expand
from qrt.ops.op import Op, View

__all__ = ["HANDLERS", "aligned", "combined", "given", "same"]


def given(value: ir.Value | None) -> ir.Value:
    """An input that the operator cannot do without."""
    if value is None:
        raise NotNative("a required input is missing")
    return value


def aligned(low: Lowering, values: Sequence[ir.Value]) -> tuple[list[int], tuple[int, ...]]:
    """Program values of operands that broadcast, all of the highest rank and in one layout, and that layout.

    The layout is that of the largest operand that is computed, so that no image is moved for a bias.
    """
    rank = max(len(low.shape(v)) for v in values)
    widest = [v for v in values if len(low.shape(v)) == rank]
    lead = max(widest, key=lambda v: (low.const(v) is None, int(np.prod(low.shape(v), dtype=np.int64))))
    perm = low.perm(lead)
    indices = []
    for value in values:
        shape = low.shape(value)
        missing = rank - len(shape)
        index = low.get(value, tuple(axis - missing for axis in perm if axis >= missing))
        if missing:
            index = low.call(View(tuple(shape[axis - missing] if axis >= missing else 1 for axis in perm)), [index])[0]
        indices.append(index)
    return indices, perm


def combined(low: Lowering, op: Op, a: int, b: int) -> int:
    """`op` on two aligned operands, which are repeated first where a walk over both takes too many strides: nodes of the fused form have no
    other way."""
    try:
        return low.call(op, [a, b])[0]
    except UnsupportedOp:
        specs = low.program.specs
        shape = tuple(np.broadcast_shapes(specs[a].shape, specs[b].shape))
        return low.call(op, [low.call(Expand(shape), [index])[0] for index in (a, b)])[0]


def same(low: Lowering, source: ir.Value, target: ir.Value) -> None:
    """Binds `target` to what `source` is."""
    low.rename(source, target, identity(len(low.shape(source))))


def _apply(low: Lowering, node: ir.Node, op: Unary) -> None:
    x = given(node.inputs[0])
    dtype = low.dtype(x)
    if dtype.name not in UNARY[op.name].dtypes:
        raise NotNative(f"{node.op_type} has no kernel for {dtype}")
    perm = low.perm(x)
    low.bind(node.outputs[0], low.call(op, [low.get(x, perm)])[0], perm)


def _unary(name: str, *attributes: tuple[str, float]) -> Handler:
    """The handler of a unary operator whose parameters are float attributes with these defaults."""

    def handler(low: Lowering, node: ir.Node) -> None:
        _apply(low, node, Unary(name, tuple(attr_float(node, key, default) for key, default in attributes)))

    return handler


def _gelu(low: Lowering, node: ir.Node) -> None:
    ops = {"none": "gelu", "tanh": "gelu_tanh"}
    _apply(low, node, Unary(ops[attr_str(node, "approximate", "none")]))


def _is_inf(low: Lowering, node: ir.Node) -> None:
    _apply(low, node, Unary("is_inf", (attr_int(node, "detect_negative", 1), attr_int(node, "detect_positive", 1))))


def _clip(low: Lowering, node: ir.Node) -> None:
    dtype = low.dtype(given(node.inputs[0]))
    if dtype.name not in UNARY["clip"].dtypes:
        raise NotNative(f"Clip has no kernel for {dtype}")
    bounds = [(*node.inputs, None, None)[k] for k in (1, 2)]
    if all(bound is None or low.const(bound) is not None for bound in bounds):
        widest = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        known = [low.const(bound) for bound in bounds]
        _apply(low, node, Unary("clip", tuple(end if b is None else b.reshape(-1)[0].item() for b, end in zip(known, widest, strict=True))))
        return
    values = [given(node.inputs[0]), *(bound for bound in bounds if bound is not None)]
    names = [name for name, bound in zip(("max", "min"), bounds, strict=True) if bound is not None]
    indices, perm = aligned(low, values)
    result = indices[0]
    for name, bound in zip(names, indices[1:], strict=True):
        result = low.call(Binary(name), [result, bound])[0]
    low.bind(node.outputs[0], result, perm)


def _folded(name: str) -> Handler:
    """The handler of a binary or n-ary operator: f(f(a, b), c) …"""

    def handler(low: Lowering, node: ir.Node) -> None:
        values = [given(v) for v in node.inputs]
        for value in values:
            if low.dtype(value).name not in BINARY[name].dtypes:
                raise NotNative(f"{node.op_type} has no kernel for {low.dtype(value)}")
        if len(values) == 1:
            same(low, values[0], node.outputs[0])
            return
        indices, perm = aligned(low, values)
        result = indices[0]
        for index in indices[1:]:
            result = low.call(Binary(name), [result, index])[0]
        low.bind(node.outputs[0], result, perm)

    return handler


def _mean(low: Lowering, node: ir.Node) -> None:
    values = [given(v) for v in node.inputs]
    dtype = low.dtype(values[0])
    if dtype.kind != "f" or dtype.name not in BINARY["add"].dtypes:
        raise NotNative(f"Mean has no kernel for {dtype}")
    indices, perm = aligned(low, values)
    result = indices[0]
    for index in indices[1:]:
        result = low.call(Binary("add"), [result, index])[0]
    count = low.constant(np.full((1,) * len(perm), len(values), dtype))
    low.bind(node.outputs[0], low.call(Binary("div"), [result, count])[0], perm)


def _mod(low: Lowering, node: ir.Node) -> None:
    _folded("fmod" if attr_int(node, "fmod", 0) else "mod")(low, node)


def _pow(low: Lowering, node: ir.Node) -> None:
    x, exponent = given(node.inputs[0]), given(node.inputs[1])
    known, dtype = low.const(exponent), low.dtype(x)
    if known is not None and known.size == 1 and known.ndim <= len(low.shape(x)):
        power = {2: "square", 3: "cube"}.get(known.item())
        if power is not None and dtype.name in UNARY[power].dtypes:
            _apply(low, node, Unary(power))
            return
    if dtype.name not in BINARY["pow"].dtypes or low.dtype(exponent).name not in CASTS:
        raise NotNative(f"Pow has no kernel for {dtype} to the power of {low.dtype(exponent)}")
    (base, power_index), perm = aligned(low, [x, exponent])
    if low.dtype(exponent) != dtype:
        power_index = low.call(Cast(dtype.name), [power_index])[0]
    low.bind(node.outputs[0], low.call(Binary("pow"), [base, power_index])[0], perm)


def _where(low: Lowering, node: ir.Node) -> None:
    values = [given(v) for v in node.inputs]
    if low.dtype(values[1]).name not in CASTS:
        raise NotNative(f"Where has no kernel for {low.dtype(values[1])}")
    indices, perm = aligned(low, values)
    low.bind(node.outputs[0], low.call(Where(), indices)[0], perm)


def _cast(low: Lowering, node: ir.Node) -> None:
    x = given(node.inputs[0])
    try:
        dtype = ir.DataType(attr_int(node, "to", 0)).numpy()
    except (TypeError, ValueError) as error:
        raise NotNative("a cast to a dtype that NumPy lacks") from error
    if dtype == low.dtype(x):
        same(low, x, node.outputs[0])
        return
    perm = low.perm(x)
    if dtype.name in SIXTEEN:
        _to_sixteen(low, node, x, dtype.name)
        return
    if not {dtype.name, low.dtype(x).name} <= {*CASTS, *SIXTEEN}:
        raise NotNative(f"no kernel casts {low.dtype(x)} to {dtype}")
    low.bind(node.outputs[0], low.call(Cast(dtype.name), [low.get(x, perm)])[0], perm)


def _to_sixteen(low: Lowering, node: ir.Node, x: ir.Value, name: str) -> None:
    """A Cast to 16 bits; if all that follows are Casts back, it gives the rounded number as float32, which makes nothing of those."""
    source, perm, y = low.dtype(x), low.perm(x), node.outputs[0]
    if source.name not in CASTS or source == np.float64:  # which would round twice, in float32 first
        raise NotNative(f"no kernel casts {source} to {name}")
    index = low.get(x, perm)
    if source != np.float32:
        index = low.call(Cast("float32"), [index])[0]
    back = not is_graph_output(y) and all(is_op(use.node, "Cast") and attr_int(use.node, "to", 0) == ir.DataType.FLOAT for use in y.uses())
    low.bind(y, low.call(Unary(f"round_{name}") if back else Cast(name), [index])[0], perm)


def _identity(low: Lowering, node: ir.Node) -> None:
    same(low, given(node.inputs[0]), node.outputs[0])


def _dropout(low: Lowering, node: ir.Node) -> None:
    if len(node.inputs) > 2 and node.inputs[2] is not None and low.require_const(node.inputs[2], "training_mode").any():
        raise NotNative("Dropout that trains")
    _identity(low, node)
    if len(node.outputs) > 1:
        low.bind_const(node.outputs[1], np.ones(low.shape(given(node.inputs[0])), np.bool_))


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "Abs"): _unary("abs"),
    ("", "Acos"): _unary("acos"),
    ("", "Acosh"): _unary("acosh"),
    ("", "Add"): _folded("add"),
    ("", "And"): _folded("and"),
    ("", "Asin"): _unary("asin"),
    ("", "Asinh"): _unary("asinh"),
    ("", "Atan"): _unary("atan"),
    ("", "Atanh"): _unary("atanh"),
    ("", "BitwiseAnd"): _folded("bitwise_and"),
    ("", "BitwiseNot"): _unary("bitwise_not"),
    ("", "BitwiseOr"): _folded("bitwise_or"),
    ("", "BitwiseXor"): _folded("bitwise_xor"),
    ("", "Cast"): _cast,
    ("", "Ceil"): _unary("ceil"),
    ("", "Celu"): _unary("celu", ("alpha", 1.0)),
    ("", "Clip"): _clip,
    ("", "Cos"): _unary("cos"),
    ("", "Cosh"): _unary("cosh"),
    ("", "Div"): _folded("div"),
    ("", "Dropout"): _dropout,
    ("", "Elu"): _unary("elu", ("alpha", 1.0)),
    ("", "Equal"): _folded("equal"),
    ("", "Erf"): _unary("erf"),
    ("", "Exp"): _unary("exp"),
    ("", "Floor"): _unary("floor"),
    ("", "Gelu"): _gelu,
    ("", "Greater"): _folded("greater"),
    ("", "GreaterOrEqual"): _folded("greater_or_equal"),
    ("", "HardSigmoid"): _unary("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    ("", "HardSwish"): _unary("hard_swish"),
    ("", "Identity"): _identity,
    ("", "IsInf"): _is_inf,
    ("", "IsNaN"): _unary("is_nan"),
    ("", "LeakyRelu"): _unary("leaky_relu", ("alpha", 0.01)),
    ("", "Less"): _folded("less"),
    ("", "LessOrEqual"): _folded("less_or_equal"),
    ("", "Log"): _unary("log"),
    ("", "Max"): _folded("max"),
    ("", "Mean"): _mean,
    ("", "Min"): _folded("min"),
    ("", "Mish"): _unary("mish"),
    ("", "Mod"): _mod,
    ("", "Mul"): _folded("mul"),
    ("", "Neg"): _unary("neg"),
    ("", "Not"): _unary("not"),
    ("", "Or"): _folded("or"),
    ("", "PRelu"): _folded("prelu"),
    ("", "Pow"): _pow,
    ("", "Reciprocal"): _unary("reciprocal"),
    ("", "Relu"): _unary("relu"),
    ("", "Round"): _unary("round"),
    ("", "Selu"): _unary("selu", ("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875)),
    ("", "Sigmoid"): _unary("sigmoid"),
    ("", "Sign"): _unary("sign"),
    ("", "Sin"): _unary("sin"),
    ("", "Sinh"): _unary("sinh"),
    ("", "Softplus"): _unary("softplus"),
    ("", "Softsign"): _unary("softsign"),
    ("", "Sqrt"): _unary("sqrt"),
    ("", "Sub"): _folded("sub"),
    ("", "Sum"): _folded("add"),
    ("", "Swish"): _unary("swish", ("alpha", 1.0)),
    ("", "Tan"): _unary("tan"),
    ("", "Tanh"): _unary("tanh"),
    ("", "ThresholdedRelu"): _unary("thresholded_relu", ("alpha", 1.0)),
    ("", "Where"): _where,
    ("", "Xor"): _folded("xor"),
}
