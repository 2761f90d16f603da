"""The table of device kernels that multiply codes which are both made in the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.op import Array, DeviceSteps, Operand, Ref

__all__ = ["KERNELS", "emit_batched_codes"]

TILE = 64
RECORD = record_dtype(
    *((name, "i8") for name in ("x", "w", "bias", "scale", "y", "x_row", "w_k", "w_n", "y_row")),  # distances in bytes
    *((f"{name}_{axis}", "i8") for name in "xwy" for axis in ("batch", "group")),
    ("groups", "i4"),  # matrices of a batch
    ("m", "i4"),
    ("n", "i4"),
    ("k", "i4"),
    ("x_words", "i4"),  # whether rows of a start at multiples of four bytes
    ("w_words", "i4"),  # whether columns of b lie in one piece, and start so
    ("a_zero", "i4"),
    ("b_zero", "i4"),
    ("lo", "f4"),
    ("hi", "f4"),
    ("y_zero_point", "i4"),
)
KERNELS: tuple[DeviceKernel, ...] = tuple(
    DeviceKernel(f"batched_u8u8_{name}__cuda", RECORD, "qrt.ops.gemm.cuda_batched:batched", (name,), 256, 4 * (64 * 20 + 16 * 68))
    for name in ("u8", "s32")
)
_NO_BIAS = np.zeros(1, np.int32)


def emit_batched_codes(
    steps: DeviceSteps,
    epilogue: Epilogue,
    bias: Array | None,
    zero_points: tuple[int, int],
    operands: tuple[Operand, Operand, Operand],
    sizes: tuple[int, int, int],
    rows: tuple[int, int, int, int],
    walks: Sequence[tuple[int, int, int, int]],
) -> None:
    """Appends the products of BatchedMatMul, as `device_float.emit_batches` does."""
    kernel = next((kernel for kernel in KERNELS if kernel.params == (epilogue.name,)), None)
    if kernel is None:
        raise UnsupportedOp(f"no batch of products of codes for CUDA ends in {epilogue.name!r}")
    (batch, *batches), (groups, *in_batch) = [(1, 0, 0, 0)] * (2 - len(walks)) + list(walks)
    (a, b, y), (m, n, k), (x_row, w_k, w_n, y_row) = operands, sizes, rows
    source, size = _NO_BIAS if bias is None else bias, y.spec.dtype.itemsize

    def columns(source: Array, how: str, array: Array) -> Ref:
        return steps.packed(source, ("cuda", how, n), lambda: np.resize(array, n))

    fields: dict[str, int | float | Ref] = dict.fromkeys(RECORD.names or (), 0)
    fields |= {"x": a.ref, "w": b.ref, "y": y.ref, "m": m, "n": n, "k": k, "groups": groups}
    fields |= {"x_row": x_row, "w_k": w_k, "w_n": w_n, "y_row": size * y_row, "a_zero": zero_points[0], "b_zero": zero_points[1]}
    for name, outer, inner, scale in zip("xwy", batches, in_batch, (1, 1, size), strict=True):
        fields |= {f"{name}_batch": scale * outer, f"{name}_group": scale * inner}
    fields["x_words"] = int(all(d % 4 == 0 for d in (x_row, batches[0], in_batch[0])))
    fields["w_words"] = int(w_k == 1 and all(d % 4 == 0 for d in (w_n, batches[1], in_batch[1])))
    fields |= {"bias": columns(source, "bias", source)} | epilogue.fields((), columns)
    steps.launch(kernel, (batch * groups * -(-m // TILE), -(-n // TILE)), **fields)
