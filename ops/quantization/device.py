"""The table of device kernels between real numbers and codes, and on codes. x and y start at multiples of 16 bytes."""

from __future__ import annotations

from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel

__all__ = ["DEQUANTIZE", "KERNELS", "LUT", "PER_THREAD", "QUANTIZE"]

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
