"""Functions of one or two numbers for device kernels: the CPU's, by the same formulas, so that floats have the same bits too."""

from __future__ import annotations

from qrt.jit.lang.cuda import (
    as_bits,
    as_bits64,
    as_float,
    as_float64,
    device,
    fma,
    int32,
    int64,
    round_down,
    round_even,
    round_up,
    square_root,
)
from qrt.jit.lang.formulas import binary, elementary, unary
from qrt.jit.lang.half import half
from qrt.jit.lang.wide import wide

__all__ = ["BINARY", "HALF", "UNARY", "exp", "log", "sigmoid", "tanh"]

_FORMULAS = elementary(device, as_bits, as_float, int32, fma)
exp, log, sigmoid, tanh = _FORMULAS["exp"], _FORMULAS["log"], _FORMULAS["sigmoid"], _FORMULAS["tanh"]
_WORDS = {"fma": fma, "sqrt": square_root, "floor": round_down, "ceil": round_up, "nearest": round_even}
_WIDE = wide(device, as_bits64, as_float64, int64)
_sin, _cos = _WIDE["sin"], _WIDE["cos"]
HALF = half(device, as_bits, as_float, int32)
_round_float16, _round_bfloat16 = HALF["round_float16"], HALF["round_bfloat16"]
UNARY = unary(device, {**_FORMULAS, **_WORDS}) | {
    "cos": device(lambda x, p, q: _cos(x)),
    "round_bfloat16": device(lambda x, p, q: _round_bfloat16(x)),
    "round_float16": device(lambda x, p, q: _round_float16(x)),
    "sin": device(lambda x, p, q: _sin(x)),
}
BINARY = binary(device) | {"pow": _WIDE["pow"]}
