"""Inputs and outputs that stay on the GPU, emulated: who waits for whom, what is handed over, and what is refused."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from device.sessions import Emulation, Foreign
from graphs import make

import qrt
from qrt.binding import DeviceArray
from qrt.ops.op import Op
from qrt.ops.reduction import CumSum
from qrt.runtime.dlpack import export, look

ADD = "(float[N, 3] x, float[N, 3] r) => (float[N, 3] y, float[N, 3] z) { y = Add(x, r) z = Neg(x) }"
X, R = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 10, np.float32)


@pytest.fixture
def session(emulation: Emulation) -> qrt.InferenceSession:
    return qrt.InferenceSession(make(ADD), target="cuda", num_threads=1)


def copies(emulation: Emulation) -> list[tuple[object, ...]]:
    return [word for word in emulation.device.noted if word[0] in ("upload", "download", "send", "fetch")]


class Tensor:
    """What another library has on the device, by DLPack alone."""

    def __init__(self, foreign: Foreign, device: tuple[int, int] = (2, 0)) -> None:
        self.foreign, self.on, self.asked = foreign, device, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.on

    def __dlpack__(self, stream: int | None = None) -> object:
        self.asked.append(stream)
        array = self.foreign.like
        return export(self.foreign.address, array.shape, array.dtype, self.on, self.foreign)


def test_nothing_is_copied(session: qrt.InferenceSession, emulation: Emulation) -> None:
    """Inputs by both protocols, an output that is written where the caller wants it, and one that is new."""
    device = emulation.device
    x, r, y = Foreign(device, X), Tensor(Foreign(device, R)), Foreign(device, np.zeros_like(X))
    binding = session.bind()
    binding.bind_input("x", x)
    binding.bind_input("r", r)
    binding.bind_output("y", y)
    binding.bind_output("z", "cuda")
    for scale in (1, 2):
        device.upload(x.address, X * np.float32(scale))
        device.noted.clear()
        session.run_with_iobinding(binding)
        assert not copies(emulation)
        assert ("order", 1, None) in device.noted  # after the default stream, and done on return
        assert device.noted[-1] == ("wait", None)
        given, z = binding.get_outputs()
        assert given is y
        np.testing.assert_array_equal(y.numpy(), X * scale + R)
        np.testing.assert_array_equal(z.numpy(), -X * scale)
        for found, wanted in zip(binding.copy_outputs_to_cpu(), (X * scale + R, -X * scale), strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert r.asked == [device.stream]


def test_on_the_callers_stream(session: qrt.InferenceSession, emulation: Emulation) -> None:
    """The run is under way on return: the next one, wherever, waits for it, and so does who takes the result."""
    device = emulation.device
    stream = SimpleNamespace(__cuda_stream__=lambda: (0, 0x5151))
    binding = session.bind(stream)
    binding.bind_input("x", Foreign(device, X, stream=2))
    binding.bind_input("r", Foreign(device, R))
    binding.bind_output("y", "cuda")
    binding.bind_output("z", "cuda")
    device.noted.clear()
    binding.run()
    words = [word for word in device.noted if word[0] != "record"]
    assert words == [("order", 2, 0x5151), ("replay", 0x5151), ("mark", 0x5151)]
    y, _ = binding.get_outputs()
    assert y.__cuda_array_interface__["stream"] == 0x5151
    device.noted.clear()
    session.run(None, {"x": X, "r": R})
    assert device.noted[0] == ("follow", None)
    device.noted.clear()
    session.run(None, {"x": X, "r": R})
    assert ("follow", None) not in device.noted
    device.noted.clear()
    y.__dlpack__(stream=7)
    y.__dlpack__()
    y.__dlpack__(stream=-1)
    assert device.noted == [("order", 0x5151, 7), ("order", 0x5151, 1)]


def test_memory_moves_only_when_nothing_runs(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger shape moves the arena, and old recordings are thrown away: what is under way on the caller's stream comes first."""
    session = qrt.InferenceSession(make("(float[N, 3] x) => (float[N, 3] y) { a = Softmax(x) b = Neg(a) y = Softmax(b) }"), target="cuda")
    binding = session.bind(0x5151)
    binding.bind_output("y", "cuda")

    def run(rows: int) -> list[tuple[object, ...]]:
        binding.bind_input("x", Foreign(emulation.device, np.ones((rows, 3), np.float32)))
        emulation.device.noted.clear()
        binding.run()
        return emulation.device.noted

    settled = [("follow", None), ("wait", None)]
    run(2)
    assert settled[0] not in run(2)
    assert run(200)[:2] == settled
    for _ in range(7):
        assert settled[0] not in run(200)
    assert run(200)[:2] == settled  # the ninth recording
    assert len(emulation.device.graphs) <= 2 + 8


