"""Quantize and Dequantize, per tensor and per channel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod

import numpy as np

from qrt.core.dtypes import QDType
from qrt.core.errors import UnsupportedOp
from qrt.core.numerics import dequantize, quantize
from qrt.core.qparams import QParams
from qrt.core.record import record
from qrt.jit import Kernel, choose, record_dtype
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Ref, Spec, Steps

__all__ = ["KERNELS", "Dequantize", "Quantize"]

# Codes that float32 rounding reaches exactly (see qrt.jit.lang.rounding), and those that can be read back.
TO = ("uint8", "int8", "uint16", "int16")
FROM = (*TO, "int32")

# x and y are [outer, channels, inner]; per tensor both extents but the last are 1. `scale`, and `zero` (float32 of qmin − zero point,
# qmax − zero point, then the int32 zero point), have an entry a channel.
_RECORD = record_dtype(*((name, "i8") for name in ("x", "y", "outer", "channels", "inner", "scale", "low", "high", "zero")))

# With fused multiply-adds kernels need no division.
_QUANTIZE = {
    to: tuple(
        Kernel(f"quantize_f32_{to}__{isa}", _RECORD, "qrt.ops.quantization.cpu:quantize", (to, isa != "generic"))
        for isa in ("avx2", "neon_dot", "generic")
    )
    for to in TO
}
_DEQUANTIZE = {of: Kernel(f"dequantize_{of}_f32__generic", _RECORD, "qrt.ops.quantization.cpu:dequantize", (of,)) for of in FROM}
KERNELS: tuple[Kernel, ...] = (*chain(*_QUANTIZE.values()), *_DEQUANTIZE.values())


def _channels(qparams: QParams, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`shape` as (outer, channels, inner) around the axis of `qparams`, which has to fit."""
    qparams.along(shape)
    if qparams.axis is None:
        return 1, 1, prod(shape)
    axis = qparams.axis % len(shape)
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def _fields(steps: Steps | DeviceSteps, qparams: QParams, x: Operand, y: Operand, bounds: tuple[int, int]) -> dict[str, int | Ref]:
    zero, scale = qparams.zero_point.reshape(-1), qparams.scale.reshape(-1)

    def table() -> Array:
        low, high = ((bound - zero.astype(np.int64)).astype(np.float32) for bound in bounds)
        return np.stack([scale, low, high, zero.view(np.float32)])

    at = steps.packed(qparams.scale, ("qparams", zero.tobytes(), bounds), table)
    channels = scale.size
    columns = {name: at + 4 * channels * k for k, name in enumerate(("scale", "low", "high", "zero"))}
    return {"x": x.ref, "y": y.ref, **columns}


def _extents(qparams: QParams, shape: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(("outer", "channels", "inner"), _channels(qparams, shape), strict=True))


@record(eq=False)
class Quantize(Op):
    """Codes of float32 x: clamp(rint(x / scale) + zero_point, qmin, qmax); `qmin`, `qmax` narrow the range of the codes' dtype."""

    qparams: QParams
    qmin: int | None = None
    qmax: int | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest code."""
        dtype = self.qparams.dtype
        return (dtype.qmin if self.qmin is None else self.qmin), (dtype.qmax if self.qmax is None else self.qmax)

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, to = inputs[0], self.qparams.dtype.storage
        if x.dtype != np.float32 or to.name not in TO:
            raise UnsupportedOp(f"no kernel quantizes {x.dtype} to {to}")
        _channels(self.qparams, x.shape)
        return (Spec(x.shape, to),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        dtype = self.qparams.dtype
        low, high = self.bounds
        codes = quantize(inputs[0], self.qparams)
        return (np.clip(codes, low, high).astype(dtype.storage),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size:
            kernel = choose(_QUANTIZE[y.spec.dtype.name], steps.target)[0]
            steps.step(
                kernel,
                threads_for(x.spec.nbytes),
                **_fields(steps, self.qparams, x, y, self.bounds),
                **_extents(self.qparams, x.spec.shape),
            )

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.quantization.device import emit_quantize

        x, y = inputs[0], outputs[0]
        if y.spec.size:
            fields = _fields(steps, self.qparams, x, y, self.bounds)
            emit_quantize(steps, fields, _channels(self.qparams, x.spec.shape), y.spec.dtype.name)


@record(eq=False)
class Dequantize(Op):
    """float32 of codes: float32(code − zero_point) · scale."""

    qparams: QParams

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, of = inputs[0], self.qparams.dtype.storage
        if x.dtype != of or of.name not in FROM:
            raise UnsupportedOp(f"no kernel dequantizes {x.dtype} with qparams of {of}")
        _channels(self.qparams, x.shape)
        return (Spec(x.shape, np.dtype(np.float32)),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (dequantize(inputs[0], self.qparams),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size:
            dtype: QDType = self.qparams.dtype
            kernel = _DEQUANTIZE[x.spec.dtype.name]
            steps.step(
                kernel,
                threads_for(y.spec.nbytes),
                **_fields(steps, self.qparams, x, y, (dtype.qmin, dtype.qmax)),
                **_extents(self.qparams, x.spec.shape),
            )

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.quantization.device import emit_dequantize

        x, y = inputs[0], outputs[0]
        if y.spec.size:
            fields = _fields(steps, self.qparams, x, y, (self.qparams.dtype.qmin, self.qparams.dtype.qmax))
            emit_dequantize(steps, fields, _channels(self.qparams, x.spec.shape), x.spec.dtype.name)
