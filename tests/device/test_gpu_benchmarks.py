"""The benchmarks of `--target cuda`, without a GPU: rows on an emulated one, and what they count. No time is looked at."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from data import ort_session
from device.emulated import EmulatedDevice
from device.emulator import WORDS
from device.needs import needs_cuda
from device.test_compile import compiled, instructions

from benchmarks import app, device_rows, gpu, torch_peer
from benchmarks.contest import Measured, Result, Settings, Skipped
from benchmarks.data import digits
from benchmarks.device_rows import FLAT, IMAGES, MOVING, bytes_moved, memory_row, product_row
from benchmarks.gpu import LOOP_MACS, MMA_LOOP, WGMMA_LOOP, Contender, GpuArray, copying, in_turns, matrix_peak, scaled
from benchmarks.models import cnn
from qrt.core.errors import QrtError
from qrt.jit import driver
from qrt.jit.cuda import DeviceKernel
from qrt.ops.op import Spec
from qrt.runtime import segments


class EmulatedGpu(EmulatedDevice):
    """Takes what its host takes."""

    name = "emulated"

    def time(self, run: Callable[[], object]) -> float:
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) * 1e3

    def copy(self, to: int, address: int, nbytes: int) -> None:
        self.memory.at(to, nbytes, 1)[:] = self.memory.at(address, nbytes, 1)


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device whose rounds are one run, and whose loops of products are short."""
    monkeypatch.setattr(gpu, "ROUND_MS", 0.0)
    monkeypatch.setattr(gpu, "BLOCKS", {MMA_LOOP.name: 1, WGMMA_LOOP.name: 1})
    monkeypatch.setattr(device_rows, "matrix_peak", lambda device: matrix_peak(device, turns=1))
    return EmulatedGpu()


@pytest.mark.parametrize("epilogue", ["s32", "u8"])
def test_a_product(one: Any, epilogue: str) -> None:
    row = product_row(one, epilogue, (20, 40, 32), Settings(rounds=1))
    assert [m.engine for m in row.engines] == ["qrt", "qrt, mma.sync", "floor"]
    assert all(len(m.rounds) == 1 for m in row.engines)
    assert row.case == f"{epilogue} 20×40×32"
    ours, floor = row.engines[0].minimum, row.engines[-1].minimum
    assert row.rate == pytest.approx(2 * 20 * 40 * 32 / ours / 1e6)
    assert row.share == pytest.approx(floor / ours)
    (note,) = row.notes
    assert note.startswith("torch._int_mm")
    assert "torch is not installed" in note or "finds no GPU" in note


def test_results_come_first(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuArray, "numpy", lambda self: np.zeros(self.shape, self.dtype))
    with pytest.raises(QrtError, match="qrt is not what the reference of Dense is: nothing was timed"):
        product_row(one, "s32", (4, 16, 16), Settings(rounds=1))


@pytest.mark.parametrize("name", MOVING)
def test_what_moves_bytes(one: Any, name: str) -> None:
    op, shape, kinds = MOVING[name]
    row = memory_row(one, name, op, {FLAT: (3, 64), IMAGES: (3, 4, 4, 16)}[shape], kinds, Settings(rounds=1))
    assert [m.engine for m in row.engines] == ["qrt", "copy"]
    assert row.rate_unit == "GB/s"
    assert row.share == pytest.approx(row.engines[1].minimum / row.engines[0].minimum)


