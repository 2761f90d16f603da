"""The matrix product's table for CUDA: tiles, the record, and how B is packed. Kernels: `cuda.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.record import record
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.gemm.device_float import emit_float_product
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.gemm.product import Weights, int8_parts, wrap32
from qrt.ops.movement.device import emit_strided
from qrt.ops.op import Array, Boxes, DeviceSteps, Operand, Ref, Spec
from qrt.ops.quantization.device import emit_lut

__all__ = [
    "EPILOGUES",
    "KERNELS",
    "PAD_ROWS",
    "PRODUCTS",
    "RECORD",
    "TILES",
    "Tile",
    "choose_tile",
    "emit_product",
    "few_kernel",
    "kernel_for",
    "rows_of_chunks",
]

RECORD = record_dtype(
    ("x", "i8"),  # A: uint8 [m][x_row], a multiple of 16
    ("x_batch", "i8"),  # these as in `table.RECORD`: rows by a table of offsets
    ("offsets", "i8"),
    ("zeros", "i8"),
    ("w", "i8"),  # packed B
    ("bias", "i8"),  # int32 [n rounded up to the tile]: what accumulators start from
    ("scale", "i8"),  # float32, likewise
    ("y", "i8"),  # [m][n]
    ("r", "i8"),  # residual, like y; of "u8t" the table
    ("m", "i4"),
    ("n", "i4"),
    ("k", "i4"),  # bytes of a row of A
    ("x_row", "i4"),  # bytes from one row of A to the next, a multiple of 16
    ("pixels", "i4"),  # rows of one image
    ("taps", "i4"),  # matrices that A, or what the table finds for each, is multiplied by, to be summed
    ("lo", "f4"),  # the rest as in `table.RECORD`
    ("hi", "f4"),
    ("y_zero_point", "i4"),
    ("c_lo", "f4"),
    ("c_hi", "f4"),
    ("c_ratio", "f4"),
    ("r_ratio", "f4"),
    ("c_zero_point", "f4"),
    ("sum_offset", "f4"),
    ("addend", "i8"),  # float32 [n rounded up to the tile], added to what scales of the run make of sums
    ("column_sums", "i8"),  # int32, likewise
    ("a_scale", "i8"),
    ("a_zero_point", "i8"),
)

CHUNK = 16  # bytes that are copied at once: rows start at multiples of it
MULTIPROCESSORS = 132

# Those of `table.EPILOGUES` that the tensor cores' sums of codes go out by.
EPILOGUES = ("u8", "u8t", "u8add", "u8radd", "s32", "f32d")


@record
class Tile:
    """What a block of threads makes, `m` × `n`, by `warps_m` × `warps_n` warps, in steps of `k` bytes through `stages` buffers."""

    m: int
    n: int
    k: int
    warps_m: int
    warps_n: int
    stages: int

    @property
    def block(self) -> int:
        """Threads."""
        return 32 * self.warps_m * self.warps_n

    @property
    def shared(self) -> int:
        """Bytes of shared memory: the stages of A and B, or the codes on their way out."""
        return max(self.stages * (self.m + self.n) * self.k, self.m * (self.n + 16))

    @property
    def products(self) -> int:
        """mma instructions that a warp issues in a step of `k`."""
        return self.m // self.warps_m // 16 * (self.n // self.warps_n // 8) * (self.k // 32)


# What makes the columns of a few rows: a warp each, in chunks (`cuda_gemv.py`).
FEW = Tile(8, 8, CHUNK, 1, 8, 1)
FEW_ROWS = FEW.m
MAX_BLOCKS = 65535  # along a grid's second axis

TILES = (Tile(128, 256, 64, 2, 4, 4), Tile(128, 128, 64, 2, 2, 4), Tile(128, 64, 64, 4, 1, 4), Tile(64, 64, 128, 2, 2, 3))

# By the copy engine and the warpgroups of compute capability 9.0 (`cuda_wgmma.py`): tensor maps instead of places and strides.
_NOT_HOPPERS = ("x", "x_batch", "offsets", "zeros", "w", "x_row", "pixels")
HOPPER_RECORD = record_dtype(
    ("a_map", "i8"),  # of A: boxes of m rows
    ("b_map", "i8"),  # of packed B: boxes of n rows
    *((name, RECORD[name].str[1:]) for name in RECORD.names or () if name not in _NOT_HOPPERS),
)
HOPPER = (9, 0)


@record
class HopperTile:
    """What a block makes at a time, `m` × `n`: a warpgroup for each 64 rows, and a warp that copies, in steps of `k` bytes through
    `stages` buffers."""

    m: int
    n: int
    k: int
    stages: int

    @property
    def block(self) -> int:
        """Threads."""
        return 2 * self.m + 32

    @property
    def shared(self) -> int:
        """Bytes of shared memory: the stages of A and B, the codes on their way out, and two barriers for each stage."""
        return self.stages * (self.m + self.n) * self.k + self.m * (self.n + 16) + 16 * self.stages


HOPPER_TILES = (HopperTile(128, 256, 128, 4), HopperTile(128, 128, 128, 6), HopperTile(128, 64, 128, 8))


def kernel_for(tile: Tile, addressing: str, epilogue: str) -> DeviceKernel:
    """The table's row for a tile, a way of finding rows and an epilogue."""
    params = (addressing, epilogue, tile.m, tile.n, tile.k, tile.warps_m, tile.warps_n, tile.stages)
    name = f"gemm_u8s8_{epilogue}_{tile.m}x{tile.n}x{tile.k}_{addressing}__cuda"
    return DeviceKernel(name, RECORD, "qrt.ops.gemm.cuda:gemm", params, tile.block, tile.shared)


