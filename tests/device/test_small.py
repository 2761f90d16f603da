"""The device kernels that are no products, by their source in the emulator, against the ops' references, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.emulated import source_of
from device.emulator import SCHEDULES, Memory, launch, module
from kernels.check import program_of

from qrt.core.dtypes import QDType, qint8, quint8
from qrt.core.qparams import QParams
from qrt.jit.cuda import DeviceKernel
from qrt.ops.gemm.device import PAD_ROWS
from qrt.ops.quantization import Dequantize, Lut, Quantize
from qrt.ops.quantization.device import DEQUANTIZE, LUT, PER_THREAD, QUANTIZE
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

RNG = np.random.default_rng(0)
THREADS = 64  # of a block: few, so that small arrays take several


def run(kernel: DeviceKernel, work: int, mutation: tuple[str, str] | None = None, **fields: Any) -> None:
    """`kernel` by its source, by at least `work` threads; arrays among its fields become their addresses."""
    source, function = source_of(kernel)
    memory = Memory()
    assert list(fields) == list(kernel.record.names or ())
    args = [memory.place(value) if isinstance(value, np.ndarray) else value for value in fields.values()]
    launch(module(source, mutation)[function](*kernel.params), (-(-work // THREADS), 1), THREADS, 0, memory, args, SCHEDULES[0])


def quantization_of(dtype: QDType, shape: tuple[int, ...], axis: int | None) -> tuple[QParams, int, int]:
    """Random parameters; channels, and elements between them."""
    if axis is None:
        return QParams(np.float32(0.037), np.int32(3), dtype, None), 1, 1
    n = shape[axis]
    zero = RNG.integers(dtype.qmin, dtype.qmax + 1, n).astype(np.int32)
    return QParams(RNG.uniform(0.01, 0.1, n).astype(np.float32), zero, dtype, axis), n, int(np.prod(shape[axis + 1 :]))


CASES = pytest.mark.parametrize(
    ("shape", "axis"), [((1,), None), ((5, 67), None), ((64, 32), None), ((7, 9, 11), 1), ((33, 16), 1), ((3, 50), 0)]
)
KINDS = pytest.mark.parametrize("dtype", [quint8, qint8], ids=lambda d: d.storage.name)


@CASES
@KINDS
def test_quantize(shape: tuple[int, ...], axis: int | None, dtype: QDType) -> None:
    qparams, channels, inner = quantization_of(dtype, shape, axis)
    x = RNG.normal(size=shape).astype(np.float32) * 3
    flat = x.reshape(-1)
    special = np.array([np.nan, np.inf, -np.inf, 0.0185, -0.0, 1e-40, 3e38], np.float32)
    flat[: len(special)] = special[: flat.size]
    op, y = Quantize(qparams), np.full(shape, 77, dtype.storage)
    zero = np.atleast_1d(qparams.zero_point)
    low, high = ((bound - zero).astype(np.float32) for bound in op.bounds)
    columns = {"scale": np.atleast_1d(qparams.scale), "low": low, "high": high, "zero": zero}
    run(QUANTIZE[int(axis is not None)], -(-x.size // PER_THREAD), x=x, y=y, **columns, n=x.size, channels=channels, inner=inner)
    np.testing.assert_array_equal(y, op.reference([x])[0])


@CASES
@KINDS
def test_dequantize(shape: tuple[int, ...], axis: int | None, dtype: QDType) -> None:
    qparams, channels, inner = quantization_of(dtype, shape, axis)
    x = RNG.integers(dtype.qmin, dtype.qmax + 1, shape).astype(dtype.storage)
    y = np.zeros(shape, np.float32)
    kernel = DEQUANTIZE[dtype.storage.name, int(axis is not None)]
    columns = {"scale": np.atleast_1d(qparams.scale), "zero": np.atleast_1d(qparams.zero_point)}
    run(kernel, -(-x.size // PER_THREAD), x=x, y=y, **columns, n=x.size, channels=channels, inner=inner)
    np.testing.assert_array_equal(y, Dequantize(qparams).reference([x])[0])


@CASES
@KINDS
def test_on_a_device(device: Any, shape: tuple[int, ...], axis: int | None, dtype: QDType) -> None:
    qparams, *_ = quantization_of(dtype, shape, axis)
    codes = RNG.integers(dtype.qmin, dtype.qmax + 1, shape).astype(dtype.storage)
    for op, x in ((Quantize(qparams), RNG.normal(size=shape).astype(np.float32) * 3), (Dequantize(qparams), codes)):
        plan = DevicePlan(program_of(op, [x])[0], device, Packs())
        np.testing.assert_array_equal(plan.run([x])[0], op.reference([x])[0])
        plan.close()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 3000])
def test_lut(n: int) -> None:
    x, table, y = RNG.integers(0, 256, n).astype(np.uint8), RNG.permutation(256).astype(np.uint8), np.zeros(n, np.uint8)
    run(LUT, -(-n // PER_THREAD), x=x, table=table, y=y, n=n)
    np.testing.assert_array_equal(y, Lut().reference([x, table])[0])


@pytest.mark.parametrize(("m", "k"), [(1, 1), (9, 16), (13, 27), (70, 147)])
def test_pad_rows(m: int, k: int) -> None:
    row = -(-k // 16) * 16
    x, y = RNG.integers(0, 256, (m, k)).astype(np.uint8), np.full((m, row), 77, np.uint8)
    run(PAD_ROWS, m * row // 16, x=x, y=y, m=m, k=k, y_row=row)
    np.testing.assert_array_equal(y, np.pad(x, ((0, 0), (0, row - k))))


@pytest.mark.parametrize(
    "mutation",
    [
        ("divide(x, load_f32(scale + at))", "multiply(x, load_f32(scale + at))"),
        ("int32(nearest(steps) + load_i32(zero + at))", "nearest(steps)"),
        (
            "range(one, n, WARP):\n                store_u8(y + at, code(",
            "range(one, n - 1, WARP):\n                store_u8(y + at, code(",
        ),
        ("(one & int32(255)) << int32(8 * e)", "one << int32(8 * e)"),
    ],
)
def test_a_planted_bug_is_found(mutation: tuple[str, str]) -> None:
    n = 600  # the first warp's in whole words, and some that are not
    x, y = (RNG.normal(size=n) * 9).astype(np.float32), np.zeros(n, np.int8)
    qparams = QParams(np.float32(0.25), np.int32(5), qint8, None)
    columns = {"scale": np.float32([0.25]), "low": np.float32([-133]), "high": np.float32([122]), "zero": np.int32([5])}
    try:
        run(QUANTIZE[0], -(-n // PER_THREAD), mutation, x=x, y=y, **columns, n=n, channels=1, inner=1)
    except IndexError:
        return
    assert not np.array_equal(y, Quantize(qparams).reference([x])[0])
