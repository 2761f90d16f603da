"""float32 functions for the CPU's kernels: those of `formulas.py` and `wide.py`, and single instructions."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lang import device
from qrt.jit.lang.formulas import elementary
from qrt.jit.lang.half import half
from qrt.jit.lang.wide import wide

__all__ = [
    *("HALF", "bits", "cos", "erf", "exp", "fma", "log", "log1p", "nearest", "number", "power", "round_bfloat16", "round_float16"),
    *("sigmoid", "sin", "sqrt", "tanh"),
]


@intrinsic
def bits(typing_context, x):  # type: ignore[no-untyped-def]
    """The int32 that has the bits of a float32."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def number(typing_context, x):  # type: ignore[no-untyped-def]
    """The float32 that has the bits of an int32."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def bits64(typing_context, x):  # type: ignore[no-untyped-def]
    """The int64 that has the bits of a float64."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def number64(typing_context, x):  # type: ignore[no-untyped-def]
    """The float64 that has the bits of an int64."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic
def fma(typing_context, x, y, z):  # type: ignore[no-untyped-def]
    """x · y + z, rounded once: an instruction, or for float32 what `exact_fma.py` makes of several."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fma(*args)

    return x(x, x, x), codegen


@intrinsic
def nearest(typing_context, x):  # type: ignore[no-untyped-def]
    """The nearest integer, ties to even, as a float."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [args[0].type]), args)

    return x(x), codegen


@intrinsic
def sqrt(typing_context, x):  # type: ignore[no-untyped-def]
    """Square root of a float, correctly rounded; an instruction everywhere."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [args[0].type]), args)

    return x(x), codegen


_FORMULAS = elementary(device, bits, number, np.int32, fma)
exp, log, log1p = _FORMULAS["exp"], _FORMULAS["log"], _FORMULAS["log1p"]
sigmoid, tanh, erf = _FORMULAS["sigmoid"], _FORMULAS["tanh"], _FORMULAS["erf"]
HALF = half(device, bits, number, np.int32)
round_float16, round_bfloat16 = HALF["round_float16"], HALF["round_bfloat16"]
_WIDE = wide(device, bits64, number64, np.int64)
sin, cos, power = _WIDE["sin"], _WIDE["cos"], _WIDE["pow"]
