"""The table of device kernels of the reductions, for floats, and what launches kernels by rows and by columns."""

from __future__ import annotations

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.op import DeviceSteps, Operand, Ref
from qrt.ops.reduction.reduce import KINDS

__all__ = ["ARG", "COLUMNS", "CUMSUM", "KERNELS", "ROWS", "by_columns", "by_rows", "emit_arg", "emit_cumsum", "emit_reduce", "record_of"]

WARP = 32
_SOURCE = "qrt.ops.reduction.cuda:"


def record_of(pointers: str, *counts: str, epsilon: bool = False) -> list[tuple[str, str]]:
    """Addresses and what else takes 8 bytes; counts of 4; a float."""
    more = [("epsilon", "f4")] if epsilon else []
    return [*((name, "i8") for name in pointers.split()), *((name, "i4") for name in counts), *more]


ROWS = {
    kind: DeviceKernel(f"reduce_rows_{kind}_f32__cuda", record_dtype(*record_of("x y rows", "n")), _SOURCE + "rows", (kind,))
    for kind in KINDS
}
COLUMNS = {
    kind: DeviceKernel(
        f"reduce_columns_{kind}_f32__cuda", record_dtype(*record_of("x y columns", "n", "inner")), _SOURCE + "columns", (kind,)
    )
    for kind in KINDS
}
ARG = {
    (kind, last): DeviceKernel(
        f"arg{kind}_{'last' if last else 'first'}_f32__cuda",
        record_dtype(*record_of("x y rows", "n", "inner")),
        _SOURCE + "arg",
        (kind, int(last)),
    )
    for kind in ("max", "min")
    for last in (False, True)
}
CUMSUM = {
    dtype: DeviceKernel(
        f"cumsum_{dtype}__cuda", record_dtype(*record_of("x y columns", "n", "inner", "exclusive", "reverse")), _SOURCE + "cumsum", (dtype,)
    )
    for dtype in ("float32", "int64", "int32")
}
KERNELS: tuple[DeviceKernel, ...] = (*ROWS.values(), *COLUMNS.values(), *ARG.values(), *CUMSUM.values())


def by_rows(steps: DeviceSteps, kernel: DeviceKernel, rows: int, n: int, **fields: int | float | Ref) -> None:
    """Appends a kernel of whose warps each makes one of `rows` rows of n elements."""
    _require(n)
    steps.launch(kernel, (-(-rows * WARP // kernel.block), 1), rows=rows, n=n, **fields)


def by_columns(steps: DeviceSteps, kernel: DeviceKernel, outer: int, n: int, inner: int, **fields: int | float | Ref) -> None:
    """Appends a kernel of whose threads each makes a column, of `outer` times `inner`, of n elements."""
    _require(max(n, inner))
    steps.launch(kernel, (-(-outer * inner // kernel.block), 1), columns=outer * inner, n=n, inner=inner, **fields)


def _require(n: int) -> None:
    if n >= 2**31 - WARP:
        raise UnsupportedOp(f"no kernel for CUDA folds {n} elements")


def emit_reduce(steps: DeviceSteps, kind: str, x: Operand, y: Operand, extents: tuple[int, int, int]) -> None:
    """Appends Reduce. `extents`: outer, n, inner."""
    if x.spec.dtype != "float32":
        raise UnsupportedOp(f"no kernel for CUDA computes the {kind} of {x.spec.dtype}")
    outer, n, inner = extents
    if inner == 1:
        by_rows(steps, ROWS[kind], outer, n, x=x.ref, y=y.ref)
    else:
        by_columns(steps, COLUMNS[kind], outer, n, inner, x=x.ref, y=y.ref)


def emit_cumsum(steps: DeviceSteps, x: Operand, y: Operand, extents: tuple[int, int, int], exclusive: bool, reverse: bool) -> None:
    """Appends CumSum. `extents`: outer, n, inner."""
    kernel = CUMSUM.get(x.spec.dtype.name)
    if kernel is None:
        raise UnsupportedOp(f"no kernel for CUDA sums up {x.spec.dtype}")
    by_columns(steps, kernel, *extents, x=x.ref, y=y.ref, exclusive=int(exclusive), reverse=int(reverse))


def emit_arg(steps: DeviceSteps, kind: str, last: bool, x: Operand, y: Operand, extents: tuple[int, int, int]) -> None:
    """Appends ArgReduce."""
    if x.spec.dtype != "float32":
        raise UnsupportedOp(f"no kernel for CUDA finds the {kind} of {x.spec.dtype}")
    outer, n, inner = extents
    by_rows(steps, ARG[kind, last], outer * inner, n, x=x.ref, y=y.ref, inner=inner)
