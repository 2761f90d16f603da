"""Reading and writing arrays that kernels walk element by element."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from qrt.jit.lang import f32, f64, i8, i16, i32, i64, u8, u16, u32, u64

__all__ = ["POINTERS", "prefetch", "read", "write"]

# How a kernel points at an array of each NumPy dtype; a bool is a byte of 0 or 1, floats of 16 bits are their bits.
POINTERS = {
    "float32": f32,
    "float64": f64,
    "float16": u16,
    "bfloat16": u16,
    "bool": u8,
    "uint8": u8,
    "int8": i8,
    "uint16": u16,
    "int16": i16,
    "uint32": u32,
    "int32": i32,
    "uint64": u64,
    "int64": i64,
}


def _scope(module: ir.Module) -> Any:
    domain = module.add_metadata(["qrt streams"])
    return module.add_metadata([module.add_metadata(["qrt reads", domain])])


@intrinsic
def read(typing_context, pointer, index):  # type: ignore[no-untyped-def]
    """pointer[index], where no `write` of this kernel changes an element that is still to be read.

    The optimiser then needs no overlap checks, and vectorises work in place as well: an element is read before the one
    at its place is written, as its value depends on it.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        value = builder.load(builder.gep(args[0], [args[1]]))
        value.set_metadata("alias.scope", _scope(builder.module))
        return value

    return pointer.dtype(pointer, types.int64), codegen


@intrinsic
def write(typing_context, pointer, index, value):  # type: ignore[no-untyped-def]
    """pointer[index] = value, for arrays that `read` reads."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        store = builder.store(args[2], builder.gep(args[0], [args[1]]))
        store.set_metadata("noalias", _scope(builder.module))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, pointer.dtype), codegen


@intrinsic
def prefetch(typing_context, pointer, index):  # type: ignore[no-untyped-def]
    """Asks for the cache line of pointer[index], which may lie outside the array, to be read soon. Hardware stops at every page."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        byte, number = ir.IntType(8), ir.IntType(32)
        address = builder.bitcast(builder.gep(args[0], [args[1]]), byte.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, number(0), number(2), number(1)])  # to read, into the L2 cache
        return context.get_dummy_value()

    return types.void(pointer, types.int64), codegen
