"""ImageNorm: instance and group normalization of images, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps

__all__ = ["KERNELS", "ImageNorm"]

# Channels that a thread works on at a time, rounded up to whole groups.
BLOCK = 64

_RECORD = record_dtype(
    *((name, "i8") for name in ("x", "scale", "bias", "y", "images", "pixels", "channels", "group", "block", "scratch")), ("epsilon", "f4")
)
KERNEL = Kernel("image_norm_f32__generic", _RECORD, "qrt.ops.normalization.cpu:image_norm")
KERNELS: tuple[Kernel, ...] = (KERNEL,)


@record
class ImageNorm(Op):
    """(x − mean) / sqrt(variance + epsilon) · scale + bias, over each image's space and each of `groups` runs of channels.

    Inputs: x [N, *space, C], scale [C], bias [C], float32. As many groups as channels: instance normalization.
    """

    groups: int
    epsilon: float

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, scale, bias = inputs
        if any(v.dtype != np.float32 for v in inputs) or len(x.shape) < 3:
            raise UnsupportedOp(f"no kernel normalizes {x.dtype}{x.shape} in {self.groups} groups of channels")
        if self.groups < 1 or x.shape[-1] % self.groups:
            raise ModelError(f"{x.shape[-1]} channels do not make {self.groups} groups")
        if scale.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
            raise ModelError(f"a scale of shape {scale.shape} and a bias of shape {bias.shape} do not fit {x.shape[-1]} channels")
        return (x,)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, scale, bias = inputs
        if x.size == 0:
            return (x.copy(),)
        parts = x.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        away = parts - parts.mean((1, 3), keepdims=True)
        y = away / np.sqrt(np.square(away).mean((1, 3), keepdims=True) + np.float32(self.epsilon))
        return (y.reshape(x.shape) * scale + bias,)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, scale, bias, y = *inputs, outputs[0]
        if y.spec.size == 0:
            return
        channels = x.spec.shape[-1]
        group = channels // self.groups
        block = -(-min(BLOCK, channels) // group) * group
        shape = {"images": x.spec.shape[0], "pixels": prod(x.spec.shape[1:-1]), "channels": channels, "group": group, "block": block}
        refs = {"x": x.ref, "scale": scale.ref, "bias": bias.ref, "y": y.ref, "scratch": steps.scratch(8 * block * steps.threads)}
        steps.step(KERNEL, threads_for(x.spec.nbytes), **refs, **shape, epsilon=self.epsilon)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.normalization.device import IMAGE_NORM, MAX_GROUPS

        x, scale, bias, y = *inputs, outputs[0]
        if y.spec.size == 0:
            return
        if self.groups > MAX_GROUPS:
            raise UnsupportedOp(f"no kernel for CUDA normalizes {self.groups} groups of channels")
        images, *space, channels = x.spec.shape
        refs = {"x": x.ref, "scale": scale.ref, "bias": bias.ref, "y": y.ref}
        counts = {"pixels": prod(space), "channels": channels, "group": channels // self.groups}
        steps.launch(IMAGE_NORM, (images, self.groups), **refs, **counts, epsilon=self.epsilon)

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0,)
