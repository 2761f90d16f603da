"""CumSum: running sums along an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps
from qrt.ops.reduction.reduce import extents

__all__ = ["DTYPES", "KERNELS", "CumSum"]

DTYPES = ("float32", "float64", "int64", "int32")
_RECORD = record_dtype(*((name, "i8") for name in ("x", "y", "outer", "n", "inner", "reverse", "exclusive")))
_KERNELS = {dtype: Kernel(f"cumsum_{dtype}__generic", _RECORD, "qrt.ops.reduction.cpu:cumsum", (dtype,)) for dtype in DTYPES}
KERNELS: tuple[Kernel, ...] = tuple(_KERNELS.values())


@record
class CumSum(Op):
    """y[i] = x[0] + … + x[i] along `axis`; without x[i] if `exclusive`; from the other end if `reverse`. One after the other."""

    axis: int
    exclusive: bool = False
    reverse: bool = False

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x = inputs[0]
        if x.dtype.name not in DTYPES or not 0 <= self.axis < len(x.shape):
            raise UnsupportedOp(f"no kernel sums {x.dtype}{x.shape} along axis {self.axis}")
        return (x,)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = np.flip(inputs[0], self.axis) if self.reverse else inputs[0]
        y = np.cumsum(x, self.axis, x.dtype)
        if self.exclusive:
            y = np.roll(y, 1, self.axis)
            y[(slice(None),) * self.axis + (slice(0, 1),)] = 0
        return (np.ascontiguousarray(np.flip(y, self.axis) if self.reverse else y),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size:
            outer, n, inner = extents(x.spec.shape, self.axis, self.axis + 1)
            kernel, flags = _KERNELS[x.spec.dtype.name], {"reverse": int(self.reverse), "exclusive": int(self.exclusive)}
            steps.step(kernel, threads_for(x.spec.nbytes), x=x.ref, y=y.ref, outer=outer, n=n, inner=inner, **flags)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.reduction.device import emit_cumsum

        if outputs[0].spec.size:
            emit_cumsum(steps, inputs[0], outputs[0], extents(inputs[0].spec.shape, self.axis, self.axis + 1), self.exclusive, self.reverse)