def test_some_of_it_on_the_cpu(session: qrt.InferenceSession, emulation: Emulation) -> None:
    device, y = emulation.device, np.empty_like(X)
    binding = session.io_binding()
    binding.bind_cpu_input("x", X.tolist())
    binding.bind_input("r", Foreign(device, R))
    binding.bind_output("y", y)
    binding.run()
    given, z = binding.get_outputs()
    assert given is y
    np.testing.assert_array_equal(y, X + R)
    np.testing.assert_array_equal(z, -X)


def test_a_model_of_several_stages(emulation: Emulation) -> None:
    """One plan is not all of it: what is bound on the device passes through the CPU's memory."""
    text = "(float[N, 3] x) => (float[N, 3] y, float[N, 3] z) { a = Neg(x) p = Det(square) y = Mul(a, p) z = Abs(y) }"
    session = qrt.InferenceSession(make(text, square=np.float32([[2, 0], [0, 1]])), target="cuda")
    x, y = Foreign((device := emulation.device), X), Foreign(device, np.zeros_like(X))
    binding = session.bind()
    binding.bind_input("x", x)
    binding.bind_output("y", y)
    binding.bind_output("z", "cuda")
    for _ in range(2):
        binding.run()
        np.testing.assert_array_equal(y.numpy(), -2 * X)
        np.testing.assert_array_equal(binding.get_outputs()[1].numpy(), np.abs(2 * X))


