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

__all__ = [
    "LANES",
    "add_to_lanes",
    "read_some",
    "row_max",
    "row_min",
    "row_product",
    "row_range",
    "row_sum",
    "row_sum_abs",
    "row_sum_squares",
    "scaled_lanes",
    "write_some",
]

F32, I1, I32, I64 = ir.FloatType(), ir.IntType(1), ir.IntType(32), ir.IntType(64)
WIDTH, LANES = 16, 32  # of the two vectors that lanes are held in; of all
VECTOR, MASK = ir.VectorType(F32, WIDTH), ir.VectorType(I1, WIDTH)

# (builder, a, b) → IR value; a and b are vectors or scalars of float32.
Build = Callable[[Any, Any, Any], Any]


def _call(builder: Any, name: str, kind: ir.Type, *args: Any) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [a.type for a in args]), name)
    return builder.call(function, args)


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, WIDTH), [0] * WIDTH))


def _vector_at(builder: Any, x: Any, at: Any, k: int) -> Any:
    """Vector k of the two that begin at x[at], as an address of its first element."""
    return builder.gep(x, [builder.add(at, I64(k * WIDTH))])


def _load(builder: Any, place: Any) -> Any:
    value = builder.load(builder.bitcast(place, VECTOR.as_pointer()))
    value.align = 4
    return value


def _mask(builder: Any, count: Any, k: int) -> Any:
    """The lanes of vector k among the first `count` (int32) of two."""
    numbers = ir.Constant(ir.VectorType(I32, WIDTH), [k * WIDTH + j for j in range(WIDTH)])
    limit = builder.insert_element(ir.Constant(numbers.type, ir.Undefined), count, I32(0))
    limit = builder.shuffle_vector(limit, limit, ir.Constant(numbers.type, [0] * WIDTH))
    return builder.icmp_signed("<", numbers, limit)


def _load_masked(builder: Any, place: Any, mask: Any, filler: Any) -> Any:
    return _call(builder, "llvm.masked.load.v16f32.p0", VECTOR, place, mask, filler)


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
            whole = builder.and_(n, I64(-LANES))
            with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES), I64) as (i, _):
                for k, lane in enumerate(lanes):
                    value = _load(builder, _vector_at(builder, x, builder.add(at, i), k))
                    builder.store(combine(builder, builder.load(lane), term(builder, value, parameter)), lane)
            rest, end = builder.trunc(builder.sub(n, whole), I32), builder.add(at, whole)
            for k, lane in enumerate(lanes):
                with builder.if_then(builder.icmp_signed(">", rest, I32(k * WIDTH))):
                    mask = _mask(builder, rest, k)
                    value = _load_masked(builder, _vector_at(builder, x, end, k), mask, ir.Constant(VECTOR, None))
                    value = builder.select(mask, term(builder, value, parameter), nothing)
                    builder.store(combine(builder, builder.load(lane), value), lane)
            return _halved(builder, combine, combine(builder, *(builder.load(lane) for lane in lanes)))

        return types.float32(types.CPointer(types.float32), types.int64, types.int64, types.float32), codegen

    return reduce


def _add(b: Any, x: Any, y: Any) -> Any:
    return b.fadd(x, y)


def _larger(b: Any, x: Any, y: Any) -> Any:
    """The larger one; y where one is NaN, as the instruction has it."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _smaller(b: Any, x: Any, y: Any) -> Any:
    """The smaller one; y where one is NaN, as the instruction has it."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


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


def _extremes(*which: tuple[Build, float]) -> Any:
    """The function (builder, x, at, n) → for each of `which`, the extreme of the row x[at : at + n]: NaN where an element is, else what
    its function chooses; its number for an empty row.

    Whether there is a NaN is asked apart, of two vectors at a time: what tells it takes longer than to choose, and each choice waits for
    the one before.
    """

    def build(builder: Any, x: Any, at: Any, n: Any) -> list[Any]:
        fillers = [ir.Constant(VECTOR, [neutral] * WIDTH) for _, neutral in which]
        lanes = [[cgutils.alloca_once_value(builder, filler) for _ in range(2)] for filler in fillers]
        odd = cgutils.alloca_once_value(builder, ir.Constant(MASK, None))
        for filler, pair in zip(fillers, lanes, strict=True):
            for lane in pair:
                builder.store(filler, lane)
        builder.store(ir.Constant(MASK, None), odd)

        def take(values: list[list[Any]]) -> None:
            """`values`: two vectors for each of `which`."""
            for (choose, _), pair, vectors in zip(which, lanes, values, strict=True):
                for lane, value in zip(pair, vectors, strict=True):
                    builder.store(choose(builder, value, builder.load(lane)), lane)
            builder.store(builder.or_(builder.load(odd), builder.fcmp_unordered("uno", *values[0])), odd)

        whole = builder.and_(n, I64(-LANES))
        with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES), I64) as (i, _):
            take([[_load(builder, _vector_at(builder, x, builder.add(at, i), k)) for k in range(2)]] * len(which))
        rest, end = builder.trunc(builder.sub(n, whole), I32), builder.add(at, whole)
        with builder.if_then(builder.icmp_signed(">", rest, I32(0))):
            masks, places = [_mask(builder, rest, k) for k in range(2)], [_vector_at(builder, x, end, k) for k in range(2)]
            take([[_load_masked(builder, place, mask, filler) for place, mask in zip(places, masks, strict=True)] for filler in fillers])
        some = builder.icmp_unsigned("!=", builder.bitcast(builder.load(odd), ir.IntType(WIDTH)), ir.IntType(WIDTH)(0))
        found = []
        for (choose, _), pair in zip(which, lanes, strict=True):
            chosen = _halved(builder, choose, choose(builder, *(builder.load(lane) for lane in pair)))
            found.append(builder.select(some, ir.Constant(F32, float("nan")), chosen))
        return found

    return build


