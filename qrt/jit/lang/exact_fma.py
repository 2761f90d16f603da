"""x · y + z of float32, rounded once, for processors that have no such instruction: as LLVM IR, which vectorises.

In float64 the product is exact, and the sum is rounded to odd (S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums: proved
algorithms using rounding to odd", 2008): cut off, and its last bit set where something was. The rounding to float32 then takes nothing for
a tie that is none.
"""

from __future__ import annotations

import re

from qrt.core.target import Target

__all__ = ["with_exact_fma"]

_INTRINSIC = "@llvm.fma.f32"
_DECLARATION = re.compile(rf"^declare .*{re.escape(_INTRINSIC)}\(.*$", re.MULTILINE)
_DEFINITION = """
define internal float @exact_fma(float %x, float %y, float %z) alwaysinline {
  %x64 = fpext float %x to double
  %y64 = fpext float %y to double
  %addend = fpext float %z to double
  %product = fmul double %x64, %y64
  %sum = fadd double %product, %addend
  %of_addend = fsub double %sum, %product
  %of_product = fsub double %sum, %of_addend
  %rest_of_addend = fsub double %addend, %of_addend
  %rest_of_product = fsub double %product, %of_product
  %rest = fadd double %rest_of_product, %rest_of_addend
  %bits = bitcast double %sum to i64
  %rest_bits = bitcast double %rest to i64
  %signs = xor i64 %bits, %rest_bits
  %apart = ashr i64 %signs, 63
  %rounded = fcmp one double %rest, 0.0
  %inexact = sext i1 %rounded to i64
  %down = and i64 %apart, %inexact
  %cut = add i64 %bits, %down
  %sticky = lshr i64 %inexact, 63
  %odd_bits = or i64 %cut, %sticky
  %odd = bitcast i64 %odd_bits to double
  %result = fptrunc double %odd to float
  ret float %result
}
"""


def with_exact_fma(module: str, target: Target) -> str:
    """LLVM IR in which the fma of two float32 is an instruction of `target`, or computed exactly without one; else it would be a call."""
    if target.arch != "x86_64" or "fma" in target.needs or _INTRINSIC not in module:
        return module
    return _DECLARATION.sub("", module).replace(_INTRINSIC, "@exact_fma") + _DEFINITION