def few_kernel(rows: int, epilogue: str) -> DeviceKernel:
    """The same for at most `rows` rows, a power of two."""
    return DeviceKernel(f"gemv_u8s8_{epilogue}_{rows}__cuda", RECORD, "qrt.ops.gemm.cuda_gemv:gemv", (epilogue, rows), FEW.block)


def hopper_kernel(tile: HopperTile, epilogue: str) -> DeviceKernel:
    """The same for compute capability 9.0, where rows are found by a stride."""
    params = (epilogue, tile.m, tile.n, tile.k, tile.stages)
    name = f"gemm_u8s8_{epilogue}_{tile.m}x{tile.n}x{tile.k}_direct__cuda_wgmma"
    return DeviceKernel(name, HOPPER_RECORD, "qrt.ops.gemm.cuda_wgmma:gemm", params, tile.block, tile.shared, specific=True)


# What makes rows a multiple of 16 bytes long.
PAD_ROWS = DeviceKernel(
    "pad_rows_u8__cuda",
    record_dtype(("x", "i8"), ("y", "i8"), ("m", "i4"), ("k", "i4"), ("y_row", "i4")),
    "qrt.ops.gemm.cuda:pad_rows",
)

PRODUCTS: tuple[DeviceKernel, ...] = tuple(
    kernel_for(tile, addressing, epilogue) for tile in TILES for addressing in ("direct", "indirect") for epilogue in EPILOGUES
)
KERNELS: tuple[DeviceKernel, ...] = (*PRODUCTS, PAD_ROWS)


def choose_tile(m: int, n: int) -> Tile:
    """The largest tile that n fills to more than a half and of which there is one for each of an H200's multiprocessors, else the
    smallest. Reasoned, not measured."""
    return next((tile for tile in TILES if 2 * n > tile.n and blocks(tile, m, n) >= MULTIPROCESSORS), TILES[-1])


def choose_hopper_tile(m: int, n: int) -> HopperTile | None:
    """The same for capability 9.0; None where all are too large."""
    return next((tile for tile in HOPPER_TILES if 2 * n > tile.n and blocks(tile, m, n) >= MULTIPROCESSORS), None)


