"""Norms of rows: the axes from one on, as one row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise import Binary
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Ref, Spec, Steps
from qrt.ops.reduction.reduce import extents

__all__ = ["KERNELS", "LayerNorm", "LpNorm", "RmsNorm"]

_RECORD = record_dtype(*((name, "i8") for name in ("x", "scale", "y", "rows", "n")), ("epsilon", "f4"))
_LP_RECORD = record_dtype(*((name, "i8") for name in ("x", "y", "rows", "n")))
# Bytes of a thread's scratch memory: a cache line, for two numbers of each of the rows that it normalizes together.
SCRATCH = 64
_LAYER_RECORD = record_dtype(*((name, "i8") for name in ("x", "residual", "scale", "bias", "y", "rows", "n", "scratch")), ("epsilon", "f4"))
_LAYER = {
    (bias, residual): Kernel(
        f"layer_norm{'_residual' if residual else ''}{'_bias' if bias else ''}_f32__generic",
        _LAYER_RECORD,
        "qrt.ops.normalization.cpu:layer_norm",
        (bias, residual),
    )
    for bias in (False, True)
    for residual in (False, True)
}
_RMS = Kernel("rms_norm_f32__generic", _RECORD, "qrt.ops.normalization.cpu:rms_norm")
_LP = {p: Kernel(f"l{p}_norm_f32__generic", _LP_RECORD, "qrt.ops.normalization.cpu:lp_norm", (p,)) for p in (1, 2)}
KERNELS: tuple[Kernel, ...] = (*_LAYER.values(), _RMS, *_LP.values())


def _check(inputs: Sequence[Spec], axis: int) -> tuple[Spec, ...]:
    x = inputs[0]
    if any(v.dtype != np.float32 for v in inputs) or not 0 <= axis < len(x.shape):
        raise UnsupportedOp(f"no kernel normalizes {[str(v.dtype) for v in inputs]} of shape {x.shape} from axis {axis}")
    for v in inputs[1:]:
        if v.shape != x.shape[axis:]:
            raise ModelError(f"a scale or bias of shape {v.shape} does not fit rows of shape {x.shape[axis:]}")
    return (x,)


def _emit(steps: Steps, kernel: Kernel, x: Operand, others: dict[str, Ref], y: Operand, axis: int, epsilon: float) -> None:
    rows, n, _ = extents(x.spec.shape, axis, len(x.spec.shape))
    if y.spec.size:
        steps.step(kernel, threads_for(2 * x.spec.nbytes), x=x.ref, y=y.ref, rows=rows, n=n, epsilon=epsilon, **others)


@record
class LayerNorm(Op):
    """(x − mean) / sqrt(variance + epsilon) · scale + bias over the axes from `axis` on. Inputs: x, scale, bias (optional), float32; with
    `residual` x, one of x's shape that is added to it first, scale, bias (optional)."""

    axis: int
    epsilon: float
    residual: bool = False

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if self.residual and inputs[0] != inputs[1]:
            raise UnsupportedOp(f"a residual of {inputs[1].dtype}{inputs[1].shape} for rows of {inputs[0].dtype}{inputs[0].shape}")
        return _check([inputs[0], *inputs[1 + self.residual :]], self.axis)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = inputs[0] + inputs[1] if self.residual else inputs[0]
        scale, *biases = inputs[1 + self.residual :]
        axes = tuple(range(self.axis, x.ndim))
        away = x - x.mean(axes, keepdims=True)
        y = away / np.sqrt(np.square(away).mean(axes, keepdims=True) + np.float32(self.epsilon)) * scale
        return (y + biases[0] if biases else y,)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        scale, *biases = inputs[1 + self.residual :]
        others = {"residual": inputs[self.residual].ref, "scale": scale.ref, "bias": [scale, *biases][-1].ref}
        others["scratch"] = steps.scratch(SCRATCH * steps.threads)
        _emit(steps, _LAYER[bool(biases), self.residual], inputs[0], others, outputs[0], self.axis, self.epsilon)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.normalization.device import LAYER_NORM
        from qrt.ops.reduction.device import by_rows

        x, y = inputs[0], outputs[0]
        if self.residual:
            Binary("add").emit_device(steps, inputs[:2], outputs)
            x = y
        scale, *biases = inputs[1 + self.residual :]
        rows, n, _ = extents(x.spec.shape, self.axis, len(x.spec.shape))
        if y.spec.size:
            refs = {"x": x.ref, "scale": scale.ref, "bias": [scale, *biases][-1].ref, "y": y.ref}
            by_rows(steps, LAYER_NORM[bool(biases)], rows, n, **refs, epsilon=self.epsilon)

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0,)


@record
class RmsNorm(Op):
    """x / sqrt(mean(x²) + epsilon) · scale over the axes from `axis` on. Inputs: x, scale, float32."""

    axis: int
    epsilon: float

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return _check(inputs, self.axis)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, scale = inputs
        mean = np.square(x).mean(tuple(range(self.axis, x.ndim)), keepdims=True)
        return (x / np.sqrt(mean + np.float32(self.epsilon)) * scale,)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        _emit(steps, _RMS, inputs[0], {"scale": inputs[1].ref}, outputs[0], self.axis, self.epsilon)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.normalization.device import RMS_NORM
        from qrt.ops.reduction.device import by_rows

        x, scale, y = inputs[0], inputs[1], outputs[0]
        rows, n, _ = extents(x.spec.shape, self.axis, len(x.spec.shape))
        if y.spec.size:
            by_rows(steps, RMS_NORM, rows, n, x=x.ref, scale=scale.ref, y=y.ref, epsilon=self.epsilon)

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0,)


@record
class LpNorm(Op):
    """x over its norm along the last axis: Σ|x| (p = 1) or sqrt(Σx²) (p = 2). Where the norm is 0, y is 0; float32."""

    p: int

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if self.p not in _LP:
            raise UnsupportedOp(f"no kernel for the norm of order {self.p}")
        return _check(inputs, len(inputs[0].shape) - 1)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = inputs[0]
        norm = np.abs(x).sum(-1, keepdims=True) if self.p == 1 else np.sqrt(np.square(x).sum(-1, keepdims=True))
        return (np.asarray(x / np.where(norm == 0, np.float32(1), norm)),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        rows, n, _ = extents(x.spec.shape, len(x.spec.shape) - 1, len(x.spec.shape))
        if y.spec.size:
            steps.step(_LP[self.p], threads_for(2 * x.spec.nbytes), x=x.ref, y=y.ref, rows=rows, n=n)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.normalization.device import LP_NORM
        from qrt.ops.reduction.device import by_rows

        x, y = inputs[0], outputs[0]
        rows, n, _ = extents(x.spec.shape, len(x.spec.shape) - 1, len(x.spec.shape))
        if y.spec.size:
            by_rows(steps, LP_NORM[self.p], rows, n, x=x.ref, y=y.ref)

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0,)
