"""Recurrent cells on a device: the reference within rounding, and the CPU's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES
from device.test_float import check
from kernels.check import TARGETS_HERE, program_of
from kernels.products import floats

from qrt.core.errors import UnsupportedOp
from qrt.ops.op import Array
from qrt.ops.recurrent import GATES, Recurrent
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs
from qrt.runtime.plan import build


def case(cell: str, time: int, batch: int, directions: int, n: int, reverse: bool = False) -> tuple[Recurrent, list[Array]]:
    width = GATES[cell] * n
    extra = {"lstm_peeping": 3 * n, "gru_reset_after": n}.get(cell)
    op = Recurrent(cell, floats(directions, width, n) / np.float32(n**0.5), None if extra is None else floats(directions, extra), reverse)
    return op, [floats(time, batch, directions, width), *(floats(directions, batch, n) for _ in range(1 + op.has_cell_state))]


@pytest.mark.parametrize("cell", list(GATES))
def test_cells(device: Any, cell: str) -> None:
    check(device, *case(cell, 3, 1, 2, 5), 1e-4, 1e-5)


@pytest.mark.parametrize(("cell", "time", "batch", "n", "reverse"), [("lstm", 2, 2, 3, True), ("lstm", 0, 1, 4, False)])
def test_sequences(device: Any, cell: str, time: int, batch: int, n: int, reverse: bool) -> None:
    check(device, *case(cell, time, batch, 1, n, reverse), 1e-4, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", list(GATES))
def test_wider_than_a_block(gpu: Any, cell: str) -> None:
    check(gpu, *case(cell, 5, 3, 2, 700), 1e-4, 1e-5)


def on_a_device(op: Recurrent, feeds: list[Array], device: EmulatedDevice) -> list[Array]:
    return DevicePlan(program_of(op, feeds)[0], device, Packs()).run(feeds)


@pytest.mark.parametrize("cell", ["lstm_peeping", "gru", "gru_reset_after"])
def test_the_same_bits_as_on_the_cpu(cell: str) -> None:
    op, feeds = case(cell, 2, 1, 1, 9)
    wanted = build(program_of(op, feeds)[0], TARGETS_HERE[0], 1, Packs()).run(feeds)
    for expected, found in zip(wanted, on_a_device(op, feeds, EmulatedDevice()), strict=True):
        np.testing.assert_array_equal(found, expected)


MUTATIONS = {
    "no barrier before states": ("            cuda.syncthreads()\n            if gru", "            if gru"),
    "no barrier after": ("            cuda.syncthreads()\n\n    return kernel", "\n    return kernel"),
    "no barrier between gates": (
        "        cuda.syncthreads()\n        for j in range(thread, n, threads):\n            if reset",
        "        for j in range(thread, n, threads):\n            if reset",
    ),
}


@pytest.mark.parametrize("bug", MUTATIONS)
def test_a_planted_bug_is_found(bug: str) -> None:
    op, feeds = case("gru", 2, 1, 1, 45)
    wanted = op.reference(feeds)[0]
    for schedule in SCHEDULES[::2]:
        if not np.allclose(on_a_device(op, feeds, EmulatedDevice(schedule, MUTATIONS[bug]))[0], wanted, 1e-4, 1e-5):
            return
    pytest.fail("no schedule finds it")


def test_what_has_no_kernel_is_refused() -> None:
    op, feeds = case("lstm", 2, 1, 1, 3)
    for other, inputs in ((op, [*feeds, np.array([1], np.int32)]), (Recurrent("lstm", op.weights, clip=1.0), feeds)):
        with pytest.raises(UnsupportedOp, match="CUDA"):
            on_a_device(other, inputs, EmulatedDevice())
