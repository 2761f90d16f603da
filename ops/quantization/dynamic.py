"""DynamicQuantize: uint8 codes with qparams measured on the tensor itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.numerics import round_clamp
from qrt.core.record import record
from qrt.jit import Kernel, choose, record_dtype
from qrt.ops.elementwise.walk import threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps

__all__ = ["KERNELS", "DynamicQuantize"]

F32 = np.float32
# Elements that one partial range covers: enough for every thread of a large tensor, few enough to combine.
PART = 16384

_RANGE_RECORD = record_dtype(*((name, "i8") for name in ("x", "n", "part", "ranges")))
_RECORD = record_dtype(*((name, "i8") for name in ("x", "y", "scale", "zero", "n", "part", "ranges")))
RANGE = Kernel("range_f32__generic", _RANGE_RECORD, "qrt.ops.quantization.cpu:range_of")
# With fused multiply-adds kernels need no division.
QUANTIZE = tuple(
    Kernel(f"dynamic_quantize_f32__{isa}", _RECORD, "qrt.ops.quantization.cpu:dynamic_quantize", (isa != "generic",))
    for isa in ("avx2", "neon_dot", "generic")
)
KERNELS: tuple[Kernel, ...] = (RANGE, *QUANTIZE)


@record
class DynamicQuantize(Op):
    """ONNX DynamicQuantizeLinear: float32 x → codes (uint8), scale (float32 ()), zero point (uint8 ()).

    scale = (max − min) / 255 over x and 0, or 1 where that is 0; zero point = rint(clamp(−min / scale, 0, 255)).
    """

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if inputs[0].dtype != F32:
            raise UnsupportedOp(f"no kernel measures the range of {inputs[0].dtype}")
        return Spec(inputs[0].shape, np.dtype(np.uint8)), Spec((), np.dtype(F32)), Spec((), np.dtype(np.uint8))

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = inputs[0]
        with np.errstate(all="ignore"):
            low, high = x.min(initial=0), x.max(initial=0)
            scale = F32(1) if high == low else (high - low) / F32(255)
            zero = round_clamp(-low / scale, np.zeros((), np.int32), 0, 255)
            codes = round_clamp(x / scale, zero, 0, 255).astype(np.uint8)
        return codes, np.asarray(scale, F32), np.asarray(zero, np.uint8)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, (y, scale, zero) = inputs[0], outputs
        n, threads = x.spec.size, threads_for(x.spec.nbytes)
        ranges = steps.scratch(8 * -(-n // PART))
        steps.step(RANGE, threads, x=x.ref, n=n, part=PART, ranges=ranges)
        kernel = choose(QUANTIZE, steps.target)[0]
        steps.step(kernel, threads, x=x.ref, y=y.ref, scale=scale.ref, zero=zero.ref, n=n, part=PART, ranges=ranges)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.quantization.device_dynamic import emit_dynamic_quantize

        emit_dynamic_quantize(steps, inputs[0], *outputs)
