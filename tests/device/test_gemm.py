"""The matrix product's device kernels, by their source in the emulator: the ops' references bit for bit, in any order of threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES, Schedule
from device.test_windows import SAME
from device.test_windows import case as windows
from kernels.check import program_of
from kernels.products import added, codes, dynamic, extra, floats, to_codes, weights

from qrt.ops.conv import Conv, Window
from qrt.ops.gemm import Dense, Int32, device
from qrt.ops.gemm.device import EPILOGUES, TILES, Tile
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.op import Array, Op
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

SMALL = Tile(64, 64, 64, 2, 2, 3)
X_ZERO_POINT = 113


def epilogue_of(name: str, n: int, k: int) -> Epilogue:
    if name in ("s32", "f32d"):
        return Int32() if name == "s32" else dynamic(n)
    if name == "u8t":
        return replace(to_codes(n, k), table=np.random.default_rng(n).permutation(256).astype(np.uint8))
    return to_codes(n, k) if name == "u8" else added(n, k, signed=n % 2 == 0, residual_first=name == "u8radd")


def run(op: Op, feeds: list[Array], tile: Tile, schedule: Schedule, mutation: tuple[str, str] | None = None) -> Array:
    """The op by the source of its kernel."""
    program, _ = program_of(op, feeds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "choose_tile", lambda m, n: tile)
        patch.setattr(device, "FEW_ROWS", 0)
        return DevicePlan(program, EmulatedDevice(schedule, mutation), Packs()).run(feeds)[0]


def case(name: str, m: int, k: int, n: int, asymmetric: bool = False) -> tuple[Dense, list[Array]]:
    w = weights(1, 1, k, n, asymmetric)
    if name == "f32d":
        w = replace(w, bias=floats(n))
    op = Dense(w, epilogue_of(name, n, k), X_ZERO_POINT)
    return op, [codes(m, k), *extra(op.epilogue, m, n)]


def check(op: Op, feeds: list[Array], tile: Tile, schedule: Schedule) -> None:
    np.testing.assert_array_equal(run(op, feeds, tile, schedule), op.reference(feeds)[0], str(schedule))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.order}-{s.copies}")
def test_in_any_order(schedule: Schedule) -> None:
    check(*case("u8", 70, 208, 72), SMALL, schedule)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(("m", "k", "n"), [(64, 64, 64), (1, 5, 3), (65, 130, 80), (33, 48, 70)])
def test_every_epilogue(epilogue: str, m: int, k: int, n: int) -> None:
    check(*case(epilogue, m, k, n), SMALL, Schedule("random", "lazy", m))


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.m}x{t.n}x{t.k}")
def test_every_tile(tile: Tile) -> None:
    check(*case("u8", 20, 2 * tile.k + 24, tile.n - 30), tile, Schedule("greedy", "lazy"))


def convolution(c: int, n: int, window: Window, name: str, space: tuple[int, int], asymmetric: bool = False) -> tuple[Conv, list[Array]]:
    op = Conv(window, weights(1, window.taps, c, n, asymmetric), epilogue_of(name, n, c * window.taps), X_ZERO_POINT)
    return op, [codes(2, *space, c)] + [codes(2, *window.out_space(space), n)] * op.epilogue.extra


@pytest.mark.parametrize(
    ("op", "feeds"),
    [
        convolution(16, 20, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), "u8", (5, 7)),
        convolution(3, 16, Window((3, 3), (2, 2), (1, 1), (0, 1, 1, 2)), "u8", (9, 8)),
        convolution(80, 9, Window((2, 2), (1, 1), (2, 2), (1, 0, 0, 1)), "u8add", (6, 5)),
        convolution(8, 8, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), "s32", (4, 4), asymmetric=True),
        convolution(16, 8, Window((2, 2), (2, 2), (1, 1), (0, 0, 0, 0), transposed=True), "u8", (3, 4)),
        convolution(24, 32, Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0)), "u8radd", (4, 5)),
    ],
    ids=["same", "strided", "dilated", "asymmetric", "transposed", "point"],
)
def test_convolutions(op: Conv, feeds: list[Array]) -> None:
    check(op, feeds, SMALL, Schedule("random", "lazy"))


@pytest.mark.gpu
@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.m}x{t.n}x{t.k}")
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_on_a_device(gpu: Any, epilogue: str, tile: Tile) -> None:
    """Every kernel: several blocks, whole and ragged, rows by a stride and by a table; also where Hopper has kernels of its own."""
    cases: list[tuple[Op, list[Array]]] = [
        case(epilogue, 3 * tile.m - 20, 200, tile.n + 40),
        case(epilogue, 2 * tile.m, 4 * tile.k, 2 * tile.n),
        windows(SAME, (13, 14), 1, 80, tile.n + 8, epilogue),
        windows(SAME, (16, 16), 1, 64, tile.n, epilogue),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "choose_tile", lambda m, n: tile)
        patch.setattr(device, "choose_hopper_tile", lambda m, n: None)
        for op, feeds in cases:
            plan = DevicePlan(program_of(op, feeds)[0], gpu, Packs())
            np.testing.assert_array_equal(plan.run(feeds)[0], op.reference(feeds)[0])
            plan.close()


CONVOLUTION_BUGS = {
    "padding is 0": ("if offset >= int32(0) else zeros", "if offset >= int32(0) else x[i]"),
    "the next tap": ("offset = load_i32(tables[i] + int64(4) * int64(tap))", "offset = load_i32(tables[i])"),
    "the second image": ("x[i] = x_at + int64(image) * x_batch", "x[i] = x_at"),
}


@pytest.mark.parametrize("bug", CONVOLUTION_BUGS)
def test_a_planted_bug_of_convolutions_is_found(bug: str) -> None:
    op, feeds = convolution(16, 20, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), "u8", (5, 7))
    try:
        found = run(op, feeds, SMALL, SCHEDULES[0], CONVOLUTION_BUGS[bug])
    except IndexError:
        return
    assert not np.array_equal(found, op.reference(feeds)[0])


def test_asymmetric_weights_are_taps() -> None:
    check(*case("u8", 40, 70, 20, asymmetric=True), SMALL, Schedule("random", "eager"))


MUTATIONS = {
    "waits for one copy too few": ("wait_ahead, wait_all = copies_wait(stages - 2)", "wait_ahead, wait_all = copies_wait(stages - 1)"),
    "no barrier in the loop": ("            wait_ahead()\n            cuda.syncthreads()", "            wait_ahead()"),
    "no barrier before codes are gathered": ("        wait_all()\n        cuda.syncthreads()", "        wait_all()"),
    "no barrier before codes leave": ("            cuda.syncthreads()\n            store_codes", "            store_codes"),
    "fills the stage that is read": ("ahead = stages - 1", "ahead = stages"),
    "chunks are not permuted": ("a_swizzle = int32((a_row >> int32(swizzle_shift)) & int32(swizzle_mask))", "a_swizzle = int32(0)"),
    "wrong half of B": ("int32((lane >> int32(3)) & int32(1))\n", "int32((lane >> int32(4)) & int32(1))\n"),
    "columns of C": ("columns = int32(n - first_n - out_n)", "columns = int32(16)"),
    "the end of k": ("int32(min(int32(16), max(int32(0), int32(x_left - k_at))))", "int32(16)"),
    "the last row of x": ("count = a_count if int32(i * rows_a_pass) < x_rows else int32(0)", "count = a_count"),
    "the last row of y": ("if int32(first_m + at_m) < m:", "if True:"),
    "bounds are swapped": ("clamp(multiply(to_float(acc), scale), low, high)", "clamp(multiply(to_float(acc), scale), high, low)"),
}


@pytest.mark.parametrize("bug", MUTATIONS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """What the checks above are worth: each of these must fail in one order of threads at least."""
    op, feeds = case("u8", 40, 208, 72)  # four steps: the last one reads the stage that codes are gathered in
    wanted = op.reference(feeds)[0]
    for schedule in SCHEDULES:
        try:
            if not np.array_equal(run(op, feeds, SMALL, schedule, MUTATIONS[bug]), wanted):
                return
        except (IndexError, RuntimeError):  # an address outside of every array, or threads that wait for ever
            return
    pytest.fail("no schedule finds it")
