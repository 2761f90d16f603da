"""Products whose codes are looked up in a table, on every target: in the kernel, or by a step of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels.check import check, program_of, runnable_targets
from kernels.products import codes, to_codes, weights

from qrt.ops.conv import Conv, Depthwise, Window
from qrt.ops.gemm import Codes, Dense
from qrt.ops.movement import Concat, Copy, Slice
from qrt.ops.op import Spec
from qrt.ops.program import Program, interpret
from qrt.ops.quantization import Lut
from qrt.runtime.plan import Packs, build

RNG = np.random.default_rng(0)
# With avx512vbmi, whose kernels look up and multiply by vectors, also where tiles would multiply.
TARGETS = tuple(dict.fromkeys(runnable_targets()))


def looked_up(columns: int, reach: int) -> Codes:
    return replace(to_codes(columns, reach), table=RNG.integers(0, 256, 256).astype(np.uint8))


def window(side: int, stride: int) -> Window:
    return Window((side, side), (stride, stride), (1, 1), (side // 2,) * 4)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 70, 5), (14, 17, 16), (50, 64, 72), (33, 100, 130), (200, 32, 64), (300, 16, 8)])
def test_rows_times_constants(m: int, n: int, k: int) -> None:
    for asymmetric in (False, True):
        check(Dense(weights(1, 1, k, n, asymmetric), looked_up(n, k), 9), [codes(m, k)], targets=TARGETS)


def test_steps_that_do_not_fit_packs() -> None:
    wide = replace(looked_up(64, 8), multiplier=np.float32([1.5]))
    check(Dense(weights(1, 1, 8, 64), wide, 9), [codes(40, 8)], targets=TARGETS)


@pytest.mark.parametrize(("channels", "n", "groups"), [(3, 16, 1), (24, 40, 1), (16, 16, 2), (64, 128, 1)])
@pytest.mark.parametrize(("side", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_windows(side: int, stride: int, channels: int, n: int, groups: int) -> None:
    op = Conv(window(side, stride), weights(groups, side * side, channels, n), looked_up(groups * n, side * side * channels), 7)
    check(op, [codes(2, 9, 20, groups * channels)], targets=TARGETS)


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 16, 32, 64, 80])
def test_windows_of_single_channels(side: int, stride: int, channels: int) -> None:
    op = Depthwise(window(side, stride), weights(channels, side * side, 1, 1), looked_up(channels, side * side), 7)
    check(op, [codes(2, 9, 16, channels)], targets=TARGETS)


def test_tables_take_no_step_where_kernels_look_up() -> None:
    wide = Conv(window(1, 1), weights(1, 1, 32, 32), looked_up(32, 32), 7)
    narrow = Conv(window(1, 1), weights(1, 1, 32, 8), looked_up(8, 32), 7)
    single = Depthwise(window(3, 1), weights(32, 9, 1, 1), looked_up(32, 9), 7)
    for target in TARGETS:
        tiles, permutes = target.isa == "amx", "avx512vbmi" in target.ladder
        for op, one in ((wide, tiles), (narrow, False), (single, permutes)):
            program, _ = program_of(op, [codes(1, 16, 16, 32)])
            kernels = build(program, target, 1, Packs()).kernels
            assert sum(kernel.startswith("lut") for kernel in kernels) == int(not one), (target.isa, op)


@pytest.mark.parametrize("n", [1, 8, 16, 31, 32, 33, 48, 64, 70, 130])
def test_rows_of_codes(n: int) -> None:
    """All in one piece; and rows of `n` that are read from one concatenation and written to a part of another, or looked up in place."""
    table = RNG.integers(0, 256, 256).astype(np.uint8)
    check(Lut(), [codes(5, n), table], constants=(1,), targets=TARGETS)
    program = Program()
    program.inputs = [program.value(Spec((5, n), np.dtype(np.uint8)))]
    (moved,) = program.call(Slice((4, 0), (5, n), (-1, 1)), program.inputs, "turn")
    (first,) = program.call(Concat(1), [moved, moved], "first")
    (looked,) = program.call(Lut(), [moved, program.constant(table)], "lut")
    (second,) = program.call(Concat(1), [program.inputs[0], looked], "second")
    (product,) = program.call(Dense(weights(1, 1, n, n), looked_up(n, n), 9), program.inputs, "product")
    (third,) = program.call(Concat(1), [program.inputs[0], product], "third")
    program.outputs = [program.call(Copy(), [value], "own")[0] for value in (first, second, third)]
    feeds = [codes(5, n)]
    for target in TARGETS:
        for threads in (1, 2):
            for found, wanted in zip(build(program, target, threads, Packs()).run(feeds), interpret(program, feeds), strict=True):
                np.testing.assert_array_equal(found, wanted)
