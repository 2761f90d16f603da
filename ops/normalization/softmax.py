"""Softmax and its logarithm along one axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise import Binary
from qrt.ops.elementwise.walk import merge, threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps
from qrt.ops.reduction.reduce import extents

__all__ = ["KERNELS", "ScaledSoftmax", "Softmax"]

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
# The mask's row i·m0 + j·m1 + k·m2 (in elements) belongs to row (i·n1 + j)·n2 + k of x.
_WALK = ("x", "y", "mask", "outer", "n", "n1", "n2", "m0", "m1", "m2", "scratch")
_SCALED_RECORD = record_dtype(*((name, "i8") for name in _WALK), ("scale", "f4"))
_SCALED = {
    masked: Kernel(
        f"softmax_scaled{'_masked' if masked else ''}_f32__generic", _SCALED_RECORD, "qrt.ops.normalization.cpu:softmax_scaled", (masked,)
    )
    for masked in (False, True)
}
KERNELS: tuple[Kernel, ...] = (*_KERNELS.values(), *_SCALED.values())


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


@record
class ScaledSoftmax(Op):
    """The softmax of x · scale + mask along the last axis, as attention has it of its scores. Inputs: x, mask (optional), float32.

    The mask broadcasts to x along all axes but the last.
    """

    scale: float

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x = inputs[0]
        if any(v.dtype != np.float32 or not v.shape for v in inputs) or len(self._rows(inputs)[0]) > 3:
            raise UnsupportedOp(f"no kernel computes the softmax of {[f'{v.dtype}{v.shape}' for v in inputs]}")
        return (x,)

    def _rows(self, inputs: Sequence[Spec]) -> tuple[list[int], list[int]]:
        """Extents of x's axes but the last, as few as the mask can be walked with, and its strides along them. UnsupportedOp where it
        does not broadcast."""
        x, mask = inputs[0].shape, inputs[-1].shape
        fits = len(x) == len(mask) and x[-1] == mask[-1] and all(m in (1, n) for n, m in zip(x, mask, strict=True))
        if not fits:
            raise UnsupportedOp(f"a mask of shape {mask} does not broadcast to scores of shape {x}")
        steps = [[0 if n == 1 else stride for n, stride in zip(v.shape, v.strides, strict=True)] for v in (inputs[0], inputs[-1])]
        extents, strides = merge(x[:-1], [walked[:-1] for walked in steps])
        return extents, strides[1]

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        scores = inputs[0] * np.float32(self.scale)
        return Softmax(scores.ndim - 1).reference([scores + inputs[1] if len(inputs) > 1 else scores])

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, mask, y = inputs[0], inputs[-1], outputs[0]
        if y.spec.size == 0:
            return
        extents, strides = self._rows([operand.spec for operand in inputs])
        n1, n2 = ([1, 1, *extents])[-2:]
        fields = dict(zip(("m0", "m1", "m2"), [0, 0, 0, *strides][-3:], strict=True))
        fields |= {"outer": y.spec.size // y.spec.shape[-1], "n": y.spec.shape[-1], "n1": n1, "n2": n2}
        refs = {"x": x.ref, "mask": mask.ref, "y": y.ref, "scratch": steps.scratch(_SCRATCH["rows"] * steps.threads)}
        steps.step(_SCALED[len(inputs) > 1], threads_for(4 * x.spec.nbytes), **refs, **fields, scale=self.scale)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        """One step after the other."""
        (x, *masks), rank = inputs, len(outputs[0].spec.shape)
        factor = np.full((1,) * rank, self.scale, np.float32)
        spec = Spec(factor.shape, factor.dtype)
        Binary("mul").emit_device(steps, [x, Operand(spec, steps.packed(factor, "factor", factor.copy), spec.strides)], outputs)
        for mask in masks:
            Binary("add").emit_device(steps, [outputs[0], mask], outputs)
        Softmax(rank - 1).emit_device(steps, outputs, outputs)

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0,)
