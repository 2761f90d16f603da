"""What lies where, and when: real networks with the ops' references in place of kernels, and any part of them left to the CPU.

Kernels have their own tests. Here a launch computes its op by NumPy on the device's memory, so that a value that is overwritten too early,
not copied, or copied to the wrong place changes the result.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data
import numpy as np
import pytest
from data import ASSETS, needs_data
from device.emulated import EmulatedDevice

import qrt
from qrt.core.errors import UnsupportedOp
from qrt.graph import Model
from qrt.jit import driver, record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.lower.handlers import HANDLERS
from qrt.ops.op import DeviceSteps, Op, Operand, View
from qrt.report.example import example_feeds
from qrt.runtime import device, segments

Called = tuple[Op, list[Any], list[Any]]


class Lookup(EmulatedDevice):
    """Runs launches by what `calls` says of their names."""

    def __init__(self, calls: dict[str, Called]) -> None:
        super().__init__()
        self.calls = calls

    def carry_out(self, kernel: DeviceKernel, grid: tuple[int, int], record: bytes) -> None:
        op, inputs, outputs = self.calls[kernel.name]
        at = np.frombuffer(record, np.int64).tolist()
        read = [self._array(address, spec) for address, spec in zip(at, inputs, strict=False)]
        for address, spec, array in zip(at[len(inputs) :], outputs, op.reference(read), strict=True):
            self.memory.at(address, spec.nbytes, 1)[:] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)

    def _array(self, address: int, spec: Any) -> np.ndarray:
        return self.memory.at(address, spec.nbytes, 1).view(spec.dtype).reshape(spec.shape).copy()


def every_op(base: type[Op] = Op) -> list[type[Op]]:
    return [found for kind in base.__subclasses__() for found in (kind, *every_op(kind))]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives every op a kernel on the device but those that are named to it."""
    assert len(HANDLERS)  # imports all of them, and with them all ops
    calls: dict[str, Called] = {}
    refused: set[str] = set()

    def emit(op: Op, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        if type(op).__name__ in refused:
            raise UnsupportedOp("it is left to the CPU")
        fields = {f"a{i}": operand.ref for i, operand in enumerate((*inputs, *outputs))}
        name = f"op{len(calls)}"
        calls[name] = op, [x.spec for x in inputs], [y.spec for y in outputs]
        steps.launch(DeviceKernel(name, record_dtype(*((field, "i8") for field in fields)), ""), (1, 1), **fields)

    for kind in every_op():
        if kind not in (View, segments.HostRun):
            monkeypatch.setattr(kind, "emit_device", emit)
    monkeypatch.setattr(segments, "LEAST_MACS", 0)
    monkeypatch.setattr(driver, "Driver", lambda: Lookup(calls))
    return refused


def kinds(model: Model) -> list[str]:
    """The ops of a model's plan."""
    from qrt.api import compile_model, fuse_model

    planned = compile_model(fuse_model(model)[0], num_threads=1).plans(example_feeds(model))
    return sorted({type(call.op).__name__ for _, program in planned for call in program.calls if not isinstance(call.op, View)})


REAL = (data.RESNET20, data.POINT_HISTORY, data.POINT_HISTORY_LSTM)


@pytest.mark.parametrize(
    "path",
    [ASSETS / "digits.onnx", *(pytest.param(p, marks=needs_data(p.relative_to(data.DATA).as_posix())) for p in REAL)],
    ids=lambda path: path.stem,
)
def test_any_part_on_the_cpu(without: set[str], path: Path) -> None:
    model = qrt.load(path)
    model = qrt.quantize(model, [example_feeds(model)], progress=False)
    feeds, found = example_feeds(model), kinds(model)
    wanted = qrt.InferenceSession(model, num_threads=1).run(None, feeds)
    rng = random.Random(0)
    for refused in (set(), set(found), *(set(rng.sample(found, len(found) // 2)) for _ in range(2))):
        without.clear()
        without |= refused
        with qrt.InferenceSession(model, num_threads=1, target="cuda") as session:
            for _ in range(2):
                for y, expected in zip(session.run(None, feeds), wanted, strict=True):
                    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5, err_msg=str(refused))


@pytest.mark.parametrize("bug", ["buffers overlap", "what the CPU makes is not sent"])
def test_a_planted_bug_is_found(without: set[str], monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    """What the test above is worth."""
    model = qrt.load(ASSETS / "digits.onnx")
    feeds = example_feeds(model)
    wanted = qrt.InferenceSession(model, num_threads=1).run(None, feeds)[0]
    if bug == "buffers overlap":
        monkeypatch.setattr(device, "place", lambda buffers: ([0] * len(buffers), max(b.nbytes for b in buffers)))
    else:
        without.add("Depthwise")
        monkeypatch.setattr(device.DevicePlan, "_run_host", lambda self, part, host, at, stream: None)
    found = qrt.InferenceSession(model, num_threads=1, target="cuda").run(None, feeds)[0]
    assert not np.allclose(found, wanted, rtol=1e-3, atol=1e-3, equal_nan=True)
