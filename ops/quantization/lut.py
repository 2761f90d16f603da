"""Lut: any function of one code, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from qrt.core.dtypes import quint8
from qrt.core.errors import UnsupportedOp
from qrt.core.numerics import dequantize, quantize
from qrt.core.qparams import QParams
from qrt.core.record import record
from qrt.jit import Kernel, choose, record_dtype
from qrt.ops.elementwise.walk import ROWS, row_fields, threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Ref, Spec, Steps
from qrt.ops.strides import row_stride

__all__ = ["KERNELS", "Lut", "emit_lut", "requantizing"]

_RECORD = record_dtype(*ROWS, ("table", "i8"))
KERNELS: tuple[Kernel, ...] = (
    Kernel("lut_u8__avx512vbmi", _RECORD, "qrt.ops.quantization.cpu:lut_permuted"),
    Kernel("lut_u8__avx512vnni", _RECORD, "qrt.ops.quantization.cpu:lut", (64,)),
    Kernel("lut_u8__avx2", _RECORD, "qrt.ops.quantization.cpu:lut", (32,)),
    Kernel("lut_u8__generic", _RECORD, "qrt.ops.quantization.cpu:lut", (0,)),
)


@lru_cache(maxsize=1024)
def requantizing(given: tuple[float, int], result: tuple[float, int], qmin: int, qmax: int) -> Array:
    """The table that takes uint8 codes under `given` (scale, zero point) to those under `result`, bounded: quantize(dequantize(code)).
    The same array for the same numbers."""
    source, target = (QParams(np.array(scale, np.float32), np.array(point), quint8) for scale, point in (given, result))
    codes = quantize(dequantize(np.arange(256, dtype=np.uint8), source), target)
    return np.asarray(np.clip(codes, np.uint8(qmin), np.uint8(qmax)))


def emit_lut(steps: Steps, x: Operand, table: Ref, y: Operand) -> None:
    """Appends y = table[x] for rows of codes; x and y may be one."""
    steps.step(choose(KERNELS, steps.target)[0], threads_for(y.spec.nbytes), **row_fields(x, y), table=table)


@record
class Lut(Op):
    """y = table[x]. Inputs: x (uint8 or int8, of any shape; an int8 is read as its bits), table (256 codes of one byte).

    y has the table's dtype.
    """

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, table = inputs
        if x.dtype not in (np.uint8, np.int8) or table.shape != (256,) or table.dtype not in (np.uint8, np.int8):
            raise UnsupportedOp(f"no table of {table.dtype}{table.shape} for codes of {x.dtype}")
        return (Spec(x.shape, table.dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (np.asarray(inputs[1][inputs[0].view(np.uint8)]),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        if outputs[0].spec.size:
            emit_lut(steps, inputs[0], inputs[1].ref, outputs[0])

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.quantization.device import emit_lut

        if outputs[0].spec.size:
            emit_lut(steps, inputs[0], inputs[1].ref, outputs[0])

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        return index == 0 and row_stride(x.shape, strides) is not None

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        return row_stride(y.shape, strides) is not None

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0,)
