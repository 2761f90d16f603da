"""The table of device kernels of windows. Convolutions of one group are products (`gemm/device.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.conv.device_float import emit_float_windows
from qrt.ops.conv.window import Window
from qrt.ops.gemm.device import CHUNK, MULTIPROCESSORS, emit_product, rows_of_chunks
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.gemm.product import Weights, int8_parts, wrap32
from qrt.ops.op import Array, DeviceSteps, Operand, Ref

__all__ = ["DEPTHWISE", "EPILOGUES", "GROUPED", "KERNELS", "RECORD", "ROWS", "emit_convolution"]

RECORD = record_dtype(
    ("x", "i8"),  # uint8 images; pixels of depthwise windows start at multiples of 4, or of 16 where a thread makes 16 channels
    ("offsets", "i8"),  # int32 [pixels][taps]: bytes from the image's start, −1 for padding
    ("w", "i8"),  # depthwise: int8 [taps / 4][columns][4 taps], of several groups: [taps][k / 4, rounded up][columns][4 of k]
    ("bias", "i8"),  # [columns]: int32, what accumulators start from; of "f32d" float32
    ("scale", "i8"),  # float32 [columns]
    ("y", "i8"),
    ("r", "i8"),  # residual, like y; of "u8t" the table
    ("a_scale", "i8"),  # these of "f32d"
    ("a_zero_point", "i8"),
    ("column_sums", "i8"),
    ("x_batch", "i8"),  # bytes from one image to the next
    ("threads", "i4"),  # that have something to do
    ("pixels", "i4"),  # of one image of y
    ("columns", "i4"),  # of constants: the channels of each group rounded up to a multiple of 4, or of what a thread makes
    ("taps", "i4"),  # depthwise: a multiple of 4
    ("k", "i4"),  # channels of x and y in a group
    ("n", "i4"),
    ("channels", "i4"),  # of y
    ("pad", "i4"),  # four codes that padding reads
    ("y_zero_point", "i4"),  # the rest as in `gemm/table.RECORD`
    *((name, "f4") for name in ("lo", "hi", "c_lo", "c_hi", "c_ratio", "r_ratio", "c_zero_point", "sum_offset")),
)

EPILOGUES = ("u8", "u8t", "u8add", "u8radd", "s32", "f32d")

# By the epilogue, and by how many channels a thread makes.
DEPTHWISE = {
    (epilogue, channels): DeviceKernel(
        f"depthwise_u8s8_{epilogue}_{channels}__cuda", RECORD, "qrt.ops.conv.cuda:depthwise", (epilogue, channels // 4)
    )
    for epilogue, channels in (("u8", 16), ("u8t", 16), *((epilogue, 4) for epilogue in EPILOGUES))
}
GROUPED = {
    epilogue: DeviceKernel(f"grouped_u8s8_{epilogue}__cuda", RECORD, "qrt.ops.conv.cuda:grouped", (epilogue,)) for epilogue in EPILOGUES
}
# x, `offsets` and `x_batch` as above; `code`: where the code is that padding reads; y: rows of `row` bytes, for each window one.
ROWS = DeviceKernel(
    "rows_of_windows_u8__cuda",
    record_dtype(
        *((name, "i8") for name in ("x", "offsets", "y", "code", "x_batch")),
        *((name, "i4") for name in ("threads", "pixels", "taps", "k", "row")),
    ),
    "qrt.ops.conv.cuda:rows_of_windows",
)
KERNELS: tuple[DeviceKernel, ...] = (*DEPTHWISE.values(), *GROUPED.values(), ROWS)


def choose_channels(epilogue: str, channels: int, size: int) -> int:
    """How many channels of a pixel a thread of a depthwise convolution makes, for `size` results: 16 where that leaves enough threads for
    an H200. Reasoned, not measured."""
    return 16 if epilogue in ("u8", "u8t") and channels % 16 == 0 and size >= 16 * 512 * MULTIPROCESSORS else 4


def emit_convolution(
    steps: DeviceSteps, window: Window, weights: Weights, epilogue: Epilogue, x_zero_point: int, inputs: Sequence[Operand], y: Operand
) -> None:
    """Appends a convolution of x [N, *space, groups · k]; `inputs`: x, then what the epilogue reads. Raises UnsupportedOp if it cannot."""
    groups, _, k, _ = weights.w.shape
    arguments = (steps, window, weights, epilogue, x_zero_point, inputs, y)
    if groups != 1:
        emit_windows(*arguments)
        return
    if epilogue.integer and k < CHUNK and not window.is_point:
        emit_rows(*arguments)
        return
    space = inputs[0].spec.shape[1:-1]

    def places(pixel: int) -> tuple[Array, int]:
        return window.offsets(space, pixel), prod(space)

    emit_product(steps, weights, epilogue, x_zero_point, inputs, y, None if window.is_point else places)


def emit_rows(
    steps: DeviceSteps, window: Window, weights: Weights, epilogue: Epilogue, x_zero_point: int, inputs: Sequence[Operand], y: Operand
) -> None:
    """Appends a convolution of one group as a product with rows that hold the codes of whole windows: for few channels, which would leave
    most of the bytes unused that the tensor cores take for each tap. Raises UnsupportedOp for rows that are too many to count in 32 bits.
    """
    _, taps, k, _ = weights.w.shape
    batch, *space, _ = inputs[0].spec.shape
    pixels, row = prod(y.spec.shape[1:-1]), _up(taps * k, CHUNK)
    places, threads = batch * pixels, batch * pixels * row // CHUNK
    if threads >= 2**31:
        raise UnsupportedOp(f"a convolution at {places} places: its rows are counted in 32 bits")
    window.check_offsets(space, k)
    rows = steps.scratch(places * row)
    known = np.full(1, x_zero_point, np.uint8)
    code = inputs[2].ref if epilogue.name == "f32d" else steps.packed(weights.w, ("code", x_zero_point), lambda: known)
    offsets = steps.packed(weights.w, ("cuda rows", tuple(space), window), lambda: window.offsets(space, k))
    sizes = {"x_batch": prod(space) * k, "threads": threads, "pixels": pixels, "taps": taps, "k": k, "row": row}
    steps.launch(ROWS, (-(-threads // ROWS.block), 1), x=inputs[0].ref, offsets=offsets, y=rows, code=code, **sizes)
    emit_product(steps, weights, epilogue, x_zero_point, inputs, y, rows=(rows, row))


def emit_windows(
    steps: DeviceSteps, window: Window, weights: Weights, epilogue: Epilogue, x_zero_point: int, inputs: Sequence[Operand], y: Operand
) -> None:
    """Appends y = epilogue(Σ over taps and k of x · w) for codes x [N, *space, groups · k]; `inputs`: x, then what the epilogue reads.

    Raises UnsupportedOp for results that are too many to count in 32 bits.
    """
    if not epilogue.integer:
        emit_float_windows(steps, window, weights, epilogue, inputs, y)
        return
    if epilogue.name not in EPILOGUES:
        raise UnsupportedOp(f"no convolution of several groups for CUDA ends in {epilogue.name!r}")
    if y.spec.size == 0:
        return
    groups, _, k, n = weights.w.shape
    batch, *space, channels = inputs[0].spec.shape
    pixels = prod(y.spec.shape[1:-1])
    depthwise = k == n == 1
    piece = choose_channels(epilogue.name, channels, y.spec.size) if depthwise else 4
    columns = _up(groups, piece) if depthwise else groups * _up(n, 4)
    threads = batch * pixels * columns // piece
    if threads >= 2**31:
        raise UnsupportedOp(f"a result of {y.spec.size} elements: convolutions of several groups count in 32 bits")
    x, row = rows_of_chunks(steps, inputs[0], channels) if depthwise and channels % 4 else (inputs[0].ref, channels)
    window.check_offsets(space, row)

    def lay(source: Array, how: str, array: Array) -> Ref:
        whole = np.resize(array, groups * n)
        return steps.packed(source, ("cuda windows", how, columns), lambda: _laid(whole, 1 if depthwise else groups, columns))

    fields: dict[str, int | float | Ref] = dict.fromkeys(RECORD.names or (), 0)
    fields |= _tables(steps, window, weights, space, row, columns)
    fields |= {"x": x, "y": y.ref, "x_batch": prod(space) * row, "threads": threads, "pixels": pixels, "columns": columns}
    fields |= {"k": k, "n": n, "channels": groups * n, "pad": int(wrap32(np.array(x_zero_point * 0x01010101)))}
    fields |= epilogue.fields(inputs[1:], lay)
    if (table := epilogue.table) is not None:
        fields["r"] = steps.packed(table, "table", table.copy)
    zeros = weights.zero_point.tobytes() if weights.zero_point is not None else b""
    bias, source = (np.zeros(1, np.int64), weights.w) if weights.bias is None else (weights.bias, weights.bias)
    if epilogue.name == "f32d":
        fields |= {"bias": lay(source, "bias", bias.astype(np.float32))}
        fields |= {"column_sums": lay(weights.w, f"sums{zeros!r}", wrap32(weights.sums()))}
    else:
        start = wrap32(bias.astype(np.int64) - x_zero_point * weights.sums())
        fields["bias"] = lay(source, f"start{x_zero_point}{zeros!r}{id(weights.w)}", start)
    kernel = DEPTHWISE[epilogue.name, piece] if depthwise else GROUPED[epilogue.name]
    steps.launch(kernel, (-(-threads // kernel.block), 1), **fields)


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _laid(values: Array, groups: int, columns: int) -> Array:
    """[groups · n] → [columns]: zeros after those of each group."""
    laid = np.zeros((groups, columns // groups), values.dtype)
    laid[:, : values.size // groups] = values.reshape(groups, -1)
    return laid


def _tables(steps: DeviceSteps, window: Window, weights: Weights, space: Sequence[int], row: int, columns: int) -> dict[str, int | Ref]:
    """The offsets of each pixel's taps, and their weights. Asymmetric weights are several symmetric ones, as further taps."""
    groups, _, k, n = weights.w.shape
    depthwise = k == n == 1
    parts = int8_parts(weights.centred()) if weights.zero_point is not None else [weights.w]
    taps = window.taps * len(parts)
    rounded = _up(taps, 4) if depthwise else taps

    def offsets() -> Array:
        table = np.repeat(window.offsets(space, row), len(parts), 1)
        return np.pad(table, ((0, 0), (0, rounded - taps)), constant_values=-1)

    def pack() -> Array:
        w = np.stack(parts, 2).reshape(groups, taps, k, n)
        if depthwise:
            packed = np.zeros((columns, rounded), np.int8)
            packed[:groups, :taps] = w[:, :, 0, 0]
            return np.ascontiguousarray(packed.reshape(columns, -1, 4).transpose(1, 0, 2))
        full = np.zeros((groups, taps, _up(k, 4), columns // groups), np.int8)
        full[:, :, :k, :n] = w
        quads = full.reshape(groups, taps, -1, 4, columns // groups)
        return np.ascontiguousarray(quads.transpose(1, 2, 0, 4, 3))

    zeros = weights.zero_point.tobytes() if weights.zero_point is not None else b""
    how = ("cuda windows", "offsets", rounded, len(parts), tuple(space), row, window)
    found = {"offsets": steps.packed(weights.w, how, offsets), "w": steps.packed(weights.w, ("cuda windows", columns, zeros), pack)}
    return found | {"taps": rounded}
