"""The table of device kernels between real numbers and codes, and on codes. x and y start at multiples of 16 bytes."""

from __future__ import annotations

from math import prod

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.op import DeviceSteps, Operand, Ref

__all__ = ["DEQUANTIZE", "KERNELS", "LUT", "PER_THREAD", "QUANTIZE", "emit_dequantize", "emit_lut", "emit_quantize"]

PER_THREAD = 16  # elements

# As in `quantize.py`: `scale`, `low`, `high` (float32) and `zero` (int32) have an entry a channel.
_SIZES = (("n", "i8"), ("channels", "i4"), ("inner", "i4"))
_QUANTIZE = record_dtype(*((name, "i8") for name in ("x", "y", "scale", "low", "high", "zero")), *_SIZES)
_DEQUANTIZE = record_dtype(*((name, "i8") for name in ("x", "y", "scale", "zero")), *_SIZES)

# By whether there is more than one channel; and, of dequantize, by the codes' dtype.
QUANTIZE = {
    many: DeviceKernel(
        f"quantize_f32_b1_{'channels' if many else 'tensor'}__cuda", _QUANTIZE, "qrt.ops.quantization.cuda:quantize", (many,)
    )
    for many in (0, 1)
}
DEQUANTIZE = {
    (of, many): DeviceKernel(
        f"dequantize_{of}_f32_{'channels' if many else 'tensor'}__cuda", _DEQUANTIZE, "qrt.ops.quantization.cuda:dequantize", (of, many)
    )
    for of in ("uint8", "int8")
    for many in (0, 1)
}
LUT = DeviceKernel("lut_u8__cuda", record_dtype(("x", "i8"), ("table", "i8"), ("y", "i8"), ("n", "i8")), "qrt.ops.quantization.cuda:lut")
KERNELS: tuple[DeviceKernel, ...] = (*QUANTIZE.values(), *DEQUANTIZE.values(), LUT)


def _grid(kernel: DeviceKernel, n: int) -> tuple[int, int]:
    return -(-n // (PER_THREAD * kernel.block)), 1


def emit_quantize(steps: DeviceSteps, fields: dict[str, int | Ref], extents: tuple[int, int, int], dtype: str) -> None:
    """Appends Quantize. `extents`: outer, channels, inner."""
    if dtype not in ("uint8", "int8"):
        raise UnsupportedOp(f"no kernel for CUDA quantizes to {dtype}")
    kernel = QUANTIZE[int(extents[1] > 1)]
    steps.launch(kernel, _grid(kernel, prod(extents)), **fields, **_sizes(extents))


def emit_dequantize(steps: DeviceSteps, fields: dict[str, int | Ref], extents: tuple[int, int, int], dtype: str) -> None:
    """Appends Dequantize."""
    kernel = DEQUANTIZE.get((dtype, int(extents[1] > 1)))
    if kernel is None:
        raise UnsupportedOp(f"no kernel for CUDA dequantizes {dtype}")
    needed = {name: fields[name] for name in ("x", "y", "scale", "zero")}
    steps.launch(kernel, _grid(kernel, prod(extents)), **needed, **_sizes(extents))


def _sizes(extents: tuple[int, int, int]) -> dict[str, int]:
    return {"n": prod(extents), "channels": extents[1], "inner": extents[2]}


def emit_lut(steps: DeviceSteps, x: Operand, table: Operand, y: Operand) -> None:
    """Appends Lut."""
    steps.launch(LUT, _grid(LUT, y.spec.size), x=x.ref, table=table.ref, y=y.ref, n=y.spec.size)
