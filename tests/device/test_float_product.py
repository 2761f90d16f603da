"""Products of floats on a device: the ops' references within 1e-5, and the CPU's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES, Schedule
from device.test_float import check
from kernels.check import TARGETS_HERE, program_of
from kernels.products import extra, float_epilogues, float_weights, floats

from qrt.ops.conv import Conv, Window
from qrt.ops.gemm import BatchedMatMul, Dense, Float, device_float
from qrt.ops.gemm.device_float import TILES, Tile
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.op import Array
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs
from qrt.runtime.plan import build


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (9, 16, 66), (65, 18, 4)])
def test_dense(device: Any, m: int, k: int, n: int) -> None:
    check(device, Dense(float_weights(1, 1, k, n), Float()), [floats(m, k)], atol=1e-5)


@pytest.mark.parametrize("epilogue", float_epilogues(), ids=str)
def test_every_epilogue(device: Any, epilogue: Epilogue) -> None:
    check(device, Dense(float_weights(1, 1, 20, 12, bias=False), epilogue), [floats(2, 3, 20), *extra(epilogue, 2, 3, 12)], atol=1e-5)


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t[0]}x{t[1]}")
def test_every_tile(device: Any, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_float, "choose_tile", lambda *_: tile)
    check(device, Dense(float_weights(1, 1, 18, tile[1] - 3), Float()), [floats(tile[0] - 5, 18)], atol=1e-5)


CONVOLUTIONS = [
    (2, 5, Window((3, 3), (2, 2), (1, 1), (0, 1, 1, 2)), (6, 5)),
    (3, 4, Window((2, 2), (1, 1), (2, 2), (2, 1, 0, 1)), (4, 5)),
    (1, 6, Window((8,), (4,), (1,), (0, 0)), (24,)),
    (6, 7, Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0)), (3, 4)),
]


@pytest.mark.parametrize(("c", "n", "window", "space"), CONVOLUTIONS, ids=["strided", "dilated", "line", "point"])
def test_convolutions(device: Any, c: int, n: int, window: Window, space: tuple[int, ...]) -> None:
    check(device, Conv(window, float_weights(1, window.taps, c, n), Float(0.0)), [floats(2, *space, c)], atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "k", "n"), [(8, 1, 1), (6, 1, 1), (2, 3, 2), (3, 1, 2)], ids=["depthwise", "ragged", "groups", "multiplied"]
)
@pytest.mark.parametrize("epilogue", [Float(0.0, 6.0), Float(residual=True)], ids=["bounds", "residual"])
def test_convolutions_of_several_groups(device: Any, groups: int, k: int, n: int, epilogue: Float) -> None:
    window = Window((3, 2), (2, 1), (1, 1), (1, 0, 1, 1))
    op, out = Conv(window, float_weights(groups, window.taps, k, n), epilogue), (2, *window.out_space((5, 4)), groups * n)
    check(device, op, [floats(2, 5, 4, groups * k), *extra(epilogue, *out)], atol=1e-5)


# Heads as attention has them: the scores (keys transposed), and the context.
BATCHES = [
    (BatchedMatMul(Float(), (0, 2, 1, 3), (0, 3, 1, 2), (0, 1, 2, 3)), (1, 5, 2, 8), (1, 7, 2, 8)),
    (BatchedMatMul(Float(), (0, 1, 2, 3), (0, 2, 1, 3), (0, 2, 1, 3)), (1, 2, 5, 7), (1, 7, 2, 8)),
    (BatchedMatMul(Float(), (0, 1), (0, 1), (0, 1)), (4, 18), (18, 6)),
    (BatchedMatMul(Float(), (0, 1, 2), (0, 1), (0, 1, 2), floats(6)), (2, 4, 5), (5, 6)),
]


@pytest.mark.gpu
def test_large(gpu: Any) -> None:
    """Tiles of both sizes, whole and ragged, as models have them."""
    for m, k, n in ((1000, 384, 1536), (256, 2048, 1000), (129, 77, 131)):
        check(gpu, Dense(float_weights(1, 1, k, n), Float()), [floats(m, k)], 1e-4, 1e-3)
    for c, n, window, space in (
        (64, 64, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), (56, 56)),
        (1, 129, Window((256,), (128,), (1,), (0, 0)), (640,)),
    ):
        check(gpu, Conv(window, float_weights(1, window.taps, c, n), Float(0.0)), [floats(2, *space, c)], 1e-4, 1e-3)
    for c, n, space in ((16, 128, (112, 112)), (20, 40, (14, 13))):  # of both sizes, with a residual and without
        window, space_of_y = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), (2, *space, n)
        for epilogue in (Float(), Float(residual=True)):
            feeds = [floats(2, *space, c), *extra(epilogue, *space_of_y)]
            check(gpu, Conv(window, float_weights(1, window.taps, c, n), epilogue), feeds, 1e-4, 1e-3)
    epilogue = Float(residual=True)
    check(gpu, Dense(float_weights(1, 1, 70, 600), epilogue), [floats(4096, 70), *extra(epilogue, 4096, 600)], 1e-4, 1e-3)
    depthwise = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
    check(gpu, Conv(depthwise, float_weights(96, 9, 1, 1), Float(0.0, 6.0)), [floats(2, 57, 57, 96)], atol=1e-5)
    check(gpu, BATCHES[0][0], [floats(2, 128, 12, 32), floats(2, 128, 12, 32)], atol=1e-4)


@pytest.mark.parametrize(("op", "a", "b"), BATCHES, ids=["scores", "context", "plain", "one b"])
def test_batches(device: Any, op: BatchedMatMul, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check(device, op, [floats(*a), floats(*b)], atol=1e-5)


ORDERS = SCHEDULES[::4]


def dense() -> tuple[Dense, list[Array], Array]:
    """A product of several steps of k, its input, and its result on the CPU."""
    op, x = Dense(float_weights(1, 1, 40, 10), Float()), floats(5, 40)
    program, feeds = program_of(op, [x])
    return op, feeds, build(program, TARGETS_HERE[0], 1, Packs()).run(feeds)[0]


@pytest.mark.parametrize("schedule", ORDERS, ids=lambda s: s.order)
def test_the_same_bits_as_on_the_cpu_in_any_order(schedule: Schedule) -> None:
    op, feeds, wanted = dense()
    np.testing.assert_array_equal(DevicePlan(program_of(op, feeds)[0], EmulatedDevice(schedule), Packs()).run(feeds)[0], wanted)


MUTATIONS = {
    "no barrier in the loop": (
        "put(a, b, int32(a_to + at), int32(b_to + at), b_step)\n            cuda.syncthreads()",
        "put(a, b, int32(a_to + at), int32(b_to + at), b_step)",
    ),
    "one buffer": ("at = int32(int32(stage) - at)", "at = int32(0)"),
    "the end of k": ("if row < k_all and here < n:", "if here < n:"),
    "the last row": ("            if row < m:", "            if True:"),
    "the next column": ("int32(64 * (j // 4) + j % 4)", "int32(64 * (j // 4))"),
}


@pytest.mark.parametrize("bug", MUTATIONS)
def test_a_planted_bug_is_found(bug: str) -> None:
    op, feeds, wanted = dense()
    for schedule in SCHEDULES:
        try:
            found = DevicePlan(program_of(op, feeds)[0], EmulatedDevice(schedule, MUTATIONS[bug]), Packs()).run(feeds)[0]
        except IndexError:
            return
        if not np.array_equal(found, wanted):
            return
    pytest.fail("no schedule finds it")
