"""The table of device kernels of resizing."""

from __future__ import annotations

from math import prod

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.movement.device import SIZES, widest
from qrt.ops.op import DeviceSteps, Operand, Ref

__all__ = ["KERNELS", "LINEAR", "NEAREST", "emit_linear", "emit_nearest"]

# n: elements of y; the rest as in `resize.py`.
_NEAREST = (
    *((name, "i8") for name in ("x", "y", "row_of", "column_of")),
    *((name, "i4") for name in ("n", "rows", "columns", "inner", "x_rows", "x_columns")),
)
_LINEAR = (
    *_NEAREST,
    *((name, "i8") for name in ("row_part", "column_part")),
    *((name, "f4") for name in ("multiplier", "low", "high")),
    *((name, "i4") for name in ("x_zero_point", "y_zero_point")),
)
# By the bytes of what a thread copies.
NEAREST = {
    size: DeviceKernel(f"resize_b{size}_nearest__cuda", record_dtype(*_NEAREST), "qrt.ops.resize.cuda:copied", (size,)) for size in SIZES
}
# By whether they resize codes.
LINEAR = {
    codes: DeviceKernel(
        f"resize_{'u8' if codes else 'f32'}_linear__cuda", record_dtype(*_LINEAR), "qrt.ops.resize.cuda:linear", (int(codes),)
    )
    for codes in (False, True)
}
KERNELS: tuple[DeviceKernel, ...] = (*NEAREST.values(), *LINEAR.values())


def emit_nearest(steps: DeviceSteps, x: Operand, y: Operand, axis: int, row_of: Ref, column_of: Ref) -> None:
    """Appends Nearest; `row_of` and `column_of`: int32, the rows and columns that are copied."""
    nbytes = prod(x.spec.shape[axis + 2 :]) * x.spec.dtype.itemsize
    size = widest(nbytes, x.ref.offset, y.ref.offset)
    _launch(steps, NEAREST[size], x, y, axis, nbytes // size, row_of=row_of, column_of=column_of)


def emit_linear(steps: DeviceSteps, x: Operand, y: Operand, axis: int, tables: dict[str, Ref], codes: dict[str, float | int]) -> None:
    """Appends Linear, or QLinear where there are `codes`: the record's numbers."""
    numbers = codes or dict.fromkeys(("multiplier", "low", "high", "x_zero_point", "y_zero_point"), 0)
    _launch(steps, LINEAR[bool(codes)], x, y, axis, prod(x.spec.shape[axis + 2 :]), **tables, **numbers)


def _launch(steps: DeviceSteps, kernel: DeviceKernel, x: Operand, y: Operand, axis: int, inner: int, **fields: int | float | Ref) -> None:
    if y.spec.size >= 2**31:
        raise UnsupportedOp(f"a result of {y.spec.size} elements: resizing for CUDA counts in 32 bits")
    n = prod(y.spec.shape[: axis + 2]) * inner
    extents = {"rows": y.spec.shape[axis], "columns": y.spec.shape[axis + 1], "inner": inner}
    extents |= {"x_rows": x.spec.shape[axis], "x_columns": x.spec.shape[axis + 1]}
    steps.launch(kernel, (-(-n // kernel.block), 1), x=x.ref, y=y.ref, n=n, **extents, **fields)