def blocks(tile: Tile | HopperTile, m: int, n: int) -> int:
    """How many of the tile cover m × n."""
    return -(-m // tile.m) * -(-n // tile.n)


def emit_product(
    steps: DeviceSteps,
    weights: Weights,
    epilogue: Epilogue,
    x_zero_point: int,
    inputs: Sequence[Operand],
    y: Operand,
    window: Callable[[int], tuple[Array, int]] | None = None,
    rows: tuple[Ref, int] | None = None,
) -> None:
    """Appends y = epilogue(x · w) for rows x [..., k]; `inputs`: x, then what the epilogue reads.

    `window`: what gives for the bytes of a pixel the offsets of each row's taps in an image, and that image's pixels. `rows`, instead:
    where rows are that hold all taps one after the other, and a row's bytes, a multiple of 16.
    """
    if not epilogue.integer:
        emit_float_product(steps, weights, epilogue, inputs, y, window)
        return
    groups, taps, k, n = weights.w.shape
    if rows is not None:
        taps, k = 1, taps * k
    if epilogue.name not in EPILOGUES or groups != 1:
        raise UnsupportedOp(f"no product for CUDA of {groups} groups ends in {epilogue.name!r}")
    m = y.spec.size // n if n else 0
    if m == 0:
        return
    few = window is None and m <= FEW_ROWS and n <= MAX_BLOCKS * FEW.n
    table = None if epilogue.table is None else steps.packed(epilogue.table, "table", epilogue.table.copy)
    if few and table is not None:
        emit_product(steps, weights, epilogue.without_table(), x_zero_point, inputs, y, window, rows)
        emit_lut(steps, y, table, y)
        return
    hopper = choose_hopper_tile(m, n) if steps.cc == HOPPER and window is None and not few else None
    if hopper is not None and epilogue.name == "f32d" and hopper.n > 128:
        hopper = HOPPER_TILES[1]  # sums of 256 columns leave no registers for what makes them floats
    plain = FEW if few else choose_tile(m, n)
    tile = hopper or plain
    parts = int8_parts(weights.centred()[0]) if weights.zero_point is not None else [weights.w[0]]

    def lay(source: Array, how: str, array: Array) -> Ref:
        return steps.packed(source, ("cuda", how, n, tile.n), lambda: padded(tile, np.resize(array, n)))

    def packed_weights() -> Array:
        return pack(tile, np.stack([part.reshape(taps, k, n) for part in parts], 1).reshape(-1, k, n))

    x, row = rows or rows_of_chunks(steps, inputs[0], k)
    w = steps.packed(weights.w, ("cuda", "b", tile.n, tile.k, k, _zero_points(weights)), packed_weights)
    fields: dict[str, int | float | Ref | Boxes] = dict.fromkeys((HOPPER_RECORD if hopper else RECORD).names or (), 0)
    fields |= epilogue.fields(inputs[1:], lay)
    fields |= _starts(weights, epilogue, x_zero_point, lay)
    fields |= {"y": y.ref, "m": m, "n": n, "k": k, "taps": taps * len(parts)} | ({} if table is None else {"r": table})
    if hopper is not None:
        w_row = taps * len(parts) * -(-k // tile.k) * tile.k
        fields |= {"a_map": Boxes(x, m, k, row, tile.m), "b_map": Boxes(w, -(-n // tile.n) * tile.n, w_row, w_row, tile.n)}
        steps.launch(hopper_kernel(hopper, epilogue.name), (min(blocks(tile, m, n), MULTIPROCESSORS), 1), **fields)
        return
    fields |= {"x": x, "w": w, "x_row": row, "pixels": 1}
    if window is not None:
        fields |= _places(steps, weights, window(row), row, len(parts), x_zero_point, inputs[2] if epilogue.name == "f32d" else None)
    addressing = "direct" if window is None else "indirect"
    kernel = few_kernel(1 << (m - 1).bit_length(), epilogue.name) if few else kernel_for(plain, addressing, epilogue.name)
    steps.launch(kernel, (-(-m // plain.m), -(-n // plain.n)), **fields)


def _zero_points(weights: Weights) -> bytes:
    return b"" if weights.zero_point is None else weights.zero_point.tobytes()


def _starts(weights: Weights, epilogue: Epilogue, x_zero_point: int, lay: Callable[[Array, str, Array], Ref]) -> dict[str, Ref]:
    """What sums start from; of "f32d" zeros, and what its floats are made of."""
    n, zeros = weights.w.shape[-1], _zero_points(weights)
    dynamic = epilogue.name == "f32d"
    bias = np.zeros(n, np.float32 if dynamic else np.int64) if weights.bias is None else weights.bias
    source = weights.w if weights.bias is None else weights.bias
    start = np.zeros(n, np.int32) if dynamic else wrap32(bias.astype(np.int64) - x_zero_point * weights.sums())
    fields = {"bias": lay(source, f"start{x_zero_point}{zeros!r}{id(weights.w)}", start)}
    if dynamic:
        fields |= {"addend": lay(source, "addend", bias), "column_sums": lay(weights.w, f"sums{zeros!r}", wrap32(weights.sums()))}
    return fields


def _places(
    steps: DeviceSteps, weights: Weights, table: tuple[Array, int], row: int, parts: int, x_zero_point: int, code: Operand | None
) -> dict[str, int | Ref]:
    """Where rows are by a table of offsets, and an image's pixels; each tap is read `parts` times. Padding reads `x_zero_point`, or the
    run's `code`."""
    offsets, pixels = table
    how = ("cuda", "offsets", parts, offsets.shape, offsets.tobytes())
    found = steps.packed(weights.w, how, lambda: np.repeat(offsets, parts, 1))
    if code is not None:
        zeros = _filled(steps, code, row)
    else:
        zeros = steps.packed(weights.w, ("cuda", "padding", x_zero_point, row), lambda: np.full(row, x_zero_point, np.uint8))
    return {"offsets": found, "zeros": zeros, "pixels": len(offsets), "x_batch": pixels * row}


def _filled(steps: DeviceSteps, code: Operand, nbytes: int) -> Ref:
    """`nbytes` times the code, which is known only in the run."""
    filled = steps.scratch(nbytes)
    emit_strided(steps, code, Operand(Spec((nbytes,), code.spec.dtype), filled, (1,)), [0])
    return filled


def rows_of_chunks(steps: DeviceSteps, x: Operand, k: int) -> tuple[Ref, int]:
    """x with rows of whole chunks, copied where they are not, and a row's bytes."""
    row, rows = -(-k // CHUNK) * CHUNK, x.spec.size // k
    if row == k:
        return x.ref, row
    copy = steps.scratch(rows * row)
    steps.launch(PAD_ROWS, (-(-rows * row // CHUNK // PAD_ROWS.block), 1), x=x.ref, y=copy, m=rows, k=k, y_row=row)
    return copy, row


def padded(tile: Tile | HopperTile, columns: Array) -> Array:
    """[n] → [n rounded up to the tile], zeros at the end."""
    return np.pad(columns, (0, -len(columns) % tile.n))


def pack(tile: Tile | HopperTile, w: Array) -> Array:
    """int8 [taps, k, n] → [n rounded up to the tile][taps][k rounded up to a step]: the kernel need not look where B ends."""
    taps, k, n = w.shape
    packed = np.zeros((-(-n // tile.n) * tile.n, taps, -(-k // tile.k) * tile.k), np.int8)
    packed[:n, :, :k] = w.transpose(2, 0, 1)
    return packed
