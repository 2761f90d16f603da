"""Batches of products of codes on a device: the op's reference bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES
from device.test_float import check
from kernels.check import program_of
from kernels.products import codes, to_codes

from qrt.ops.gemm import BatchedMatMul, Int32
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.op import Array
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

RNG = np.random.default_rng(0)


def scores(epilogue: Epilogue, bias: Array | None = None, a_zero: int = 117, b_zero: int = 128) -> BatchedMatMul:
    return BatchedMatMul(epilogue, (0, 2, 1, 3), (0, 3, 1, 2), (0, 1, 2, 3), bias, a_zero, b_zero)


def context(epilogue: Epilogue, a_zero: int = 0, b_zero: int = 3) -> BatchedMatMul:
    return BatchedMatMul(epilogue, (0, 1, 2, 3), (0, 2, 1, 3), (0, 2, 1, 3), None, a_zero, b_zero)


@pytest.mark.parametrize(
    ("op", "a", "b"),
    [
        (scores(Int32(), RNG.integers(-500, 500, 7).astype(np.int32)), (1, 5, 2, 8), (1, 7, 2, 8)),
        (scores(to_codes(7, 66), None, 255, 0), (2, 3, 1, 66), (1, 7, 1, 66)),
        (scores(Int32(), None, 0, 255), (1, 66, 1, 3), (1, 2, 1, 3)),
        (context(to_codes(9, 7)), (1, 2, 5, 7), (1, 7, 2, 9)),
        (context(Int32()), (1, 1, 2, 13), (1, 13, 1, 66)),
    ],
    ids=["scores", "one b", "short", "context", "long"],
)
def test_batches(device: Any, op: BatchedMatMul, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check(device, op, [codes(*a), codes(*b)])


@pytest.mark.gpu
@pytest.mark.parametrize(("length", "heads", "width"), [(128, 12, 32), (257, 3, 64)])
def test_attention(gpu: Any, length: int, heads: int, width: int) -> None:
    x = [codes(2, length, heads, width) for _ in range(2)]
    check(gpu, scores(to_codes(length, width)), x)
    check(gpu, context(to_codes(width, length)), [codes(2, heads, length, length), x[1]])


MUTATIONS = {
    "no barrier before words are read": ("            cuda.syncthreads()\n            for q in", "            for q in"),
    "no barrier after": ("            cuda.syncthreads()\n            step = ", "            step = "),
    "behind the end of k": ("if int32(e) < left:\n                    word", "if True:\n                    word"),
    "the other zero point": ("int32(a_zero * columns[j])", "int32(b_zero * columns[j])"),
}


@pytest.mark.parametrize("bug", MUTATIONS)
def test_a_planted_bug_is_found(bug: str) -> None:
    op, feeds = scores(Int32()), [codes(1, 5, 1, 66), codes(1, 6, 1, 66)]
    wanted = op.reference(feeds)[0]
    for schedule in SCHEDULES[::2]:
        found = DevicePlan(program_of(op, feeds)[0], EmulatedDevice(schedule, MUTATIONS[bug]), Packs()).run(feeds)[0]
        if not np.array_equal(found, wanted):
            return
    pytest.fail("no schedule finds it")
