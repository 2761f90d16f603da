"""The table of device kernels between real numbers and codes, and on codes. x and y start at multiples of 16 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.elementwise.walk import MAX_AXES, walk_fields
from qrt.ops.op import DeviceSteps, Operand, Ref

__all__ = [
    "BINARY",
    "DEQUANTIZE",
    "KERNELS",
    "LUT",
    "PER_THREAD",
    "QUANTIZE",
    "emit_binary",
    "emit_dequantize",
    "emit_lut",
    "emit_quantize",
]

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
# As in `binary.py`, but for the outermost extent, which follows from n: all elements; y lies in one piece.
_BINARY = record_dtype(
    ("y", "i8"),
    *((name, "i4") for name in ("n", "wide", *(f"n{k}" for k in range(1, MAX_AXES)))),
    *((name, "i8") for letter in "ab" for name in (letter, *(f"{letter}{k}" for k in range(MAX_AXES)))),
    *((name, "f4") for name in ("fa", "fb", "fy", "low", "high")),
    *((name, "i4") for name in ("za", "zb", "zy")),
)
BINARY = {name: DeviceKernel(f"q{name}_u8__cuda", _BINARY, "qrt.ops.quantization.cuda:binary", (name,)) for name in ("add", "mul")}
KERNELS: tuple[DeviceKernel, ...] = (*QUANTIZE.values(), *DEQUANTIZE.values(), LUT, *BINARY.values())


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


def emit_lut(steps: DeviceSteps, x: Operand, table: Ref, y: Operand) -> None:
    """Appends y = table[x]; x and y may be one."""
    steps.launch(LUT, _grid(LUT, y.spec.size), x=x.ref, table=table, y=y.ref, n=y.spec.size)


def emit_binary(steps: DeviceSteps, name: str, inputs: Sequence[Operand], y: Operand, numbers: dict[str, float | int]) -> None:
    """Appends QBinary; `numbers`: scales, bounds and zero points as the record holds them."""
    kernel, n = BINARY[name], y.spec.size
    if n >= 2**31:
        raise UnsupportedOp(f"no kernel for CUDA walks the {n} elements of a result")
    walk = walk_fields("ab", inputs, y) | {"n": n}
    fields = {key: walk[key] for key in kernel.record.names or () if key in walk}
    # Where the last axis is walked in sixteens, so are the others: all else that an operand walks is a multiple of its last extent, or 0.
    wide = fields["n5"] % PER_THREAD == 0 and fields["a5"] in (0, 1) and fields["b5"] in (0, 1)  # type: ignore[operator]
    steps.launch(kernel, _grid(kernel, n), **fields, wide=int(wide), **numbers)
