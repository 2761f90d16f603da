"""The table of device kernels that multiply floats: of constant matrices, convolutions, and batches of matrices made in the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.gemm.product import Weights
from qrt.ops.op import Array, DeviceSteps, Operand, Ref

__all__ = ["KERNELS", "TILES", "choose_tile", "emit_batches", "emit_float_product", "kernel_for"]

RECORD = record_dtype(
    ("x", "i8"),  # A: rows of k floats
    ("offsets", "i8"),  # int32 [pixels][taps]: bytes from an image's first to each tap of a row, −1 for padding
    ("w", "i8"),  # B
    ("bias", "i8"),  # [n rounded up to the tile]: what sums start from
    ("y", "i8"),
    ("r", "i8"),  # residual, like y
    ("x_row", "i8"),  # all distances in bytes
    ("x_image", "i8"),
    ("w_k", "i8"),
    ("w_n", "i8"),
    ("y_row", "i8"),
    *((f"{name}_{axis}", "i8") for name in "xwy" for axis in ("batch", "group")),
    ("groups", "i4"),  # matrices of a batch
    ("m", "i4"),
    ("n", "i4"),
    ("k", "i4"),
    ("pixels", "i4"),  # rows of one image
    ("taps", "i4"),
    ("wide", "i4"),  # rows of y start at multiples of 16 bytes, and n is a multiple of 4
    ("lo", "f4"),
    ("hi", "f4"),
)
Tile = tuple[int, int]  # rows and columns that a block of threads makes
TILES: tuple[Tile, ...] = ((128, 128), (64, 64))
MULTIPROCESSORS = 132
THREADS, BK = 256, 16

Fields = dict[str, int | float | Ref]


def kernel_for(tile: Tile, indirect: bool, residual: bool) -> DeviceKernel:
    """The table's row for a tile, a way of finding rows and an epilogue."""
    name = f"gemm_f32{'add' if residual else ''}_{tile[0]}x{tile[1]}_{'indirect' if indirect else 'direct'}__cuda"
    shared = 2 * 4 * (tile[0] * (BK + 4) + BK * (tile[1] + 4))
    return DeviceKernel(name, RECORD, "qrt.ops.gemm.cuda_float:gemm", (int(indirect), int(residual), *tile), THREADS, shared)


KERNELS: tuple[DeviceKernel, ...] = tuple(
    kernel_for(tile, indirect, residual) for tile in TILES for indirect in (False, True) for residual in (False, True)
)

_NO_BIAS = np.zeros(1, np.float32)


def choose_tile(m: int, n: int, matrices: int) -> Tile:
    """The largest tile of which there is one for each of an H200's multiprocessors, else the smallest. Reasoned, not measured."""
    return next((tile for tile in TILES if -(-m // tile[0]) * -(-n // tile[1]) * matrices >= MULTIPROCESSORS), TILES[-1])


def _launch(
    steps: DeviceSteps, epilogue: Epilogue, bias: Array | None, sizes: tuple[int, int, int, int], extra: Sequence[Operand], more: Fields
) -> None:
    """Appends the product. `sizes`: matrices, m, n, k with all taps; `more`: addresses and distances."""
    matrices, m, n, k_all = sizes
    if max(m, n, k_all) >= 2**30:
        raise UnsupportedOp(f"no kernel for CUDA multiplies floats of {m} x {k_all} x {n}")
    tile = choose_tile(m, n, matrices)
    source = _NO_BIAS if bias is None else bias
    columns = -(-n // tile[1]) * tile[1]

    def padded() -> Array:
        return np.pad(np.resize(source, n), (0, columns - n))

    fields: Fields = dict.fromkeys(RECORD.names or (), 0)
    fields |= {"groups": 1, "m": m, "n": n, "pixels": 1, "taps": 1, "bias": steps.packed(source, ("cuda", "columns", n, columns), padded)}
    fields |= more | epilogue.fields(extra, lambda source, how, array: steps.packed(source, how, lambda: array))
    distances = [fields[name] for name in ("y_row", "y_batch", "y_group")]
    fields["wide"] = int(n % 4 == 0 and all(isinstance(d, int) and d % 16 == 0 for d in distances))
    kernel = kernel_for(tile, fields["offsets"] != 0, epilogue.name == "f32add")
    steps.launch(kernel, (matrices * -(-m // tile[0]), -(-n // tile[1])), **fields)


def emit_float_product(
    steps: DeviceSteps,
    weights: Weights,
    epilogue: Epilogue,
    inputs: Sequence[Operand],
    y: Operand,
    window: Callable[[int], tuple[Array, int]] | None = None,
) -> None:
    """Appends y = epilogue(x · w) for float rows; see `device.emit_product`."""
    groups, taps, k, n = weights.w.shape
    if groups != 1:
        raise UnsupportedOp(f"no product of floats for CUDA has {groups} groups")
    m = y.spec.size // n if n else 0
    if m == 0:
        return
    w = steps.packed(weights.w, ("cuda", "floats"), lambda: np.ascontiguousarray(weights.w))
    fields: Fields = {"x": inputs[0].ref, "x_row": 4 * k, "w": w, "w_k": 4 * n, "w_n": 4, "y": y.ref, "y_row": 4 * n, "k": k, "taps": taps}
    if window is not None:
        offsets, pixels = window(4 * k)
        fields["offsets"] = steps.packed(weights.w, ("cuda", "offsets", offsets.shape, offsets.tobytes()), lambda: offsets)
        fields |= {"pixels": len(offsets), "x_image": 4 * k * pixels}
    _launch(steps, epilogue, weights.bias, (1, m, n, k * taps), inputs[1:], fields)


def emit_batches(
    steps: DeviceSteps,
    epilogue: Epilogue,
    bias: Array | None,
    operands: tuple[Operand, Operand, Operand],
    sizes: tuple[int, int, int],
    rows: tuple[int, int, int, int],
    walks: Sequence[tuple[int, int, int, int]],
) -> None:
    """Appends the products of BatchedMatMul. In elements: `rows`: from one row of a to the next, along k and n in b, from one row of y to
    the next; `walks`: extents of batches and the distances of a, b and y."""
    (batch, *batches), (groups, *in_batch) = [(1, 0, 0, 0)] * (2 - len(walks)) + list(walks)
    (a, b, y), (m, n, k) = operands, sizes
    x_row, w_k, w_n, y_row = (4 * distance for distance in rows)
    fields: Fields = {"x": a.ref, "w": b.ref, "y": y.ref, "x_row": x_row, "w_k": w_k, "w_n": w_n, "y_row": y_row, "k": k, "groups": groups}
    for name, outer, inner in zip("xwy", batches, in_batch, strict=True):
        fields |= {f"{name}_batch": 4 * outer, f"{name}_group": 4 * inner}
    _launch(steps, epilogue, bias, (batch * groups, m, n, k), (), fields)
