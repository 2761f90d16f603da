"""Top: the largest or smallest elements along an axis, and where they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, Op, Operand, Spec, Steps
from qrt.ops.reduction.reduce import extents

__all__ = ["DTYPES", "KERNELS", "Top"]

DTYPES = ("float32", "int64", "int32", "uint8", "int8")
_RECORD = record_dtype(*((name, "i8") for name in ("x", "y", "indices", "work", "outer", "n", "inner", "k", "flip")))
_KERNELS = {dtype: Kernel(f"top_{dtype}__generic", _RECORD, "qrt.ops.reduction.cpu_top:top", (dtype,)) for dtype in DTYPES}
KERNELS: tuple[Kernel, ...] = tuple(_KERNELS.values())


@record
class Top(Op):
    """The `k` largest (or smallest) elements along `axis`, best first, and their int64 indices. Of equals the first comes first; a NaN is
    larger than every number."""

    k: int
    axis: int
    largest: bool = True

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x = inputs[0]
        if x.dtype.name not in DTYPES:
            raise UnsupportedOp(f"no kernel sorts {x.dtype}")
        if not 0 <= self.axis < len(x.shape) or not 0 <= self.k <= x.shape[self.axis]:
            raise ModelError(f"a value of shape {x.shape} has no {self.k} elements along axis {self.axis}")
        shape = (*x.shape[: self.axis], self.k, *x.shape[self.axis + 1 :])
        return (Spec(shape, x.dtype), Spec(shape, np.dtype(np.int64)))

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = np.moveaxis(inputs[0], self.axis, -1)
        # Sorting puts NaNs last. Of equals the first is to come first, also where the largest lead: they are sorted from behind.
        order = np.flip(x.shape[-1] - 1 - np.flip(x, -1).argsort(-1, "stable"), -1) if self.largest else x.argsort(-1, "stable")
        order = order[..., : self.k]
        found = (np.take_along_axis(x, order, -1), order.astype(np.int64))
        return tuple(np.ascontiguousarray(np.moveaxis(y, -1, self.axis)) for y in found)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size:
            outer, n, inner = extents(x.spec.shape, self.axis, self.axis + 1)
            steps.step(
                _KERNELS[x.spec.dtype.name],
                threads_for(x.spec.nbytes),
                x=x.ref,
                y=y.ref,
                indices=outputs[1].ref,
                work=steps.scratch(steps.threads * 16 * self.k),
                outer=outer,
                n=n,
                inner=inner,
                k=self.k,
                flip=0 if self.largest else -1,
            )
