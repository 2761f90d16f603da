"""Whole programs on a device: the same bits as the ops' references. Emulated here; on a GPU where there is one (`pytest -m gpu`)."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from kernels.products import added, codes, floats, to_codes, weights

from qrt.core.dtypes import quint8
from qrt.core.errors import UnsupportedOp
from qrt.core.qparams import QParams
from qrt.ops.elementwise import Unary
from qrt.ops.gemm import Dense
from qrt.ops.movement import Copy, Transpose
from qrt.ops.movement.device import STRIDED
from qrt.ops.op import Op, Spec, View
from qrt.ops.program import Program, interpret
from qrt.ops.quantization import Dequantize, Lut, Quantize
from qrt.ops.reduction import Reduce
from qrt.runtime import device as device_plans
from qrt.runtime import segments
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs


def network(m: int, k: int, hidden: int, n: int) -> Program:
    """Floats to codes, two products, the second with a residual, a table, a transpose, and back to floats."""
    program = Program()
    x = program.value(Spec((m, k), np.dtype(np.float32)))
    r = program.value(Spec((1, m, n), np.dtype(np.uint8)))
    program.inputs = [x, r]

    def call(op: Op, *inputs: int) -> int:
        return program.call(op, inputs, type(op).__name__)[0]

    qparams = QParams(np.float32(0.03), np.int32(120), quint8)
    q = call(Quantize(qparams), x)
    q = call(Dense(weights(1, 1, k, hidden, asymmetric=True), to_codes(hidden, k), 120), q)
    q = call(Lut(), q, program.constant(np.random.default_rng(1).permutation(256).astype(np.uint8)))
    q = call(Dense(weights(1, 1, hidden, n), added(n, hidden), 7), q, call(View((m, n)), r))
    program.outputs = [call(Transpose((1, 0)), q), call(Dequantize(qparams), q)]
    return program


@pytest.mark.parametrize(("m", "k", "hidden", "n"), [(33, 50, 70, 40), (16, 32, 64, 16)])
def test_a_network(device: Any, m: int, k: int, hidden: int, n: int) -> None:
    program = network(m, k, hidden, n)
    plan = DevicePlan(program, device, Packs())
    for _ in range(2):
        feeds = [floats(m, k), codes(1, m, n)]
        for wanted, found in zip(interpret(program, feeds), plan.run(feeds), strict=True):
            np.testing.assert_array_equal(found, wanted)
    plan.close()


def test_memory_is_given_back() -> None:
    device = EmulatedDevice()
    plan = DevicePlan(network(4, 16, 16, 16), device, Packs())
    assert device.sizes
    plan.close()
    assert not device.sizes


def test_nothing_is_launched_for_nothing(device: Any) -> None:
    """A grid of no blocks is refused by the driver."""
    program = Program()
    x, r = program.value(Spec((0, 4), np.dtype(np.float32))), program.value(Spec((2, 4), np.dtype(np.float32)))
    program.inputs = [x, r]
    qparams = QParams(np.float32(0.03), np.int32(120), quint8)
    program.outputs = [
        *program.call(Unary("neg"), [x], "none"),
        *program.call(Transpose((1, 0)), [x], "turned"),
        *program.call(Quantize(qparams), [x], "codes"),
        *program.call(Reduce("sum", 1, 2), [x], "sums"),
        *program.call(Unary("neg"), [r], "some"),
    ]
    plan = DevicePlan(program, device, Packs())
    feeds = [floats(0, 4), floats(2, 4)]
    for _ in range(2):
        for wanted, found in zip(interpret(program, feeds), plan.run(feeds), strict=True):
            np.testing.assert_array_equal(found, wanted)
    plan.close()


@pytest.mark.parametrize(
    ("grid", "n", "message"),
    [
        ((2**31 - 1, 65535), 2**31 - 4097, ""),
        ((2**31, 1), 1, r"would need \(2147483648, 1\) blocks"),
        ((1, 65536), 1, r"would need \(1, 65536\) blocks"),
        ((1, 1), 2**31 - 4096, "counts 'n' in 32 bits: 2147479552 is too much"),
    ],
)
def test_what_no_launch_can_do(grid: tuple[int, int], n: int, message: str) -> None:
    """The call runs on the CPU: it is refused also where nothing is planned yet."""
    kernel = STRIDED[1]
    for steps in (segments._Probe((9, 0)), device_plans._Builder(Program(), Packs(), (9, 0))):
        with pytest.raises(UnsupportedOp, match=message) if message else contextlib.nullcontext():
            steps.launch(kernel, grid, **dict.fromkeys(kernel.record.names or (), 0) | {"n": n, "x": 2**40})


def test_too_many_elements_go_to_the_cpu() -> None:
    program = Program()
    x = program.value(Spec((2**31,), np.dtype(np.float32)))
    program.inputs = [x]
    program.outputs = list(program.call(Quantize(QParams(np.float32(0.03), np.int32(120), quint8)), [x], "codes"))
    (verdict,) = segments.judge(program)
    assert not verdict.on_device
    assert "counts 'inner' in 32 bits" in verdict.why


class Odd(Copy):
    """An op that nobody wrote a device kernel for."""

    emit_device = Op.emit_device


def test_an_op_without_a_kernel_is_refused() -> None:
    program = Program()
    x = program.value(Spec((2, 3), np.dtype(np.float32)))
    program.inputs = [x]
    program.outputs = list(program.call(Odd(), [x], "odd"))
    with pytest.raises(UnsupportedOp, match="Odd has no kernel for CUDA"):
        DevicePlan(program, EmulatedDevice(), Packs())
