"""OneHot: rows that hold one value at an index and another elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.movement.strided import SERIAL_BYTES
from qrt.ops.op import Array, Op, Operand, Spec, Steps

__all__ = ["KERNELS", "OneHot"]

_RECORD = record_dtype(*((name, "i8") for name in ("values", "y", "index", "outer", "depth", "inner")))
_KERNELS = {
    (size, index): Kernel(f"one_hot_b{size}_i{8 * index}__generic", _RECORD, "qrt.ops.movement.cpu_index:one_hot", (size, index))
    for size in (1, 2, 4, 8)
    for index in (4, 8)
}
KERNELS: tuple[Kernel, ...] = tuple(_KERNELS.values())


@record
class OneHot(Op):
    """index, values (off, on) → index with a new axis `axis` of `depth` elements: on where the index points, off elsewhere. A negative
    index counts from the end; one that leaves the axis points nowhere."""

    depth: int
    axis: int

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        index, values = inputs
        if index.dtype not in (np.int32, np.int64) or values.dtype.itemsize not in (1, 2, 4, 8):
            raise UnsupportedOp(f"no kernel makes {values.dtype} of indices of {index.dtype}")
        if values.shape != (2,) or not 0 <= self.axis <= len(index.shape) or not 0 <= self.depth < 1 << 31:
            raise ModelError(f"no axis {self.axis} of {self.depth} elements in {index.shape} holds the values of {values.shape}")
        return (Spec((*index.shape[: self.axis], self.depth, *index.shape[self.axis :]), values.dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        index, values = inputs
        places = np.arange(self.depth).reshape(self.depth, *[1] * (index.ndim - self.axis))
        wanted = np.expand_dims(np.where(index < 0, index + self.depth, index), self.axis)
        return (values[(places == wanted).astype(int)],)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        index, values, y = inputs[0], inputs[1], outputs[0]
        if y.spec.size:
            steps.step(
                _KERNELS[y.spec.dtype.itemsize, index.spec.dtype.itemsize],
                None if y.spec.nbytes > SERIAL_BYTES else 1,
                values=values.ref,
                y=y.ref,
                index=index.ref,
                outer=prod(index.spec.shape[: self.axis]),
                depth=self.depth,
                inner=prod(index.spec.shape[self.axis :]),
            )
