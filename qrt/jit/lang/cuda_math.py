"""Functions of one number for device kernels: the CPU's, by the same formulas, so that floats have the same bits too."""

from __future__ import annotations

from qrt.jit.lang.cuda import as_bits, as_float, device, fma, int32, round_down, round_even, round_up, square_root
from qrt.jit.lang.formulas import binary, elementary, unary

__all__ = ["BINARY", "UNARY", "exp", "log", "sigmoid", "tanh"]

_FORMULAS = elementary(device, as_bits, as_float, int32, fma)
exp, log, sigmoid, tanh = _FORMULAS["exp"], _FORMULAS["log"], _FORMULAS["sigmoid"], _FORMULAS["tanh"]
_WORDS = {"fma": fma, "sqrt": square_root, "floor": round_down, "ceil": round_up, "nearest": round_even}
UNARY, BINARY = unary(device, {**_FORMULAS, **_WORDS}), binary(device)
