"""ArgReduce: where the largest or the smallest element is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps
from qrt.ops.reduction.reduce import extents

__all__ = ["DTYPES", "KERNELS", "ArgReduce"]

DTYPES = ("float32", "int64", "int32", "uint8", "int8")
_RECORD = record_dtype(*((name, "i8") for name in ("x", "y", "outer", "n", "inner")))
_KERNELS = {
    (kind, last, dtype): Kernel(
        f"arg{kind}_{'last' if last else 'first'}_{dtype}__generic", _RECORD, "qrt.ops.reduction.cpu:arg", (kind, last, dtype)
    )
    for kind in ("max", "min")
    for last in (False, True)
    for dtype in DTYPES
}
KERNELS: tuple[Kernel, ...] = tuple(_KERNELS.values())


@record
class ArgReduce(Op):
    """int64 index along `axis`, which stays with extent 1, of the largest ("max") or smallest ("min") element: of the first of
    equals, or of the last. A NaN is larger and smaller than every number."""

    kind: str
    axis: int
    last: bool = False

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x = inputs[0]
        if x.dtype.name not in DTYPES or not 0 <= self.axis < len(x.shape) or x.shape[self.axis] == 0:
            raise UnsupportedOp(f"no kernel finds the {self.kind} of {x.dtype}{x.shape} along axis {self.axis}")
        return (Spec((*x.shape[: self.axis], 1, *x.shape[self.axis + 1 :]), np.dtype(np.int64)),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = np.flip(inputs[0], self.axis) if self.last else inputs[0]
        found = (np.argmax if self.kind == "max" else np.argmin)(x, self.axis, keepdims=True)
        return (np.asarray(x.shape[self.axis] - 1 - found if self.last else found, np.int64),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size:
            outer, n, inner = extents(x.spec.shape, self.axis, self.axis + 1)
            kernel = _KERNELS[self.kind, self.last, x.spec.dtype.name]
            steps.step(kernel, threads_for(x.spec.nbytes), x=x.ref, y=y.ref, outer=outer, n=n, inner=inner)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.reduction.device import emit_arg

        x, y = inputs[0], outputs[0]
        if y.spec.size:
            emit_arg(steps, self.kind, self.last, x, y, extents(x.spec.shape, self.axis, self.axis + 1))
