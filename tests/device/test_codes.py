"""Sums and products of codes on a device: the op's reference, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES
from kernels.check import program_of
from kernels.products import codes

from qrt.ops.op import Array, Op
from qrt.ops.quantization import QBinary
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

# Equal shapes, one operand for each channel, for each pixel, for all; and such rows that no word is whole.
SHAPES = [
    ((2, 3, 32), (2, 3, 32)),
    ((2, 2, 3, 16), (2, 1, 1, 16)),
    ((2, 3, 1), (2, 3, 16)),
    ((3, 7), (3, 7)),
    ((1, 1), (5, 5)),
    ((2, 1, 3, 1, 2), (1, 4, 1, 5, 2)),
]
OPS = {
    "add": QBinary("add", 0.5, 3, 0.25, 200, 0.5, 120),  # ratios that make ties
    "mul": QBinary("mul", 0.03, 100, 0.02, 77, 0.05, 130, 10, 240),
}


def run(op: Op, feeds: list[Array], on: Any) -> Array:
    return DevicePlan(program_of(op, feeds)[0], on, Packs()).run(feeds)[0]


@pytest.mark.parametrize(("a", "b"), SHAPES)
@pytest.mark.parametrize("name", OPS)
def test_binary(name: str, a: tuple[int, ...], b: tuple[int, ...], device: Any) -> None:
    feeds = [codes(*a), codes(*b)]
    np.testing.assert_array_equal(run(OPS[name], feeds, device), OPS[name].reference(feeds)[0])


@pytest.mark.gpu
@pytest.mark.parametrize(("a", "b"), [((8, 56, 56, 64),) * 2, ((4, 28, 28, 96), (4, 1, 1, 96)), ((3, 33, 31, 7), (3, 33, 31, 1))])
@pytest.mark.parametrize("name", OPS)
def test_large_binary(name: str, a: tuple[int, ...], b: tuple[int, ...], gpu: Any) -> None:
    feeds = [codes(*a), codes(*b)]
    np.testing.assert_array_equal(run(OPS[name], feeds, gpu), OPS[name].reference(feeds)[0])


BUGS = {
    "operands change places": (
        "add",
        0,
        "steps = fma(to_float(a), fa, fma(to_float(b), fb, fy))",
        "steps = fma(to_float(b), fa, fma(to_float(a), fb, fy))",
    ),
    "a product instead of a division": (
        "mul",
        0,
        "steps = divide(multiply(left, right), fy)",
        "steps = multiply(multiply(left, right), fy)",
    ),
    "one operand is not repeated": ("mul", 2, "one = int32(load_u8(x) * int32(0x01010101))", "one = load_u8(x)"),
    "past the end": ("add", 3, "range(one, min(end, int64(n)), WARP)", "range(one, end, WARP)"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    name, shapes, *mutation = BUGS[bug]
    feeds = [codes(*shape) for shape in SHAPES[shapes]]
    try:
        found = run(OPS[name], feeds, EmulatedDevice(SCHEDULES[0], (mutation[0], mutation[1])))
    except IndexError:
        return
    assert not np.array_equal(found, OPS[name].reference(feeds)[0])
