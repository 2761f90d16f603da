"""Resizing on a device: the ops' references, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from kernels.check import program_of
from kernels.products import codes, floats

from qrt.ops.op import Array, Op
from qrt.ops.resize import Linear, Nearest, QLinear
from qrt.ops.resize.device import NEAREST
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

ROWS, COLUMNS = (0.0, 0.3, 1.75, 2.0), (0.5, 0.9, 0.0)


def run(op: Op, feeds: list[Array], on: Any) -> Array:
    return DevicePlan(program_of(op, feeds)[0], on, Packs()).run(feeds)[0]


CASES = {
    "codes": (Nearest(1, (0, 0, 1, 1, 2), (0, 1, 1)), codes(2, 3, 2, 16)),
    "ragged": (Nearest(1, (2, 0), (1, 0, 1)), codes(2, 3, 2, 5)),
    "words": (Nearest(1, (2, 0), (1, 0, 1)), codes(2, 3, 2, 4)),
    "halves": (Nearest(1, (2, 0), (1, 0, 1)), codes(2, 3, 2, 6)),
    "int64": (Nearest(0, (1, 0, 1), (0, 2)), codes(2, 3, 8).view(np.int64)),
    "linear": (Linear(1, ROWS, COLUMNS), floats(2, 3, 2, 3)),
    "linear, planes": (Linear(2, ROWS, COLUMNS), floats(1, 2, 3, 2)),
    "linear codes": (QLinear(1, ROWS, COLUMNS, 0.03, 100, 0.02, 90, 5, 250), codes(2, 3, 2, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_resizing(name: str, device: Any) -> None:
    op, x = CASES[name]
    np.testing.assert_array_equal(run(op, [x], device), op.reference([x])[0])


def test_as_wide_as_pixels_allow() -> None:
    on = EmulatedDevice()
    op, x = CASES["codes"]
    run(op, [x], on)
    assert on.launched == [NEAREST[16].name]


@pytest.mark.gpu
def test_large_resizing(gpu: Any) -> None:
    rows, columns = tuple(range(13)) * 2, tuple(i // 2 for i in range(26))
    places = tuple(float(f) for f in np.linspace(0, 12, 40, dtype=np.float32))
    x, y = codes(4, 13, 13, 192), floats(2, 13, 13, 30)
    for op, feed in (
        (Nearest(1, rows, columns), x),
        (QLinear(1, places, places, 0.03, 100, 0.02, 90), x),
        (Linear(1, places, places), y),
    ):
        np.testing.assert_array_equal(run(op, [feed], gpu), op.reference([feed])[0])
