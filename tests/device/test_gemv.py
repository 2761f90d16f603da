"""Products of a few rows on a device: the op's reference bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES
from device.test_float import check
from device.test_gemm import case
from kernels.check import program_of

from qrt.ops.gemm.device import EPILOGUES, FEW_ROWS
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 16, 8), (3, 70, 5)])
def test_every_epilogue(device: Any, epilogue: str, m: int, k: int, n: int) -> None:
    check(device, *case(epilogue, m, k, n), 0, 0)


@pytest.mark.parametrize(("m", "k", "n", "asymmetric"), [(FEW_ROWS, 530, 9, False), (2, 33, 10, True)])
def test_sizes(device: Any, m: int, k: int, n: int, asymmetric: bool) -> None:
    check(device, *case("u8", m, k, n, asymmetric))


def test_which_products_it_makes() -> None:
    for m, expected in ((1, "gemv_u8s8_s32_1__cuda"), (5, "gemv_u8s8_s32_8__cuda"), (FEW_ROWS + 1, "gemm_u8s8_s32_64x64x128_direct__cuda")):
        op, feeds = case("s32", m, 16, 3)
        gpu = EmulatedDevice()
        DevicePlan(program_of(op, feeds)[0], gpu, Packs()).run(feeds)
        assert gpu.launched[-1] == expected


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 2, 8])
def test_large(gpu: Any, m: int) -> None:
    check(gpu, *case("u8", m, 4096, 11008))
    check(gpu, *case("f32d", m, 384, 30522), 0, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("m", [2, FEW_ROWS])
def test_every_kernel(gpu: Any, epilogue: str, m: int) -> None:
    check(gpu, *case(epilogue, m, 530, 9), 0, 0)


MUTATIONS = {
    "the next row": ("int64(min(int32(i), int32(m - int32(1))))", "int64(0)"),
    "half of the threads": ("for distance in (16, 8, 4, 2, 1)", "for distance in (8, 4, 2, 1)"),
    "whole rows of chunks": ("while chunk < chunks", "while chunk <= chunks"),
    "the next part": ("w_at += int64(16) * int64(chunks)", "w_at += int64(0)"),
}


@pytest.mark.parametrize("bug", MUTATIONS)
def test_a_planted_bug_is_found(bug: str) -> None:
    op, feeds = case("s32", 2, 528, 3, asymmetric=True)
    try:
        found = DevicePlan(program_of(op, feeds)[0], EmulatedDevice(SCHEDULES[0], MUTATIONS[bug]), Packs()).run(feeds)[0]
    except IndexError:
        return
    assert not np.array_equal(found, op.reference(feeds)[0])