_MAX, _MIN = (_larger, float("-inf")), (_smaller, float("inf"))


def _extreme(which: tuple[Build, float]) -> Any:
    """The intrinsic (x, at, n, p) → the extreme of a row; p is not used."""
    build = _extremes(which)

    @intrinsic
    def extreme(typing_context, x, at, n, p):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return build(builder, *args[:3])[0]

        return types.float32(types.CPointer(types.float32), types.int64, types.int64, types.float32), codegen

    return extreme


row_max, row_min = _extreme(_MAX), _extreme(_MIN)


@intrinsic
def row_range(typing_context, x, at, n):  # type: ignore[no-untyped-def]
    """(least, largest) of the row x[at : at + n]: NaN where an element is; (∞, −∞) of an empty row."""
    build = _extremes(_MIN, _MAX)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return context.make_tuple(builder, signature.return_type, build(builder, *args))

    return types.UniTuple(types.float32, 2)(types.CPointer(types.float32), types.int64, types.int64), codegen


# -- a row's elements, LANES at a time --------------------------------------------------------------------------------------------
@intrinsic
def add_to_lanes(typing_context, lanes, x, at):  # type: ignore[no-untyped-def]
    """lanes[k] += x[at + k] for all LANES: what row_sum does, of a row that comes in pieces."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        lanes, x, at = args
        for k in range(2):
            place = _vector_at(builder, lanes, I64(0), k)
            total = builder.fadd(_load(builder, place), _load(builder, _vector_at(builder, x, at, k)))
            builder.store(total, builder.bitcast(place, VECTOR.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(types.CPointer(types.float32), types.CPointer(types.float32), types.int64), codegen


def scaled_lanes(masked: bool) -> Any:
    """The intrinsic (y, to, x, at, mask, mask_at, scale): for all LANES y[to + k] = x[at + k] · scale, plus mask[mask_at + k] if
    `masked`."""

    @intrinsic
    def scaled(typing_context, y, to, x, at, mask, mask_at, scale):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            y, to, x, at, mask, mask_at, scale = args
            for k in range(2):
                value = builder.fmul(_load(builder, _vector_at(builder, x, at, k)), _splat(builder, scale))
                if masked:
                    value = builder.fadd(value, _load(builder, _vector_at(builder, mask, mask_at, k)))
                builder.store(value, builder.bitcast(_vector_at(builder, y, to, k), VECTOR.as_pointer())).align = 4
            return context.get_dummy_value()

        row = (types.CPointer(types.float32), types.int64)
        return types.void(*row, *row, *row, types.float32), codegen

    return scaled


@intrinsic
def read_some(typing_context, to, x, at, count, filler):  # type: ignore[no-untyped-def]
    """to[k] = x[at + k] for k below `count`, `filler` from there to LANES; no more of x is touched."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        to, x, at, count, filler = args
        for k in range(2):
            mask = _mask(builder, builder.trunc(count, I32), k)
            value = _load_masked(builder, _vector_at(builder, x, at, k), mask, _splat(builder, filler))
            builder.store(value, builder.bitcast(_vector_at(builder, to, I64(0), k), VECTOR.as_pointer())).align = 4
        return context.get_dummy_value()

    numbers = types.CPointer(types.float32)
    return types.void(numbers, numbers, types.int64, types.int64, types.float32), codegen


@intrinsic
def write_some(typing_context, y, at, x, count):  # type: ignore[no-untyped-def]
    """y[at + k] = x[k] for k below `count`, at most LANES; no more of y is touched."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        y, at, x, count = args
        for k in range(2):
            mask = _mask(builder, builder.trunc(count, I32), k)
            value = _load(builder, _vector_at(builder, x, I64(0), k))
            _call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), value, _vector_at(builder, y, at, k), mask)
        return context.get_dummy_value()

    numbers = types.CPointer(types.float32)
    return types.void(numbers, types.int64, numbers, types.int64), codegen
