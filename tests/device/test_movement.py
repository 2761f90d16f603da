"""Ops that move elements, on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES
from kernels.check import program_of

from qrt.ops.movement import Concat, Copy, Expand, Pad, Slice, Transpose
from qrt.ops.movement.device import STRIDED
from qrt.ops.op import Array, Op
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

RNG = np.random.default_rng(0)
DTYPES = pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])


def values(dtype: type, *shape: int) -> Array:
    return RNG.integers(0, 256, (*shape, np.dtype(dtype).itemsize)).astype(np.uint8).view(dtype).reshape(shape)


def run(op: Op, feeds: list[Array], on: Any) -> Array:
    return DevicePlan(program_of(op, feeds)[0], on, Packs()).run(feeds)[0]


def check(op: Op, feeds: list[Array], on: Any) -> None:
    assert run(op, feeds, on).tobytes() == op.reference(feeds)[0].tobytes()


@DTYPES
@pytest.mark.parametrize("perm", [(1, 0), (0, 2, 1), (3, 0, 2, 1), (5, 4, 3, 2, 1, 0)])
def test_transpose(perm: tuple[int, ...], dtype: type, device: Any) -> None:
    check(Transpose(perm), [values(dtype, *(3, 4, 5, 2, 3, 2)[: len(perm)])], device)


@DTYPES
def test_slices(dtype: type, device: Any) -> None:
    x = values(dtype, 9, 13)
    check(Slice((1, 2), (4, 5), (2, 2)), [x], device)
    check(Slice((8, 12), (3, 13), (-2, -1)), [x], device)
    check(Slice((0, 1), (0, 3), (1, 1)), [x], device)


@DTYPES
def test_parts(dtype: type, device: Any) -> None:
    check(Concat(1), [values(dtype, 3, n, 4) for n in (2, 5, 1)], device)
    check(Concat(2), [values(dtype, 2, 3, n) for n in (16, 3)], device)
    check(Expand((2, 3, 4)), [values(dtype, 2, 1, 4)], device)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_pad(mode: str, dtype: type, device: Any) -> None:
    feeds = [values(dtype, 3, 4, 5)] + [values(dtype, 1)] * (mode == "constant")
    check(Pad((1, 0, 2), (2, 3, 0), mode), feeds, device)


def test_many_axes(device: Any) -> None:
    x = values(np.uint8, 2, 2, 3, 2, 2, 2, 2)
    check(Transpose((6, 5, 4, 3, 2, 1, 0)), [x], device)


@pytest.mark.parametrize(("channels", "size"), [(32, 16), (24, 8), (20, 4), (6, 2), (5, 1)])
def test_as_wide_as_rows_allow(channels: int, size: int) -> None:
    on, op = EmulatedDevice(), Concat(2)
    check(op, [values(np.uint8, 2, 3, n) for n in (channels, 32)], on)
    assert on.launched == [STRIDED[size].name] * 2


@pytest.mark.gpu
def test_large_copies(gpu: Any) -> None:
    check(Transpose((0, 2, 3, 1)), [values(np.uint8, 8, 3, 224, 224)], gpu)
    check(Transpose((0, 2, 1, 3)), [values(np.float32, 4, 128, 12, 64)], gpu)
    check(Concat(3), [values(np.uint8, 2, 52, 52, n) for n in (64, 24, 3)], gpu)
    check(Copy(), [values(np.int16, 100_003)], gpu)
    check(Pad((0, 3, 2, 0), (0, 3, 2, 16), "constant"), [values(np.uint8, 4, 56, 57, 48), values(np.uint8, 1)], gpu)


@pytest.mark.parametrize(
    "mutation",
    [
        ("outer = quotient(rest, extent)", "outer = quotient(rest, n1)"),
        ("to + index * t, outer", "to, outer"),
        ("source + int64(rest) * s0", "source"),
        ("if i < int64(n):", "if i < int64(n) + int64(1):"),
    ],
)
def test_a_planted_bug_is_found(mutation: tuple[str, str]) -> None:
    op, x = Transpose((5, 4, 3, 2, 1, 0)), values(np.float32, 3, 2, 2, 2, 3, 2)
    try:
        found = run(op, [x], EmulatedDevice(SCHEDULES[0], mutation))
    except IndexError:
        return
    assert not np.array_equal(found, op.reference([x])[0])
