"""The words kernels are written in: typed pointers, thread shares, device functions. Imported only to compile.

A kernel is a Python function `(record, tid, nthreads)`. `r = fields(record)` gives its record's fields by name; `f32(r.x)`,
`u8(r.x)` … read an address field as a pointer that is indexed like an array, unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["device", "f32", "f64", "fields", "i8", "i16", "i32", "i64", "members", "pointer", "share", "u8", "u16", "u32", "u64", "written"]


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels call; it is inlined into them."""
    return numba.njit(error_model="numpy", boundscheck=False)(function)


@intrinsic
def fields(typing_context, pointer):  # type: ignore[no-untyped-def]
    """The record that `pointer` points at, without a copy."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return pointer.dtype(pointer), codegen


def members(*names: str) -> Any:
    """The intrinsic that gives those fields of a record as a tuple."""

    @intrinsic
    def take(typing_context, record):  # type: ignore[no-untyped-def]
        kinds = types.Tuple([record.typeof(name) for name in names])

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            values = []
            for name, kind in zip(names, kinds, strict=True):
                place = cgutils.get_record_member(builder, args[0], record.offset(name), context.get_data_type(kind))
                values.append(context.unpack_value(builder, kind, place))
            return context.make_tuple(builder, kinds, values)

        return kinds(record), codegen

    return take


def pointer(element: types.Type, llvm_type: ir.Type):  # type: ignore[no-untyped-def]
    """The intrinsic that reads an int64 address as a pointer to `element`."""

    @intrinsic
    def cast(typing_context, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.inttoptr(args[0], llvm_type.as_pointer())

        return types.CPointer(element)(types.int64), codegen

    return cast


def written(names: Sequence[str], kinds: Sequence[types.Type], write: Callable[[Any, dict[str, Any]], None]) -> Any:
    """The intrinsic f(values) of a tuple of `kinds`, whose code `write(builder, values by their names)` writes in LLVM IR."""

    @intrinsic
    def apply(typing_context, values):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            write(builder, {name: builder.extract_value(args[0], i) for i, name in enumerate(names)})
            return context.get_dummy_value()

        return types.void(types.Tuple(kinds)), codegen

    return apply


f32 = pointer(types.float32, ir.FloatType())
f64 = pointer(types.float64, ir.DoubleType())
u8 = pointer(types.uint8, ir.IntType(8))
i8 = pointer(types.int8, ir.IntType(8))
u16 = pointer(types.uint16, ir.IntType(16))
i16 = pointer(types.int16, ir.IntType(16))
u32 = pointer(types.uint32, ir.IntType(32))
i32 = pointer(types.int32, ir.IntType(32))
u64 = pointer(types.uint64, ir.IntType(64))
i64 = pointer(types.int64, ir.IntType(64))


@device
def share(n, tid, nthreads):  # type: ignore[no-untyped-def]
    """The half-open range of `n` items that thread `tid` works on."""
    return n * tid // nthreads, n * (tid + 1) // nthreads
