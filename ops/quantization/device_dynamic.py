"""The table of device kernels of DynamicQuantize. x and y start at multiples of 16 bytes."""

from __future__ import annotations

from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.op import DeviceSteps, Operand

__all__ = ["KERNELS", "QUANTIZE", "RANGE", "emit_dynamic_quantize"]

BLOCK = 256
PER_THREAD = 16  # codes
# Elements of a part, at the least; and how many parts there are at the most: a warp combines them.
PART, MAX_PARTS = 8192, 256

RANGE = DeviceKernel(
    "range_f32__cuda",
    record_dtype(("x", "i8"), ("ranges", "i8"), ("n", "i8"), ("part", "i8")),
    "qrt.ops.quantization.cuda_dynamic:range_of",
    (BLOCK,),
    BLOCK,
    8 * BLOCK // 32,
)
QUANTIZE = DeviceKernel(
    "dynamic_quantize_f32__cuda",
    record_dtype(*((name, "i8") for name in ("x", "y", "scale", "zero", "ranges", "n")), ("parts", "i4")),
    "qrt.ops.quantization.cuda_dynamic:dynamic_quantize",
)
KERNELS: tuple[DeviceKernel, ...] = (RANGE, QUANTIZE)


def emit_dynamic_quantize(steps: DeviceSteps, x: Operand, y: Operand, scale: Operand, zero: Operand) -> None:
    """Appends DynamicQuantize."""
    n = x.spec.size
    part = max(PART, -(-n // MAX_PARTS // 4) * 4)
    parts = -(-n // part)
    ranges = steps.scratch(8 * max(parts, 1))
    if n:
        steps.launch(RANGE, (parts, 1), x=x.ref, ranges=ranges, n=n, part=part)
    grid = (max(1, -(-n // (PER_THREAD * QUANTIZE.block))), 1)
    steps.launch(QUANTIZE, grid, x=x.ref, y=y.ref, scale=scale.ref, zero=zero.ref, ranges=ranges, n=n, parts=parts)
