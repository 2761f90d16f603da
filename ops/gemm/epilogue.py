"""What becomes of the accumulators of a product: the typed half of the kernels' epilogues, with their references."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from qrt.core.numerics import round_clamp
from qrt.core.record import record
from qrt.ops.op import Array, Operand, Ref

__all__ = ["Codes", "CodesAdd", "DynamicFloat", "Epilogue", "Float", "Int32", "Padder"]

F32 = np.float32

# (source, how, array) → `array` [groups · N] as kernels read it, [groups][N rounded up to the tile]; made once per (source, how).
Padder = Callable[[Array, str, Array], Ref]


class Epilogue(ABC):
    """`name` is the kernels' (see `table.EPILOGUES`); `extra` counts the op inputs it reads after operands and bias, `residual` says
    whether the first of them is one, walked like the output. `table`: 256 codes that its codes are looked up in."""

    name: str
    integer: bool
    dtype: np.dtype[np.generic]
    extra: int = 0
    residual: bool = False
    table: Array | None = None

    @property
    def steps_fit(self) -> bool:
        """Whether what is rounded is surely below 2**31 in size, so that saturating packs may do the clamping."""
        return False

    def without_table(self) -> Epilogue:
        """The same codes as they are."""
        return self

    @property
    def saturation(self) -> str:
        """Which of `table.SATURATED` its codes are, if any."""
        return ""

    @abstractmethod
    def reference(self, acc: Array, bias: Array | None, extra: Sequence[Array], column_sums: Array) -> Array:
        """The output for accumulators `acc` [..., N] (int32 without bias, or float32 without bias)."""

    @abstractmethod
    def fields(self, extra: Sequence[Operand], pad: Padder) -> dict[str, int | float | Ref]:
        """The record fields that it reads."""


def _wrap(acc: Array) -> Array:
    """Accumulators as the kernels hold them: modulo 2**32."""
    return acc.astype(np.int64).astype(np.uint32).view(np.int32)


def _fma(code: Array | np.float32, ratio: float, addend: Array | np.float32) -> Array:
    """code · ratio + addend, rounded to float32 once."""
    result: Array = (np.asarray(code, np.float64) * F32(ratio) + np.asarray(addend, np.float64)).astype(F32)
    return result


def _saturation(zero_point: int, qmin: int, qmax: int) -> str:
    return {0: "zero", 128: "half"}.get(zero_point, "") if (qmin, qmax) == (0, 255) else ""


def _code_bounds(zero_point: int, qmin: int, qmax: int) -> tuple[float, float]:
    return float(qmin - zero_point), float(qmax - zero_point)


@record(eq=False)
class Float(Epilogue):
    """float32 in, float32 out: bias, a residual if `residual`, then the bounds of a fused Relu or Clip."""

    lo: float = float("-inf")
    hi: float = float("inf")
    residual: bool = False
    integer = False
    dtype = np.dtype(F32)

    @property
    def name(self) -> str:  # type: ignore[override]
        return "f32add" if self.residual else "f32"

    @property
    def extra(self) -> int:  # type: ignore[override]
        return int(self.residual)

    def reference(self, acc: Array, bias: Array | None, extra: Sequence[Array], column_sums: Array) -> Array:
        y = acc if bias is None else acc + bias
        y = y + extra[0] if self.residual else y
        return np.minimum(np.maximum(y, F32(self.lo)), F32(self.hi)).astype(F32)

    def fields(self, extra: Sequence[Operand], pad: Padder) -> dict[str, int | float | Ref]:
        return {"lo": self.lo, "hi": self.hi} | ({"r": extra[0].ref} if self.residual else {})


@record(eq=False)
class Int32(Epilogue):
    """The accumulators themselves."""

    name = "s32"
    integer = True
    dtype = np.dtype(np.int32)

    def reference(self, acc: Array, bias: Array | None, extra: Sequence[Array], column_sums: Array) -> Array:
        return _wrap(acc if bias is None else acc.astype(np.int64) + bias)

    def fields(self, extra: Sequence[Operand], pad: Padder) -> dict[str, int | float | Ref]:
        return {}


@record(eq=False)
class Codes(Epilogue):
    """uint8 codes: core.numerics.requantize with one multiplier a column, bounded by a fused Relu or Clip; then, if there is a `table`,
    its entries for them."""

    multiplier: Array  # float32 [groups · N]: s_a · s_b[n] / s_y
    zero_point: int
    qmin: int = 0
    qmax: int = 255
    table: Array | None = None  # uint8 [256]
    integer = True
    dtype = np.dtype(np.uint8)

    @property
    def name(self) -> str:  # type: ignore[override]
        return "u8" if self.table is None else "u8t"

    def without_table(self) -> Epilogue:
        return replace(self, table=None)

    @property
    def steps_fit(self) -> bool:
        # |acc| ≤ 2**31
        return bool(self.multiplier.max(initial=0) < 1)

    @property
    def saturation(self) -> str:
        return _saturation(self.zero_point, self.qmin, self.qmax)

    def reference(self, acc: Array, bias: Array | None, extra: Sequence[Array], column_sums: Array) -> Array:
        total = Int32().reference(acc, bias, extra, column_sums)
        steps = total.astype(F32) * self.multiplier
        codes = round_clamp(steps, np.array(self.zero_point, np.int32), self.qmin, self.qmax).astype(np.uint8)
        return codes if self.table is None else np.asarray(self.table[codes])

    def fields(self, extra: Sequence[Operand], pad: Padder) -> dict[str, int | float | Ref]:
        lo, hi = _code_bounds(self.zero_point, self.qmin, self.qmax)
        return {"scale": pad(self.multiplier, "scale", self.multiplier), "lo": lo, "hi": hi, "y_zero_point": self.zero_point}


@record(eq=False)
class CodesAdd(Epilogue):
    """uint8 codes of a sum: `conv` rounds the product to its own codes, then the residual's codes are added.

    y = clamp(rint(fma(c, c_ratio, fma(r, r_ratio, k)))), with c_ratio = f32(c_scale / y_scale), r_ratio = f32(r_scale / y_scale)
    and k = zero_point − fma(c_zero_point, c_ratio, r_zero_point · r_ratio): see docs/architecture.md. `signed`: the codes stand for
    int8; 128 is taken from every code and zero point before, and added to the result. `residual_first`: the residual is the sum's first
    operand, so c and r change places in this formula.
    """

    conv: Codes
    c_ratio: float
    r_ratio: float
    r_zero_point: int
    zero_point: int
    qmin: int = 0
    qmax: int = 255
    signed: bool = False
    residual_first: bool = False
    integer = True
    extra = 1
    residual = True
    dtype = np.dtype(np.uint8)

    @property
    def name(self) -> str:  # type: ignore[override]
        return "u8radd" if self.residual_first else "u8add"

    @property
    def steps_fit(self) -> bool:
        # |c| and |r| ≤ 255
        return self.conv.steps_fit and max(self.c_ratio, self.r_ratio) < 2**16

    @property
    def saturation(self) -> str:
        return _saturation(self._base, self.qmin, self.qmax)

    def reference(self, acc: Array, bias: Array | None, extra: Sequence[Array], column_sums: Array) -> Array:
        c = self.conv.reference(acc, bias, (), column_sums).astype(F32) - F32(self._base)
        operands = [(c, self.c_ratio), (extra[0].astype(F32) - F32(self._base), self.r_ratio)]
        (a, a_ratio), (b, b_ratio) = reversed(operands) if self.residual_first else operands
        steps = _fma(a, a_ratio, _fma(b, b_ratio, self._offset()))
        return round_clamp(steps, np.array(self._base, np.int32), self.qmin, self.qmax).astype(np.uint8)

    @property
    def _base(self) -> int:
        return 128 if self.signed else 0

    def _offset(self) -> Array:
        """k."""
        c, r, y = (F32(point - self._base) for point in (self.conv.zero_point, self.r_zero_point, self.zero_point))
        if self.residual_first:
            return np.asarray(y - _fma(r, self.r_ratio, c * F32(self.c_ratio)))
        return np.asarray(y - _fma(c, self.c_ratio, r * F32(self.r_ratio)))

    def fields(self, extra: Sequence[Operand], pad: Padder) -> dict[str, int | float | Ref]:
        c_lo, c_hi = _code_bounds(self.conv.zero_point, self.conv.qmin, self.conv.qmax)
        lo, hi = _code_bounds(self._base, self.qmin, self.qmax)
        bounds = {"lo": lo, "hi": hi, "c_lo": c_lo, "c_hi": c_hi, "y_zero_point": self._base}
        sums = {
            "c_ratio": self.c_ratio,
            "r_ratio": self.r_ratio,
            "c_zero_point": float(self.conv.zero_point - self._base),
            "sum_offset": float(self._offset()),
        }
        return bounds | sums | {"scale": pad(self.conv.multiplier, "scale", self.conv.multiplier), "r": extra[0].ref}


@record(eq=False)
class DynamicFloat(Epilogue):
    """float32 from integer accumulators whose input scale and zero point are computed in the run (extra inputs):
    float32(acc − a_zero_point · Σb) · (a_scale · b_scale[n]) + bias[n]."""

    b_scale: Array  # float32 [groups · N]
    name = "f32d"
    integer = True
    extra = 2
    dtype = np.dtype(F32)

    def reference(self, acc: Array, bias: Array | None, extra: Sequence[Array], column_sums: Array) -> Array:
        a_scale, a_zero_point = extra
        corrected = _wrap(acc.astype(np.int64) - a_zero_point.reshape(()).astype(np.int64) * column_sums)
        y = corrected.astype(F32) * (a_scale.reshape(()) * self.b_scale)
        result: Array = (y + (F32(0) if bias is None else bias)).astype(F32)
        return result

    def fields(self, extra: Sequence[Operand], pad: Padder) -> dict[str, int | float | Ref]:
        return {"scale": pad(self.b_scale, "scale", self.b_scale), "a_scale": extra[0].ref, "a_zero_point": extra[1].ref}
