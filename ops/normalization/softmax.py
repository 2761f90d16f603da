"""Softmax and its logarithm along one axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps
from qrt.ops.reduction.reduce import extents

__all__ = ["KERNELS", "Softmax"]

# Columns that a thread works on at a time where the axis is not the last one; rows, where it is.
BLOCK, ROWS = 64, 16
# Bytes of its scratch memory: of each column two numbers, of each row one and twice the lanes of qrt.jit.lang.rows.
_SCRATCH = {"columns": 8 * BLOCK, "rows": 4 * ROWS * (1 + 2 * 32)}

_RECORD = record_dtype(*((name, "i8") for name in ("x", "y", "outer", "n", "inner", "scratch")))
_KERNELS = {
    (shape, log): Kernel(
        f"{'log_' if log else ''}softmax_{shape}_f32__generic", _RECORD, f"qrt.ops.normalization.cpu:softmax_{shape}", (log,)
    )
    for shape in ("rows", "columns")
    for log in (False, True)
}
KERNELS: tuple[Kernel, ...] = tuple(_KERNELS.values())


@record
class Softmax(Op):
    """exp(x − max) / Σ exp(x − max) along `axis`, or its logarithm x − max − log Σ exp(x − max); float32."""

    axis: int
    log: bool = False

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x = inputs[0]
        if x.dtype != np.float32 or not 0 <= self.axis < len(x.shape):
            raise UnsupportedOp(f"no kernel computes the softmax of {x.dtype}{x.shape} along axis {self.axis}")
        return (x,)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = inputs[0]
        if x.size == 0:
            return (x.copy(),)
        with np.errstate(all="ignore"):
            x = x - x.max(self.axis, keepdims=True)
            e = np.exp(x)
            total = e.sum(self.axis, keepdims=True)
            return (x - np.log(total) if self.log else e / total,)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size == 0:
            return
        outer, n, inner = extents(x.spec.shape, self.axis, self.axis + 1)
        shape = "rows" if inner == 1 else "columns"
        scratch = steps.scratch(_SCRATCH[shape] * steps.threads)
        steps.step(
            _KERNELS[shape, self.log], threads_for(4 * x.spec.nbytes), x=x.ref, y=y.ref, outer=outer, n=n, inner=inner, scratch=scratch
        )

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.normalization.device import SOFTMAX_COLUMNS, SOFTMAX_ROWS
        from qrt.ops.reduction.device import by_columns, by_rows

        x, y = inputs[0], outputs[0]
        if y.spec.size == 0:
            return
        outer, n, inner = extents(x.spec.shape, self.axis, self.axis + 1)
        if inner == 1:
            by_rows(steps, SOFTMAX_ROWS[self.log], outer, n, x=x.ref, y=y.ref)
        else:
            by_columns(steps, SOFTMAX_COLUMNS[self.log], outer, n, inner, x=x.ref, y=y.ref)

    @property
    def inplace(self) -> tuple[int, ...]:
        return () if self.log else (0,)
