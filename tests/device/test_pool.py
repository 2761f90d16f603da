"""Pooling on a device: the ops' references, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES
from kernels.check import program_of
from kernels.products import codes, floats

from qrt.ops.conv import Window
from qrt.ops.op import Array, Op
from qrt.ops.pool import AveragePool, MaxPool, QAveragePool
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

SAME = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
DILATED = Window((2, 3), (1, 2), (2, 1), (0, 2, 1, 0))
UP = Window((2, 2), (2, 2), (1, 1), (0, 0, 1, 1))  # pads that only round the extent up: counted as (0, 0, 0, 0)


def whole(*space: int) -> Window:
    return Window(space, (1,) * len(space), (1,) * len(space), (0,) * 2 * len(space))


def mean_of_codes(window: Window, counted: tuple[int, ...] | None = None, bounds: tuple[int, int] = (0, 255)) -> QAveragePool:
    return QAveragePool(window, counted, 0.02, 13, 0.017, 100, *bounds)


def run(op: Op, feeds: list[Array], on: Any) -> Array:
    return DevicePlan(program_of(op, feeds)[0], on, Packs()).run(feeds)[0]


CASES = {
    "max u8": (MaxPool(SAME), codes(2, 5, 4, 8)),
    "max u8, ragged": (MaxPool(DILATED), codes(1, 5, 4, 7)),
    "max s8": (MaxPool(SAME), codes(1, 3, 3, 4).view(np.int8)),
    "max s8, padding alone": (MaxPool(Window((1, 1), (1, 1), (1, 1), (1, 0, 0, 1))), codes(1, 2, 2, 3).view(np.int8)),
    "max f32": (MaxPool(SAME), floats(2, 4, 4, 3)),
    "mean u8": (mean_of_codes(SAME), codes(2, 4, 5, 4)),
    "mean u8, counted": (mean_of_codes(SAME, SAME.pads, (100, 140)), codes(1, 5, 5, 6)),
    "mean u8, rounded up": (mean_of_codes(UP, (0, 0, 0, 0)), codes(1, 3, 3, 4)),
    "mean u8, whole": (mean_of_codes(whole(3, 4)), codes(2, 3, 4, 9)),
    "mean f32": (AveragePool(DILATED, DILATED.pads), floats(1, 5, 4, 3)),
    "mean f32, one axis": (AveragePool(Window((3,), (2,), (1,), (1, 1))), floats(2, 6, 2)),
    "mean u8, three axes": (mean_of_codes(whole(2, 2, 3)), codes(1, 2, 2, 3, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_pooling(name: str, device: Any) -> None:
    op, x = CASES[name]
    np.testing.assert_array_equal(run(op, [x], device), op.reference([x])[0])


def test_infinities_and_nan(device: Any) -> None:
    x = floats(1, 6, 1, 4)
    x[0, :, 0, :3] = np.array([[np.nan, -np.inf, np.nan, 1, np.inf, np.nan]] * 3).T
    x[0, 0, 0, 1], x[0, 2:4, 0, 3] = np.inf, np.nan
    op = MaxPool(Window((2, 1), (2, 1), (1, 1), (0, 0, 0, 0)))
    np.testing.assert_array_equal(run(op, [x], device), op.reference([x])[0])


LARGE = {
    "max u8": (MaxPool(SAME), (8, 112, 112, 64)),
    "max s8, ragged": (MaxPool(DILATED), (3, 40, 41, 33)),
    "max u8, wide": (MaxPool(Window((13, 13), (1, 1), (1, 1), (6, 6, 6, 6))), (1, 13, 13, 192)),
    "mean u8": (mean_of_codes(SAME, SAME.pads), (2, 40, 37, 30)),
    "mean u8, whole": (mean_of_codes(whole(7, 7)), (64, 7, 7, 2048)),
    "mean f32, whole": (AveragePool(whole(7, 7)), (64, 7, 7, 100)),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", LARGE)
def test_large_pooling(name: str, gpu: Any) -> None:
    op, shape = LARGE[name]
    x = floats(*shape) if "f32" in name else codes(*shape).view(np.int8 if "s8" in name else np.uint8)
    np.testing.assert_array_equal(run(op, [x], gpu), op.reference([x])[0])


BUGS = {
    "the zero point of padding": ("mean u8", "valid = int32(valid + int32(1))", "valid = taps"),
    "counts of another pixel": ("mean u8", "counts + int64(4) * place)\n                factor", "counts)\n                factor"),
    "signs": ("max s8", "int32(load_i32(source + int64(offset)) ^ flip)", "load_i32(source + int64(offset))"),
    "the second image": ("max u8", "source = x + int64(image) * x_batch + int64(channel)", "source = x + int64(channel)"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    name, old, new = BUGS[bug]
    op, x = CASES[name]
    try:
        found = run(op, [x], EmulatedDevice(SCHEDULES[0], (old, new)))
    except IndexError:
        return
    assert not np.array_equal(found, op.reference([x])[0])