def test_results_that_the_cpu_makes(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs on the device that only the CPU reads, outputs there that only it makes."""
    monkeypatch.setattr(CumSum, "emit_device", Op.emit_device)
    text = "(float[N, 3] x) => (float[N, 3] y, float[N, 3] z) { y = CumSum(x, axis) z = Neg(y) }"
    session = qrt.InferenceSession(make(text, axis=np.int64(1)), target="cuda")
    y, z = (Foreign(emulation.device, np.zeros_like(X)) for _ in range(2))
    binding = session.bind()
    binding.bind_input("x", Foreign(emulation.device, X))
    binding.bind_output("y", y)
    binding.bind_output("z", z)
    binding.run()
    np.testing.assert_array_equal(y.numpy(), np.cumsum(X, 1))
    np.testing.assert_array_equal(z.numpy(), -np.cumsum(X, 1))


def test_on_the_cpu() -> None:
    session, y = qrt.InferenceSession(make(ADD), num_threads=1), np.empty_like(X)
    binding = session.bind()
    binding.bind_input("x", X)
    binding.bind_input("r", R)
    binding.bind_output("y", y)
    binding.run()
    np.testing.assert_array_equal(y, X + R)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[1], -X)
    with pytest.raises(qrt.InvalidInput, match="a stream is given to a session on the CPU"):
        session.bind(5)
    with pytest.raises(qrt.InvalidInput, match="cannot go to 'cuda'"):
        binding.bind_output("z", "cuda")
    interface = {"version": 3, "shape": (2, 3), "typestr": "<f4", "data": (1 << 40, False)}
    with pytest.raises(qrt.InvalidInput, match="input 'x' is on a GPU, and the session on the CPU"):
        binding.bind_input("x", SimpleNamespace(__cuda_array_interface__=interface))


def test_a_result_lives_as_long_as_anybody_holds_it(session: qrt.InferenceSession, emulation: Emulation) -> None:
    binding = session.bind()
    binding.bind_input("x", X)
    binding.bind_input("r", R)
    binding.bind_output("y", "cuda")
    binding.run()
    y = binding.get_outputs()[0]
    address, device = y.__cuda_array_interface__["data"][0], emulation.device
    capsule = y.__dlpack__(stream=1)
    binding.run()  # gives another array
    assert binding.get_outputs()[0].__cuda_array_interface__["data"][0] != address
    np.testing.assert_array_equal(y.numpy(), X + R)
    del y
    gc.collect()
    assert address in device.sizes  # the capsule holds it
    del capsule
    gc.collect()
    assert address not in device.sizes
    binding.clear_binding_outputs()
    session.close()
    del binding, session
    gc.collect()


def test_a_result_after_its_session(session: qrt.InferenceSession) -> None:
    binding = session.bind()
    binding.bind_input("x", X)
    binding.bind_input("r", R)
    binding.bind_output("z", "cuda")
    binding.run()
    z = binding.get_outputs()[1]
    session.close()
    np.testing.assert_array_equal(z.numpy(), -X)
    assert repr(z) == "DeviceArray(shape=(2, 3), dtype=float32)"
    z.free()
    for use in (z.numpy, z.__dlpack__, lambda: z.__cuda_array_interface__):
        with pytest.raises(qrt.InvalidInput, match="was given back"):
            use()


class Differentiable:
    """As torch's tensors, while gradients flow through them."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise RuntimeError("it requires a gradient")


REFUSED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "dtype": ("input 'x' has dtype float64: the model takes float32", lambda d: Foreign(d, X.astype(np.float64))),
    "layout": ("input 'x' of shape .* is not C-contiguous", lambda d: Foreign(d, X, strides=(4, 8))),
    "alignment": ("input 'x' starts at .*multiple of 64", lambda d: shifted(d, 4)),
    "freed": ("input 'x': its 24 bytes at .* are not memory of the session's GPU: was it given back", lambda d: freed(d)),
    "end": ("are not memory of the session's GPU", lambda d: Foreign(d, X, shape=(1000, 3))),
    "device": ("input 'x' is on GPU 1: the session is on GPU 0", lambda d: Tensor(Foreign(d, X), (2, 1))),
    "host": (r"input 'x' is on DLPack's device \(1, 0\)", lambda d: Tensor(Foreign(d, X), (1, 0))),
    "mask": ("makes no sense: it has a mask", lambda d: Foreign(d, X, mask=1)),
    "typestr": ("input 'x': what it says of its memory makes no sense", lambda d: Foreign(d, X, typestr="nonsense")),
    "shape": ("its shape is", lambda d: Foreign(d, X, shape=(-2, 3))),
    "strides": ("its strides are", lambda d: Foreign(d, X, strides=(4,))),
    "address": ("its address is", lambda d: Foreign(d, X, data=(None, False))),
    "stream": ("its stream is 0", lambda d: Foreign(d, X, stream=0)),
    "no dict": ("makes no sense", lambda d: SimpleNamespace(__cuda_array_interface__=7)),
    "capsule": ("makes no sense", lambda d: SimpleNamespace(__dlpack__=lambda stream: object(), __dlpack_device__=lambda: (2, 0))),
    "gradient": ("makes no sense: it requires a gradient", lambda d: Differentiable()),
    "no array": ("input 'x' is a object: give a NumPy array", lambda d: object()),
}


def shifted(device: Any, by: int) -> Foreign:
    foreign = Foreign(device, np.zeros((4, 3), np.float32))
    foreign.interface |= {"data": (foreign.address + by, False), "shape": (2, 3)}
    return foreign


def freed(device: Any) -> Foreign:
    foreign = Foreign(device, X)
    device.free(foreign.address)
    return foreign


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_bound(session: qrt.InferenceSession, emulation: Emulation, what: str) -> None:
    message, given = REFUSED[what]
    with pytest.raises(qrt.InvalidInput, match=message):
        session.bind().bind_input("x", given(emulation.device))


