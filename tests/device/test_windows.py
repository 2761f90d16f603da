"""Convolutions on a device, depthwise, grouped and of few channels: the ops' references bit for bit. Others: test_gemm.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES
from kernels.check import program_of
from kernels.products import added, codes, dynamic, extra, to_codes, weights

from qrt.ops.conv import Conv, Depthwise, Window
from qrt.ops.conv import device as table
from qrt.ops.gemm import Int32
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.op import Array, Op, Spec
from qrt.ops.program import Program
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs
from qrt.runtime.segments import judge

SAME = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
STRIDED = Window((3, 3), (2, 2), (1, 1), (0, 1, 1, 1))
WIDE = Window((5, 5), (1, 2), (2, 1), (4, 2, 4, 2))
LINE = Window((3,), (1,), (1,), (1, 1))
TRANSPOSED = Window((2, 3), (2, 2), (1, 1), (0, 1, 0, 1), transposed=True)


def epilogue_of(name: str, n: int, reach: int) -> Epilogue:
    if name == "u8t":
        return replace(to_codes(n, reach), table=np.random.default_rng(n).permutation(256).astype(np.uint8))
    if name in ("u8", "s32", "f32d"):
        return {"u8": to_codes(n, reach), "s32": Int32(), "f32d": dynamic(n)}[name]
    return added(n, reach, signed=n % 2 == 0, residual_first=name == "u8radd")


def case(
    window: Window, space: tuple[int, ...], groups: int, k: int, n: int, name: str = "u8", asymmetric: bool = False, images: int = 2
) -> tuple[Op, list[Array]]:
    epilogue = epilogue_of(name, groups * n, k * window.taps)
    kind = Depthwise if k == n == 1 else Conv
    constants = weights(groups, window.taps, k, n, asymmetric, bias=groups != 6)
    if name == "f32d" and constants.bias is not None:
        constants = type(constants)(constants.w, constants.zero_point, constants.bias.astype(np.float32))
    feeds = [codes(images, *space, groups * k), *extra(epilogue, images, *window.out_space(space), groups * n)]
    return kind(window, constants, epilogue, 0 if name == "f32d" else 113), feeds


def run(op: Op, feeds: list[Array], on: Any) -> Array:
    return DevicePlan(program_of(op, feeds)[0], on, Packs()).run(feeds)[0]


CASES = {
    "3x3": case(SAME, (3, 4), 8, 1, 1),
    "ragged channels": case(SAME, (3, 3), 6, 1, 1),
    "strided": case(STRIDED, (6, 5), 12, 1, 1),
    "dilated": case(WIDE, (5, 6), 4, 1, 1),
    "asymmetric": case(SAME, (3, 3), 8, 1, 1, asymmetric=True),
    "one axis": case(LINE, (7,), 5, 1, 1),
    "transposed": case(TRANSPOSED, (3, 2), 8, 1, 1),
    **{name: case(SAME, (2, 3), groups, 1, 1, name) for name, groups in (("u8t", 7), ("u8add", 8), ("u8radd", 7), ("s32", 7), ("f32d", 6))},
    "one group, u8t": case(SAME, (3, 3), 1, 20, 4, "u8t", images=1),
    "one group, f32d": case(SAME, (3, 3), 1, 20, 5, "f32d", images=1),
    "few channels": case(STRIDED, (7, 6), 1, 3, 8),
    "few channels, f32d": case(WIDE, (4, 5), 1, 1, 6, "f32d", images=1),
    "few channels, asymmetric": case(TRANSPOSED, (3, 3), 1, 5, 4, asymmetric=True, images=1),
    "groups": case(SAME, (3, 3), 3, 8, 4),
    "ragged groups": case(STRIDED, (4, 5), 3, 5, 6),
    "a multiplier": case(SAME, (3, 3), 5, 1, 2),
    "transposed groups": case(TRANSPOSED, (2, 2), 2, 4, 3, asymmetric=True),
    **{
        f"groups, {name}": case(LINE, (5,), 2, 6, n, name) for name, n in (("u8t", 5), ("u8add", 4), ("u8radd", 3), ("s32", 3), ("f32d", 5))
    },
}


@pytest.mark.parametrize("name", CASES)
def test_windows(name: str, device: Any) -> None:
    op, feeds = CASES[name]
    np.testing.assert_array_equal(run(op, feeds, device), op.reference(feeds)[0])


LARGE = {
    "3x3": (SAME, (56, 56), 96, 1, 1),
    "strided": (STRIDED, (113, 114), 144, 1, 1),
    "dilated": (WIDE, (40, 37), 100, 1, 1, "s32"),
    "16 channels a thread": (SAME, (112, 112), 256, 1, 1),
    "16 channels a thread, u8t": (SAME, (112, 112), 256, 1, 1, "u8t"),
    "7x7": (Window((7, 7), (1, 1), (1, 1), (3, 3, 3, 3)), (20, 20), 67, 1, 1, "u8add"),
    "few channels": (Window((7, 7), (2, 2), (1, 1), (3, 3, 3, 3)), (224, 224), 1, 3, 64),
    "one group, f32d": (SAME, (30, 20), 1, 64, 10, "f32d"),
    "groups": (SAME, (28, 28), 32, 8, 8),
    "ragged groups": (STRIDED, (30, 31), 7, 13, 9, "u8radd", True),
    "a multiplier": (SAME, (28, 28), 64, 1, 2, "f32d"),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", LARGE)
def test_large_windows(name: str, gpu: Any) -> None:
    op, feeds = case(*LARGE[name])  # type: ignore[arg-type]
    np.testing.assert_array_equal(run(op, feeds, gpu), op.reference(feeds)[0])


@pytest.mark.parametrize("name", ["u8", "u8t"])
def test_sixteen_channels_a_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "choose_channels", lambda *_: 16)
    op, feeds = case(STRIDED, (5, 4), 32, 1, 1, name)
    on = EmulatedDevice()
    np.testing.assert_array_equal(run(op, feeds, on), op.reference(feeds)[0])
    assert on.launched == [table.DEPTHWISE[name, 16].name]


BUGS = {
    "padding is 0": ("3x3", "return int32(load_u8(a_zero_point) * int32(0x01010101)) if dynamic else pad", "return int32(0)"),
    "turned over wrongly": ("3x3", "permute(back0, back1, int32(0x5410))", "permute(back0, back1, int32(0x7632))"),
    "the second image": ("3x3", "source, w_at = x + int64(image) * x_batch + int64(column)", "source, w_at = x + int64(column)"),
    "too many codes": ("ragged groups", "left, words = int32(n - within)", "left, words = int32(4)"),
    "always whole": ("ragged groups", "int32(n & int32(3)) == int32(0)", "True"),
    "padding of rows": ("few channels", "if offset >= int32(0) else pad\n", "if offset >= int32(0) else int32(0)\n"),
    "a tap too many": ("few channels", "if tap < taps:", "if True:"),
    "the end of a group": ("ragged groups", "int32(k - int32(step))", "int32(4)"),
    "more threads than work": (
        "3x3",
        "int64(threads):\n            blocks = int32(columns // ",
        "int64(256):\n            blocks = int32(columns // ",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    name, *mutation = BUGS[bug]
    op, feeds = CASES[name]
    try:
        found = run(
            op, feeds, EmulatedDevice(SCHEDULES[0], (mutation[0], mutation[1]), "rows_of_windows" if name == "few channels" else "")
        )
    except IndexError:
        return
    assert not np.array_equal(found, op.reference(feeds)[0])


@pytest.mark.parametrize(("groups", "k", "n"), [(4, 1, 1), (2, 8, 8), (1, 3, 8)], ids=["depthwise", "groups", "few channels"])
def test_tables_that_are_too_long_are_refused_at_once(groups: int, k: int, n: int) -> None:
    """And the CPU takes the convolution."""
    program, space = Program(), (5500, 5500)
    constants = weights(groups, SAME.taps, k, n)
    op = (Depthwise if k == n == 1 else Conv)(SAME, constants, Int32(), 113)
    program.inputs = [program.value(Spec((1, *space, groups * k), np.dtype(np.uint8)))]
    program.outputs = list(program.call(op, program.inputs, "conv"))
    (verdict,) = judge(program)
    assert (verdict.on_device, verdict.why) == (False, "a window of 9 pixels at 30250000 places")
