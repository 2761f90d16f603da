"""Reductions of rows of float32 in a fixed order, so that results depend neither on the instruction set nor on the number of threads.

Element i of a row goes to lane i mod 32; the lanes are then combined in halves: 16 + 16, 8 + 8, … Built as vector IR, because the
optimiser may not reorder float sums by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["row_max", "row_min", "row_product", "row_sum", "row_sum_abs", "row_sum_squares"]

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
WIDTH = 16
VECTOR = ir.VectorType(F32, WIDTH)

# (builder, a, b) → IR value; a and b are vectors or scalars of float32.
Build = Callable[[Any, Any, Any], Any]


def _call(builder: Any, name: str, kind: ir.Type, *args: Any) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [a.type for a in args]), name)
    return builder.call(function, args)


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, WIDTH), [0] * WIDTH))


def _halved(builder: Any, combine: Build, value: Any) -> Any:
    """All lanes of a vector, combined in halves."""
    width = value.type.count
    while width > 1:
        width //= 2
        low, high = ([I32(k + start) for k in range(width)] for start in (0, width))
        parts = [builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, width), lanes)) for lanes in (low, high)]
        value = combine(builder, *parts)
    return builder.extract_element(value, I32(0))


def _reducer(combine: Build, term: Build, neutral: float) -> Any:
    """The intrinsic (x, at, n, p) → combine over the row x[at : at + n] of term(element, p); `neutral` for an empty row."""

    @intrinsic
    def reduce(typing_context, x, at, n, p):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            x, at, n, p = args
            parameter, nothing = _splat(builder, p), ir.Constant(VECTOR, [neutral] * WIDTH)
            lanes = [cgutils.alloca_once(builder, VECTOR) for _ in range(2)]
            for lane in lanes:
                builder.store(nothing, lane)
            whole = builder.and_(n, I64(-2 * WIDTH))

            def place(offset: Any, k: int) -> Any:
                return builder.gep(x, [builder.add(at, builder.add(offset, I64(k * WIDTH)))])

            with cgutils.for_range_slice(builder, I64(0), whole, I64(2 * WIDTH), I64) as (i, _):
                for k, lane in enumerate(lanes):
                    value = builder.load(builder.bitcast(place(i, k), VECTOR.as_pointer()))
                    value.align = 4
                    builder.store(combine(builder, builder.load(lane), term(builder, value, parameter)), lane)
            rest = builder.trunc(builder.sub(n, whole), I32)
            for k, lane in enumerate(lanes):
                with builder.if_then(builder.icmp_signed(">", rest, I32(k * WIDTH))):
                    numbers = ir.Constant(ir.VectorType(I32, WIDTH), [k * WIDTH + j for j in range(WIDTH)])
                    limit = builder.insert_element(ir.Constant(numbers.type, ir.Undefined), rest, I32(0))
                    limit = builder.shuffle_vector(limit, limit, ir.Constant(numbers.type, [0] * WIDTH))
                    mask = builder.icmp_signed("<", numbers, limit)
                    value = _call(builder, "llvm.masked.load.v16f32.p0", VECTOR, place(whole, k), mask, ir.Constant(VECTOR, None))
                    value = builder.select(mask, term(builder, value, parameter), nothing)
                    builder.store(combine(builder, builder.load(lane), value), lane)
            return _halved(builder, combine, combine(builder, *(builder.load(lane) for lane in lanes)))

        return types.float32(types.CPointer(types.float32), types.int64, types.int64, types.float32), codegen

    return reduce


def _add(b: Any, x: Any, y: Any) -> Any:
    return b.fadd(x, y)


def _larger(b: Any, x: Any, y: Any) -> Any:
    """The larger one; NaN where one is NaN."""
    return b.select(b.or_(b.fcmp_ordered(">", x, y), b.fcmp_unordered("!=", x, x)), x, y)


def _smaller(b: Any, x: Any, y: Any) -> Any:
    """The smaller one; NaN where one is NaN."""
    return b.select(b.or_(b.fcmp_ordered("<", x, y), b.fcmp_unordered("!=", x, x)), x, y)


def _itself(b: Any, x: Any, p: Any) -> Any:
    return x


def _square(b: Any, x: Any, p: Any) -> Any:
    """(x − p)²."""
    away = b.fsub(x, p)
    return b.fmul(away, away)


def _absolute(b: Any, x: Any, p: Any) -> Any:
    return _call(b, "llvm.fabs.v16f32", VECTOR, x)


row_sum = _reducer(_add, _itself, 0.0)
row_sum_abs = _reducer(_add, _absolute, 0.0)
row_sum_squares = _reducer(_add, _square, 0.0)
row_product = _reducer(lambda b, x, y: b.fmul(x, y), _itself, 1.0)
row_max = _reducer(_larger, _itself, float("-inf"))
row_min = _reducer(_smaller, _itself, float("inf"))