def test_what_cannot_be_run(session: qrt.InferenceSession, emulation: Emulation) -> None:
    device = emulation.device
    binding = session.bind()
    with pytest.raises(qrt.InvalidInput, match="no input is called 'w'"):
        binding.bind_input("w", X)
    with pytest.raises(qrt.InvalidInput, match="no output is called 'w'"):
        binding.bind_output("w")
    with pytest.raises(qrt.InvalidInput, match="nothing is bound to 'x', 'r'"):
        binding.run()
    x, y = Foreign(device, X), Foreign(device, np.zeros_like(X))
    binding.bind_input("x", x)
    binding.bind_input("r", Foreign(device, R[:1]))
    with pytest.raises(qrt.InvalidInput, match="axis 0 is 'N', 1 here and 2 in 'x'"):
        binding.run()
    binding.bind_input("r", R)
    for to, message in (
        (Foreign(device, np.zeros((3, 3), np.float32)), r"output 'y' is float32\(2, 3\): it cannot go to an array of float32\(3, 3\)"),
        (np.zeros((2, 3)), "it cannot go to an array of float64"),
        (x, "output 'y' shares memory with another array"),
    ):
        binding.bind_output("y", to)
        with pytest.raises(qrt.InvalidInput, match=message):
            binding.run()
    binding.bind_output("y", y)
    binding.bind_output("z", y)
    with pytest.raises(qrt.InvalidInput, match="shares memory with another"):
        binding.run()
    binding.bind_output("z")
    binding.run()
    device.free(y.address)  # behind the binding's back
    with pytest.raises(qrt.InvalidInput, match=r"output 'y': its 24 bytes .* was it given back"):
        binding.run()
    binding.clear_binding_inputs()
    with pytest.raises(qrt.InvalidInput, match="nothing is bound"):
        binding.run()


def test_outputs_that_cannot_be_written(session: qrt.InferenceSession, emulation: Emulation) -> None:
    binding, device = session.bind(), emulation.device
    locked = np.zeros_like(X)
    locked.flags.writeable = False
    for to, message in (
        ("gpu", "output 'y' cannot go to 'gpu'"),
        (locked, "give a NumPy array that can be written"),
        ([1.0], "cannot go to a list"),
        (Foreign(device, X, data=(device.allocate(24), True)), "cannot be written to"),
        (Foreign(device, X, strides=(4, 8)), "cannot be written to"),
    ):
        with pytest.raises(qrt.InvalidInput, match=message):
            binding.bind_output("y", to)


@pytest.mark.parametrize("stream", [True, -1, 1.5, "0", SimpleNamespace(__cuda_stream__=lambda: (0,)), SimpleNamespace(__cuda_stream__=3)])
def test_what_is_no_stream(session: qrt.InferenceSession, stream: object) -> None:
    with pytest.raises(qrt.InvalidInput, match="stream is"):
        session.bind(stream)


# -- DLPack as others speak it ---------------------------------------------------------------------------------------------------
class OnHost:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **how: object) -> object:
        return export(self.array.ctypes.data, self.array.shape, self.array.dtype, (1, 0), self.array)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.int64, np.bool_, np.float16])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_numpy_takes_our_capsules_and_we_take_its(dtype: type, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    taken = np.from_dlpack(OnHost(array))  # type: ignore[arg-type]
    assert (taken.shape, taken.dtype, taken.ctypes.data) == (array.shape, array.dtype, array.ctypes.data)
    seen = look(array, 0, 0)
    assert seen is not None
    assert (seen.shape, seen.dtype, seen.device, seen.nbytes, seen.contiguous) == (shape, array.dtype, (1, 0), array.nbytes, True)
    if array.size:
        assert seen.address == array.ctypes.data


def test_what_a_capsule_keeps_alive() -> None:
    class Owner:
        pass

    import weakref

    owner = Owner()
    alive = weakref.ref(owner)
    array = np.ones(3, np.float32)
    capsule = export(array.ctypes.data, (3,), array.dtype, (1, 0), owner)
    del owner
    gc.collect()
    assert alive() is not None
    del capsule  # which nobody took
    gc.collect()
    assert alive() is None


def test_strides() -> None:
    array = np.zeros((4, 6), np.float32)
    for part, contiguous in ((array[::2], False), (array[:, :3], False), (array[1:3], True), (array[:1, ::2], False), (array.T, False)):
        seen = look(part, 0, 0)
        assert seen is not None
        assert seen.contiguous == contiguous == part.flags.c_contiguous
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert isinstance(DeviceArray.shape, property)