def test_bytes_are_counted() -> None:
    found = {}
    for name, (op, shape, kinds) in MOVING.items():
        inputs = [Spec(shape, np.dtype(kind)) for kind in kinds]
        found[name] = bytes_moved(inputs, op.infer(inputs))
    flat, image = 512 << 18, 512 * 112 * 112 * 64
    assert list(found.values()) == [5 * flat, 5 * flat, 3 * flat, image * 5 // 4, image * 5 // 4]
    assert min(found.values()) > 6 * (50 << 20)  # of the L2 cache


def test_a_copy_counts_both_ways(one: Any) -> None:
    copy, moved = copying(one, 1000)
    copy.run()
    assert moved == 2000


@pytest.mark.parametrize(
    ("kernel", "cc", "threads", "macs"), [(MMA_LOOP, (8, 0), 32, 16 * 8 * 32), (WGMMA_LOOP, (9, 0), 128, 64 * 256 * 32)]
)
def test_products_of_a_loop_are_counted(
    one: Any, monkeypatch: pytest.MonkeyPatch, kernel: DeviceKernel, cc: tuple[int, int], threads: int, macs: int
) -> None:
    calls = []
    word, make = WORDS["mma"], WORDS["multiply_add"]
    monkeypatch.setitem(WORDS, "mma", lambda *args: (calls.append(1), word(*args))[1])
    monkeypatch.setitem(WORDS, "multiply_add", lambda n: lambda *args: (calls.append(1), make(n)(*args))[1])
    one.cc = cc
    loop, counted = matrix_peak(one, turns=2)
    loop.run()
    one.finish()
    assert one.launched == [kernel.name]
    assert counted == 2 * LOOP_MACS[kernel.name] == len(calls) // threads * macs


def test_products_of_what_is_not_fenced_are_found() -> None:
    device = EmulatedDevice(mutation=("barriers_ready()  # products", "pass  # products"), mutant="peak_wgmma")
    loop, _ = matrix_peak(device, turns=1)  # type: ignore[arg-type]
    loop.run()
    with pytest.raises(RuntimeError, match="stored and not fenced"):
        device.finish()


@needs_cuda
@pytest.mark.filterwarnings("ignore")  # numba-cuda's own
@pytest.mark.parametrize(("kernel", "name", "fewest"), [(MMA_LOOP, "IMMA", 8), (WGMMA_LOOP, "IGMMA", 4)], ids=["mma", "wgmma"])
def test_loops_stay_in_registers(kernel: DeviceKernel, name: str, fewest: int, tmp_path: Any) -> None:
    _, usage = compiled(kernel)
    assert (usage.stack, usage.spills, usage.losses) == (0, 0, ())
    found = instructions(kernel, tmp_path)
    assert sum(word.startswith(name) for word in found) % fewest == 0 < sum(word.startswith(name) for word in found)


def test_rounds_are_taken_in_turns() -> None:
    order: list[str] = []

    class Clock:
        def time(self, run: Callable[[], object]) -> float:
            before = len(order)
            run()
            return 5.0 * (len(order) - before)

    contenders = [Contender(name, "1", lambda name=name: order.append(name), error) for name, error in (("a", 0.0), ("b", 0.5))]  # type: ignore[misc]
    a, b = in_turns(Clock(), contenders, rounds=3)  # type: ignore[arg-type]
    assert (a.rounds, b.rounds, b.error) == ([5.0] * 3, [5.0] * 3, 0.5)
    turn = ["a"] * 5 + ["b"] * 5  # one that is not counted, and 20 ms of 5 each
    assert order == ["a", "a", "b", "b", *turn * 4]
    assert scaled(a, 0.5).rounds == [2.5] * 3


def test_a_session_on_the_gpu(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network is bound to arrays on the device, and compared with the CPU's."""
    monkeypatch.setattr(driver, "Driver", lambda: one)
    monkeypatch.setattr(segments, "LEAST_MACS", 0)
    model = digits()["int8"]
    x = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    contender = device_rows._session(one, model, x)
    assert contender.error <= 1e-5
    assert one.launched


# -- the command line -------------------------------------------------------------------------------------------------------
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(driver, "missing", lambda: "nothing is there")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    assert app.main(["--target", "cuda", "gemm"]) == 1
    assert capsys.readouterr().out.strip() == "target 'cuda' cannot be used: nothing is there"
    assert "torch" not in sys.modules


def test_names_are_of_their_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app.main(["--target", "cuda", "conv"])
    assert "of --target cuda: there are gemm, memory, resnet50" in capsys.readouterr().err


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    row = Result(
        "quantize", 0, [Measured("qrt", "1", [2.0, 1.0]), Measured("floor", "1", [0.5, 0.5])], rate=600.0, share=0.5, rate_unit="GB/s"
    )
    monkeypatch.setattr(app, "Gpu", EmulatedGpu)
    monkeypatch.setattr(app, "_on_gpu", tuple)
    monkeypatch.setattr(app, "DEVICE_BENCHMARKS", {"memory": lambda device, settings: iter([row])})
    assert app.main(["--target", "cuda", "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "gpu: emulated" in out
    assert "threads" not in out
    assert all(part in out for part in ("quantize", "1 / 1.5", "0.33", "GB/s", "600", "50%"))
    assert '"rate_unit": "GB/s"' in (tmp_path / "out.json").read_text()


# -- torch ------------------------------------------------------------------------------------------------------------------
def test_a_network_in_torch() -> None:
    torch = pytest.importorskip("torch")
    proto, x = cnn(), np.random.default_rng(0).standard_normal((2, 1, 28, 28), np.float32)
    with torch.inference_mode():
        found = torch_peer.convolutional(torch, "cpu", proto, torch.float32)(torch.from_numpy(x))
    (wanted,) = ort_session(proto.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_what_torch_is_not_told() -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[0, 1, 1, 0])
    with pytest.raises(Skipped, match="no Conv of these attributes"):
        torch_peer._operator(SimpleNamespace(nn=SimpleNamespace(functional=None)), node)


def test_a_product_in_torch() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x, w = random.integers(0, 256, (32, 64), np.uint8), random.integers(-127, 128, (64, 40), np.int8)
    found = torch_peer.product(torch, "cpu", x, w, None, 128)()
    np.testing.assert_array_equal(found.numpy(), (x.astype(np.int32) - 128) @ w.astype(np.int32))
