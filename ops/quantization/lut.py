"""Lut: any function of one code, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.jit import Kernel, choose, record_dtype
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps

__all__ = ["KERNELS", "Lut"]

_RECORD = record_dtype(("x", "i8"), ("table", "i8"), ("y", "i8"), ("n", "i8"))
KERNELS: tuple[Kernel, ...] = (
    Kernel("lut_u8__amx", _RECORD, "qrt.ops.quantization.cpu:lut_permuted"),
    Kernel("lut_u8__avx512vnni", _RECORD, "qrt.ops.quantization.cpu:lut", (64,)),
    Kernel("lut_u8__avx2", _RECORD, "qrt.ops.quantization.cpu:lut", (32,)),
    Kernel("lut_u8__generic", _RECORD, "qrt.ops.quantization.cpu:lut", (0,)),
)


@dataclass(frozen=True)
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
        x, table, y = *inputs, outputs[0]
        if y.spec.size:
            kernel = choose(KERNELS, steps.target)[0]
            steps.step(kernel, threads_for(y.spec.nbytes), x=x.ref, table=table.ref, y=y.ref, n=y.spec.size)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.quantization.device import emit_lut

        if outputs[0].spec.size:
            emit_lut(steps, inputs[0], inputs[1], outputs[0])

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0,)
