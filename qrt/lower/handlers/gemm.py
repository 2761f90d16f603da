"""MatMul, Gemm and MatMulInteger, in float and in the fused form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qrt.core.errors import ModelError
from qrt.graph import attr_float, attr_int, attr_ints, ir, is_op
from qrt.lower.handlers import products
from qrt.lower.handlers.products import QRT
from qrt.lower.handlers.reading import optional
from qrt.lower.lowering import Handler, Lowering, NotNative, identity
from qrt.ops.gemm import BatchedMatMul, Codes, Dense, Epilogue, Float, Int32, Weights
from qrt.ops.op import Array, View

__all__ = ["HANDLERS"]


def _rows(low: Lowering, value: ir.Value) -> tuple[int, tuple[int, ...]]:
    """`value` in a layout whose last axis is innermost, and that layout."""
    rank = len(low.shape(value))
    perm = low.perm(value)
    perm = perm if perm[-1] == rank - 1 else identity(rank)
    return low.get(value, perm), perm


def _matrix(low: Lowering, b: ir.Value, points: ir.Value | None, bias: ir.Value | None, trans_b: bool, factor: float = 1.0) -> Weights:
    """The constant matrix `b` as Weights of one group and tap."""

    def lay(array: Array) -> Array:
        matrix = array.T if trans_b else array
        return (matrix * np.float32(factor) if factor != 1.0 else matrix)[None, None]

    return products.weights(low, b, points, bias, f"matrix{trans_b}{factor}", lay)


def _dense(low: Lowering, node: ir.Node, a: ir.Value, dense: Dense, extra: list[int]) -> int:
    """Appends rows of `a` times constant weights; binds the result in a's layout."""
    x, perm = _rows(low, a)
    x, point = products.unsigned(low, x, dense.x_zero_point)
    y = low.call(replace(dense, x_zero_point=point), [x, *extra])[0]
    low.bind(node.outputs[0], y, perm)
    return y


def _is_matrix(low: Lowering, value: ir.Value | None) -> bool:
    array = low.const(value)
    return array is not None and array.ndim == 2


def _batched(
    low: Lowering, node: ir.Node, a: ir.Value, b: ir.Value, epilogue: Epilogue, bias: Array | None, points: tuple[int, int], trans_b: bool
) -> int:
    """Appends a product of two computed values; vectors become matrices of one row or column for it."""
    a_shape, b_shape = low.shape(a), low.shape(b)
    x, a_perm = _rows(low, a)
    b_perm = low.perm(b)
    y = low.get(b, b_perm)
    rank_b = len(b_shape)
    if trans_b:
        b_perm = tuple({rank_b - 1: rank_b - 2, rank_b - 2: rank_b - 1}.get(axis, axis) for axis in b_perm)
    if len(a_shape) == 1:
        x, a_perm = low.call(View((1, *a_shape)), [x])[0], (0, 1)
    if rank_b == 1:
        y, b_perm = low.call(View((*b_shape, 1)), [y])[0], (0, 1)
    (x, a_point), (y, b_point) = (products.unsigned(low, index, point) for index, point in zip((x, y), points, strict=True))
    rank = max(len(a_perm), len(b_perm))
    y_perm = _result_perm(node, rank)
    result = low.call(BatchedMatMul(epilogue, a_perm, b_perm, y_perm, bias, a_point, b_point), [x, y])[0]
    if len(a_shape) == 1 or rank_b == 1:
        shape = low.program.specs[result].shape
        kept = [
            n for axis, n in enumerate(shape) if not (len(a_shape) == 1 and axis == rank - 2) and not (rank_b == 1 and axis == rank - 1)
        ]
        result, y_perm = low.call(View(tuple(kept)), [result])[0], identity(len(kept))
    low.bind(node.outputs[0], result, y_perm)
    return result


