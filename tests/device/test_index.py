"""What indices point at, on a device; an index out of range ends the run that is waited for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.test_float import check
from kernels.check import program_of

from qrt.core.errors import InvalidInput
from qrt.ops.movement.gather import Gather
from qrt.ops.program import interpret
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64"])
@pytest.mark.parametrize(("shape", "axis", "count"), [((9, 8), 0, (2, 3)), ((3, 5, 3), 1, (4,)), ((2, 7), 1, ())])
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_gather(device: Any, dtype: str, shape: tuple[int, ...], axis: int, count: tuple[int, ...], index: str) -> None:
    x = RNG.integers(0, 100, shape).astype(dtype)
    check(device, Gather(axis), [x, RNG.integers(-shape[axis], shape[axis], count).astype(index)])


def test_an_index_out_of_range_is_refused_and_the_next_run_is_right(device: Any) -> None:
    op, x = Gather(0, "the words"), RNG.normal(size=(5, 4)).astype(np.float32)
    program, feeds = program_of(op, [x, np.array([1, -1])])
    plan = DevicePlan(program, device, Packs())
    for wrong in (7, -6):
        with pytest.raises(InvalidInput, match=f"node 'op': the words must be within -5 … 4; one is {wrong}"):
            plan.run([x, np.array([3, wrong])])
        with pytest.raises(InvalidInput, match=f"the words must be within -5 … 4; one is {wrong}"):
            plan.carry_out([x, np.array([wrong, 3])], [None], device.stream)  # on a caller's stream, whose end the CPU awaits
        np.testing.assert_array_equal(plan.run(feeds)[0], interpret(program, feeds)[0])
    plan.close()
