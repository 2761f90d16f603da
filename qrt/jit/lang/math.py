"""float32 functions for the CPU's kernels: those of `formulas.py` and `wide.py`, and single instructions."""

from __future__ import annotations

from typing import Any

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


def _same_bits(given: types.Type, result: types.Type, kind: ir.Type) -> Any:
    """The intrinsic that takes a `given` to the `result` of the same bits, `kind` in LLVM IR."""

    @intrinsic
    def cast(typing_context, x):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.bitcast(args[0], kind)

        return result(given), codegen

    return cast


def _instruction(name: str) -> Any:
    """The function of a float that LLVM calls `name`."""

    @intrinsic
    def call(typing_context, x):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.call(builder.module.declare_intrinsic(name, [args[0].type]), args)

        return x(x), codegen

    return call


# A float32 as an int32 and back, a float64 as an int64 and back.
bits, number = _same_bits(types.float32, types.int32, ir.IntType(32)), _same_bits(types.int32, types.float32, ir.FloatType())
bits64, number64 = _same_bits(types.float64, types.int64, ir.IntType(64)), _same_bits(types.int64, types.float64, ir.DoubleType())
# The nearest integer, ties to even, as a float; the square root, correctly rounded. Instructions everywhere.
nearest, sqrt = _instruction("llvm.rint"), _instruction("llvm.sqrt")


@intrinsic
def fma(typing_context, x, y, z):  # type: ignore[no-untyped-def]
    """x · y + z, rounded once: an instruction, or for float32 what `exact_fma.py` makes of several."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fma(*args)

    return x(x, x, x), codegen


_FORMULAS = elementary(device, bits, number, np.int32, fma)
exp, log, log1p = _FORMULAS["exp"], _FORMULAS["log"], _FORMULAS["log1p"]
sigmoid, tanh, erf = _FORMULAS["sigmoid"], _FORMULAS["tanh"], _FORMULAS["erf"]
HALF = half(device, bits, number, np.int32)
round_float16, round_bfloat16 = HALF["round_float16"], HALF["round_bfloat16"]
_WIDE = wide(device, bits64, number64, np.int64)
sin, cos, power = _WIDE["sin"], _WIDE["cos"], _WIDE["pow"]
