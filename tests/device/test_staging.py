"""Arrays on their way between the CPU's memory and a device: page-locked, copied while the CPU goes on, and right whoever is late."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.sessions import Emulation
from graphs import make

import qrt
from qrt.ops.elementwise import Binary, Unary
from qrt.ops.op import Spec
from qrt.ops.program import Program
from qrt.runtime.device import DevicePlan
from qrt.runtime.device_memory import DeviceMemory
from qrt.runtime.emission import Packs

TEXT = "(float[N, 3] x, float[N, 3] r) => (float[N, 3] y, float[N, 3] z) { y = Add(x, r) z = Neg(x) }"
X, R = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 10, np.float32)
CALLERS = 0x5151


def program(n: int) -> Program:
    """y = x + r, z = −x."""
    made = Program()
    x, r = (made.value(Spec((n,), np.dtype(np.float32))) for _ in range(2))
    made.inputs = [x, r]
    made.outputs = [*made.call(Binary("add"), [x, r], "add"), *made.call(Unary("neg"), [x], "neg")]
    return made


def copies(device: EmulatedDevice) -> list[str]:
    """What the device was asked for, but for what goes to it when a plan is made."""
    return [str(word[0]) for word in device.noted if word[0] != "upload"]


@pytest.mark.parametrize("n", [1, 5, 70])
def test_runs_do_not_see_each_other(device: Any, n: int) -> None:
    """Inputs may change and die after a run, results are the caller's own."""
    plan = DevicePlan(program(n), device, Packs())
    results = []
    for seed in range(3):
        x, r = np.random.default_rng(seed).standard_normal((2, n)).astype(np.float32)
        results.append((plan.run([x, r]), [x + r, -x]))
        x[:], r[:] = np.nan, np.nan
        del x, r
    for found, wanted in results:
        for y, expected in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(y, expected)
            assert y.flags.owndata
    plan.close()


def test_the_cpu_waits_once() -> None:
    device = EmulatedDevice()
    plan = DevicePlan(program(4), device, Packs())
    feeds = [np.ones(4, np.float32), np.ones(4, np.float32)]
    plan.run(feeds)
    device.noted.clear()
    plan.run(feeds)
    assert copies(device) == ["send", "send", "replay", "fetch", "fetch", "wait", "wait"]


def test_it_is_locked_once_and_given_back() -> None:
    device = EmulatedDevice()
    plan = DevicePlan(program(5), device, Packs())
    assert not device.pinned
    feeds = [np.ones(5, np.float32), np.ones(5, np.float32)]
    plan.run(feeds)
    (memory,) = device.pinned.values()
    assert memory.nbytes == 4 * 64  # each value starts at a multiple of 64
    plan.run(feeds)
    assert list(map(id, device.pinned.values())) == [id(memory)]
    plan.close()
    plan.release()
    assert not device.pinned
    again = DevicePlan(program(5), device, Packs())
    again.run(feeds)
    del again
    gc.collect()
    assert not device.pinned


@pytest.mark.parametrize("n", [0, 6])
def test_where_the_system_refuses(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Copies as they are of any memory; it is asked once."""
    device = EmulatedDevice()
    device.lockable = 0
    asked = []
    pin = device.pin
    monkeypatch.setattr(device, "pin", lambda nbytes: asked.append(nbytes) or pin(nbytes))
    plan = DevicePlan(program(n), device, Packs())
    x, r = np.arange(n, dtype=np.float32), np.ones(n, np.float32)
    for _ in range(2):
        y, z = plan.run([x, r])
        np.testing.assert_array_equal(y, x + r)
        np.testing.assert_array_equal(z, -x)
    assert len(asked) == bool(n)
    assert not [word for word in device.noted if word[0] in ("send", "fetch")]
    plan.close()


def bound(session: qrt.InferenceSession, stream: int | None) -> Any:
    binding = session.bind(stream)
    for name in ("y", "z"):
        binding.bind_output(name, "cuda")
    return binding


def on_the_callers_stream(stream: int, rows: int = 2) -> list[tuple[Any, np.ndarray]]:
    """Runs that nobody waits for, of arrays that change at once; results and what they should be."""
    session = qrt.InferenceSession(make(TEXT), target="cuda", num_threads=1)
    binding, x, r = bound(session, stream), np.empty((rows, 3), np.float32), np.ones((rows, 3), np.float32)
    binding.bind_input("x", x)
    binding.bind_input("r", r)
    found = []
    for scale in (1, 2, 3):
        x[:] = np.arange(3 * rows).reshape(rows, 3) * scale
        wanted = x + r, -x
        binding.run()
        found.extend(zip(binding.get_outputs(), wanted, strict=True))
        x[:] = np.nan
    return [(result.numpy(), wanted) for result, wanted in found]


def test_arrays_that_change_while_a_run_is_under_way(emulation: Emulation) -> None:
    for found, wanted in on_the_callers_stream(CALLERS):
        np.testing.assert_array_equal(found, wanted)
    noted = emulation.device.noted
    assert ("wait", CALLERS) not in noted[: noted.index(("mark", CALLERS))]  # nobody waited for the first run


@pytest.mark.gpu
def test_on_a_device(gpu: Any) -> None:
    """Large enough for copies to be under way when a run returns; the stream is another driver's."""
    for found, wanted in on_the_callers_stream(gpu.stream, 1 << 22):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.gpu
def test_torchs_tensors_on_torchs_stream(gpu: Any) -> None:
    """Work on one stream before a run, in it and after it, none of which the CPU waits for."""
    torch = pytest.importorskip("torch")
    session = qrt.InferenceSession(make(TEXT), target="cuda", num_threads=1)
    stream = torch.cuda.Stream()
    binding = session.bind(stream.cuda_stream)
    for rows in (1000, 50_000):
        with torch.cuda.stream(stream):
            x = torch.arange(3 * rows, device="cuda", dtype=torch.float32).reshape(rows, 3) * 2
            y = torch.zeros_like(x)
            binding.bind_input("x", x)
            binding.bind_input("r", np.ones((rows, 3), np.float32))
            binding.bind_output("y", y)
            binding.bind_output("z", "cuda")
            binding.run()
            z = torch.from_dlpack(binding.get_outputs()[1]) * 3
            y += 1
        stream.synchronize()
        wanted = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) * 2
        np.testing.assert_array_equal(y.cpu().numpy(), wanted + 2)
        np.testing.assert_array_equal(z.cpu().numpy(), -3 * wanted)


def test_a_planted_bug_is_found(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not wait for the one before to have read its inputs."""
    monkeypatch.setattr(DeviceMemory, "settle", lambda self: None)
    assert not all(np.array_equal(found, wanted) for found, wanted in on_the_callers_stream(CALLERS))


def test_a_session_gives_it_back(emulation: Emulation) -> None:
    session = qrt.InferenceSession(make(TEXT), target="cuda", num_threads=1)
    for rows in (2, 1):
        session.run(None, {"x": X[:rows], "r": R[:rows]})
    assert len(emulation.device.pinned) == 2  # one for each plan
    binding = bound(session, CALLERS)
    binding.bind_input("x", X)
    binding.bind_input("r", R)
    binding.run()
    session.close()
    del session, binding
    gc.collect()
    assert not emulation.device.pinned
