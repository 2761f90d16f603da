"""QBinary: sums and products of uint8 codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.numerics import round_clamp
from qrt.core.record import record
from qrt.jit import Kernel, choose, record_dtype
from qrt.ops.elementwise.walk import Walked, broadcast_shape, threads_for, walk_fields, walk_record
from qrt.ops.op import Array, DeviceSteps, Operand, Spec, Steps

__all__ = ["KERNELS", "QBinary"]

F32 = np.float32

_RECORD = record_dtype(
    *walk_record("ab"),
    *((name, "f4") for name in ("fa", "fb", "fy", "low", "high")),
    *((name, "i4") for name in ("za", "zb", "zy")),
)


def _kernels(name: str, *isas: str) -> tuple[Kernel, ...]:
    return tuple(Kernel(f"q{name}_u8__{isa}", _RECORD, "qrt.ops.quantization.cpu:binary", (name, isa != "generic")) for isa in isas)


_KERNELS = {"add": _kernels("add", "avx2", "neon_dot", "generic"), "mul": _kernels("mul", "generic")}
KERNELS: tuple[Kernel, ...] = (*_KERNELS["add"], *_KERNELS["mul"])


def fma(code: Any, factor: Any, addend: Any) -> Any:
    """code · factor + addend, rounded to float32 once: float64 holds the exact sum unless one part is next to nothing."""
    return (np.asarray(code, np.float64) * np.asarray(factor, np.float64) + np.asarray(addend, np.float64)).astype(F32)


@record
class QBinary(Walked):
    """Codes of a + b or a · b; operands of one rank, extents of 1 repeat.

    `name`: "add": clamp(rint(fma(a, ra, fma(b, rb, k)))), ra = float32(sa / sy), rb = float32(sb / sy) and k = zy − fma(za, ra, rb · zb);
    "mul": dequantized, multiplied, quantized. The clamp is to [qmin, qmax]. `signed`, of a sum: the codes stand for int8; 128 is taken from
    every code and zero point before, and added to the result. See docs/architecture.md.
    """

    name: str
    a_scale: float
    a_zero: int
    b_scale: float
    b_zero: int
    y_scale: float
    y_zero: int
    qmin: int = 0
    qmax: int = 255
    signed: bool = False

    @property
    def _base(self) -> int:
        return 128 if self.signed else 0

    def _sum_factors(self) -> tuple[Any, Any, Any]:
        """ra, rb and k, float32."""
        ra, rb = F32(self.a_scale) / F32(self.y_scale), F32(self.b_scale) / F32(self.y_scale)
        za, zb, zy = (F32(zero - self._base) for zero in (self.a_zero, self.b_zero, self.y_zero))
        return ra, rb, zy - fma(za, ra, rb * zb)

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        a, b = inputs
        if self.name not in _KERNELS or a.dtype != np.uint8 or b.dtype != np.uint8:
            raise UnsupportedOp(f"no kernel for codes of {a.dtype} {self.name} {b.dtype}: uint8 is needed")
        return (Spec(broadcast_shape([a.shape, b.shape]), a.dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        a, b = inputs
        with np.errstate(over="ignore", invalid="ignore"):
            if self.name == "add":
                ra, rb, k = self._sum_factors()
                steps = fma(a.astype(np.int32) - self._base, ra, fma(b.astype(np.int32) - self._base, rb, k))
                codes = round_clamp(steps, np.array(self._base, np.int32), self.qmin, self.qmax)
            else:
                left = (a.astype(np.int32) - self.a_zero).astype(F32) * F32(self.a_scale)
                right = (b.astype(np.int32) - self.b_zero).astype(F32) * F32(self.b_scale)
                codes = round_clamp(left * right / F32(self.y_scale), np.array(self.y_zero, np.int32), self.qmin, self.qmax)
        return (codes.astype(np.uint8),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        y = outputs[0]
        if y.spec.size == 0:
            return
        kernel = choose(_KERNELS[self.name], steps.target)[0]
        steps.step(kernel, threads_for(y.spec.nbytes), **walk_fields("ab", inputs, y), **self._numbers())

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.quantization.device import emit_binary

        if outputs[0].spec.size:
            emit_binary(steps, self.name, inputs, outputs[0], self._numbers())

    def _numbers(self) -> dict[str, float | int]:
        """Scales, bounds and zero points as records hold them."""
        if self.name == "add":
            (fa, fb, fy), zeros = self._sum_factors(), (self._base,) * 3  # the zero points are inside k
        else:
            fa, fb, fy, zeros = self.a_scale, self.b_scale, self.y_scale, (self.a_zero, self.b_zero, self.y_zero)
        scales = {"fa": float(fa), "fb": float(fb), "fy": float(fy), "low": self.qmin - zeros[2], "high": self.qmax - zeros[2]}
        return scales | dict(zip(("za", "zb", "zy"), zeros, strict=True))

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0, 1)