def _result_perm(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The layout to write a product in: the one its only reader, a Transpose, asks for, if n stays innermost."""
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) == 1 and is_op(readers[0], "Transpose"):
        perm = attr_ints(readers[0], "perm", tuple(reversed(range(rank))))
        if len(perm) == rank and perm[-1] == rank - 1:
            return perm
    return identity(rank)


def _matmul(low: Lowering, node: ir.Node) -> None:
    a, b, bias = node.inputs[0], node.inputs[1], optional(node, 2)
    assert a is not None
    assert b is not None
    products.require_floats(low, a, b, bias)
    epilogue, activation = products.float_epilogue(node, False)
    if _is_matrix(low, b) and low.shape(a):
        y = _dense(low, node, a, Dense(_matrix(low, b, None, bias, False), epilogue), [])
    else:
        flat = None if bias is None else low.require_const(bias, "bias").reshape(-1)
        y = _batched(low, node, a, b, epilogue, flat, (0, 0), False)
    if activation is not None:
        low.bind(node.outputs[0], products.activate(low, y, activation), low.perm(node.outputs[0]))


def _gemm(low: Lowering, node: ir.Node) -> None:
    a, b, c, residual = node.inputs[0], node.inputs[1], optional(node, 2), optional(node, 3)
    assert a is not None
    assert b is not None
    products.require_floats(low, a, b, c, residual)
    if len(low.shape(a)) != 2 or len(low.shape(b)) != 2:
        raise ModelError(f"node {node.name!r} (Gemm): operands of shapes {list(low.shape(a))} and {list(low.shape(b))}, expected matrices")
    alpha, beta = attr_float(node, "alpha", 1.0), attr_float(node, "beta", 1.0)
    if attr_int(node, "transA", 0):
        turned = ir.Value(name=f"{a.name}_transposed")
        low.rename(a, turned, (1, 0))
        a = turned
    n = low.shape(b)[0 if attr_int(node, "transB", 0) else 1]
    held = low.const(c)
    # A residual whose rows or columns repeat is added apart, as is a C that is no row.
    apart = residual if residual is not None and low.shape(residual) != (low.shape(a)[0], n) else None
    epilogue, activation = products.float_epilogue(node, residual is not apart)
    if c is not None and held is not None and beta != 1.0:
        scaled, factor = ir.Value(name=f"{c.name}_scaled"), np.float32(beta)
        low.bind_const(scaled, low.constants.derived(held, ("beta", beta), lambda: np.asarray(held * factor)))
        c, beta = scaled, 1.0
    # A row of C goes into the accumulators; any other C is added to the product.
    added = None if held is not None and (held.size == 1 or held.shape in ((n,), (1, n))) else c
    if not _is_matrix(low, b) or (added is not None and beta != 1.0):
        raise NotNative("a Gemm whose matrix is computed, or whose C is computed and scaled")
    first = epilogue if added is None and apart is None else Float(residual=epilogue.residual)
    weights = _matrix(low, b, None, c if added is None else None, bool(attr_int(node, "transB", 0)), alpha)
    extra = [low.get(residual)] if residual is not None and apart is None else []
    y = low.call(Dense(weights, first), [low.get(a), *extra])[0]
    others = [low.get(apart)] if apart is not None else []
    if added is not None:
        other, shape = low.get(added), low.shape(added)
        if len(shape) < 2:
            other = low.call(View((1,) * (2 - len(shape)) + tuple(shape)), [other])[0]
        product = low.program.specs[y].shape
        if any(extent not in (1, whole) for extent, whole in zip(low.program.specs[other].shape, product, strict=True)):
            raise ModelError(f"node {node.name!r} (Gemm): a C of shape {list(shape)} does not fit a product of shape {list(product)}")
        others.insert(0, other)
    low.bind(node.outputs[0], products.activate(low, products.added(low, y, others, epilogue), activation))


def _codes(low: Lowering, node: ir.Node) -> None:
    a, b, bias = node.inputs[0], node.inputs[3], optional(node, 8)
    assert a is not None
    assert b is not None
    trans_b = bool(attr_int(node, "transB", 0))
    a_point = products.zero_point(low, optional(node, 2))
    if _is_matrix(low, b) and low.shape(a):
        weights = _matrix(low, b, optional(node, 5), bias, trans_b)
        _dense(low, node, a, Dense(weights, products.codes(low, node, weights, (1, 4, 6)), a_point), [])
        return
    a_scale, b_scale, y_scale = (np.float32(products.scalar(low, optional(node, i), "scale")) for i in (1, 4, 6))
    multiplier = np.asarray([a_scale * b_scale / y_scale], np.float32)
    bounds = attr_int(node, "qmin", 0), attr_int(node, "qmax", 255)
    epilogue = Codes(multiplier, products.zero_point(low, optional(node, 7)), *bounds)
    flat = None if bias is None else low.require_const(bias, "bias").reshape(-1)
    _batched(low, node, a, b, epilogue, flat, (a_point, products.zero_point(low, optional(node, 5))), trans_b)


def _codes_to_float(low: Lowering, node: ir.Node) -> None:
    a, a_scale, a_point, b = node.inputs[:4]
    assert a is not None
    assert b is not None
    assert a_scale is not None
    assert a_point is not None
    weights = _matrix(low, b, optional(node, 5), optional(node, 6), bool(attr_int(node, "transB", 0)))
    _dense(low, node, a, Dense(weights, products.dynamic(low, node, weights)), [low.get(a_scale), low.get(a_point)])


def _integer(low: Lowering, node: ir.Node) -> None:
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    assert b is not None
    a_point, points = products.zero_point(low, optional(node, 2)), optional(node, 3)
    if _is_matrix(low, b) and low.shape(a):
        _dense(low, node, a, Dense(_matrix(low, b, points, None, False), Int32(), a_point), [])
    else:
        _batched(low, node, a, b, Int32(), None, (a_point, products.zero_point(low, points)), False)


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "MatMulInteger"): _integer,
    (QRT, "FusedMatMul"): _matmul,
    (QRT, "FusedGemm"): _gemm,
    (QRT, "QMatMul"): _codes,
    (QRT, "QMatMulFloat"): _codes_to_float,
}
