"""Binding: inputs and outputs that stay where they are, on a GPU or not, in the manner of ONNX Runtime's io binding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qrt.core.errors import InvalidInput
from qrt.feeds import Contract, Shapes
from qrt.ops.op import Array, Spec
from qrt.runtime.arena import ALIGNMENT
from qrt.runtime.dlpack import CUDA, Seen, export, look

if TYPE_CHECKING:
    from qrt.runtime.device import DevicePlan
    from qrt.runtime.device_memory import Device, DeviceMemory, Held

__all__ = ["Binding", "DeviceArray", "stream_handle"]


class DeviceArray:
    """A result on the GPU: C-contiguous, in memory of its own, which is given back when nobody holds the array any more.

    Other libraries read it without a copy, through `__cuda_array_interface__` or DLPack.
    """

    def __init__(self, held: Held, spec: Spec, memory: DeviceMemory, stream: int | None) -> None:
        self._held, self._spec, self._memory, self._stream = held, spec, memory, stream

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return self._spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""
        return self._spec.dtype

    @property
    def _address(self) -> int:
        if not self._held.alive:
            raise InvalidInput("the memory of this array was given back: keep the array, or do not call free()")
        return self._held.address

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """Version 3. Work on it may still be under way on the stream that its binding was given."""
        where, stream = (self._address, False), self._stream
        return {"version": 3, "shape": self.shape, "typestr": self.dtype.str, "data": where, "strides": None, "stream": stream}

    def __dlpack_device__(self) -> tuple[int, int]:
        """CUDA, and the device's number."""
        return CUDA, self._memory.device.ordinal

    def __dlpack__(self, *, stream: int | None = None, max_version: object = None, dl_device: object = None, copy: object = None) -> object:
        """A capsule; `stream`, by default the legacy default stream, is made to wait for the array. Raises InvalidInput for a copy, and
        for another device."""
        if copy or (dl_device is not None and dl_device != self.__dlpack_device__()):
            raise InvalidInput("a result on the GPU is handed over where it is: numpy() copies it to the CPU")
        address = self._address
        if self._stream is not None and stream != -1:
            self._memory.device.order(self._stream, stream_handle(stream if stream is not None else 1))
        return export(address, self.shape, self.dtype, self.__dlpack_device__(), self._held)

    def numpy(self) -> Array:
        """A copy in the CPU's memory."""
        array = np.empty(self.shape, self.dtype)
        self._memory.device.download(array, self._address, self._stream)
        return array

    def free(self) -> None:
        """Gives the memory back now. Whoever took the array through one of the protocols must not touch it any more."""
        self._held.free()

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"


def stream_handle(stream: object) -> int:
    """The handle of a CUDA stream: an int (0 or 1: the legacy default stream, 2: the thread's), or an object with __cuda_stream__.

    Raises InvalidInput for anything else.
    """
    try:
        method = getattr(stream, "__cuda_stream__", None)
        handle = stream if method is None else tuple(method() if callable(method) else method)[1]
    except (TypeError, IndexError) as error:
        raise InvalidInput(f"stream is {stream!r}, whose __cuda_stream__ does not give a version and a handle") from error
    if isinstance(handle, bool) or not isinstance(handle, int) or not 0 <= handle < 1 << 64:
        raise InvalidInput(f"stream is {stream!r}: give a CUDA stream's handle as an int, or an object with __cuda_stream__")
    return handle or 1


# Runs all of a model on arrays, in the model's order; and finds, for the shapes of all inputs, the plan that is all of it, with the
# positions of its inputs and outputs among the model's.
Run = Callable[[Sequence[Array]], list[Array]]
Find = Callable[[Shapes], "tuple[DevicePlan, list[int], list[int]] | None"]


class Binding:
    """A session's inputs and outputs, bound once and used by each `run`. Made by `InferenceSession.bind`; for one thread at a time.

    Inputs are NumPy arrays, or arrays on the session's GPU that offer `__cuda_array_interface__` or DLPack, and are read in each run.
    """

    def __init__(
        self, contract: Contract, outputs: Sequence[str], memory: DeviceMemory | None, stream: object, run: Run, find: Find
    ) -> None:
        if stream is not None and memory is None:
            raise InvalidInput("a stream is given to a session on the CPU: leave it out, or make the session with target='cuda'")
        self._contract, self._names, self._memory, self._run, self._find = contract, list(outputs), memory, run, find
        self._stream = None if stream is None else stream_handle(stream)
        self._inputs: dict[str, Array | Seen] = {}
        self._bound: dict[str, Array | Seen | str] = {}
        self._results: list[Any] = []

    # -- binding ------------------------------------------------------------------------------------------------------------
    def bind_input(self, name: str, array: Any) -> None:
        """Feeds `array` to the input `name`. Raises InvalidInput for an unknown name and for a dtype, a memory layout or a device that
        does not fit."""
        what = f"input {name!r}"
        seen = self._seen(what, array)
        if seen is None:
            self._inputs[name] = self._contract.array(name, array)
        else:
            _check(what, seen, self._contract.dtype(name))
            self._inputs[name] = seen

    bind_cpu_input = bind_input

    def bind_output(self, name: str, to: Any = "cpu") -> None:
        """Says where the output `name` goes: "cpu" (a new NumPy array in each run, as for outputs that are not bound), "cuda" (a new
        DeviceArray), or an array, in the CPU's memory or the GPU's, that is written to. Raises InvalidInput."""
        what = f"output {name!r}"
        if name not in self._names:
            raise InvalidInput(f"no output is called {name!r}: there are {', '.join(map(repr, self._names))}")
        if isinstance(to, str):
            if to not in ("cpu", "cuda") or (to == "cuda" and self._memory is None):
                raise InvalidInput(f"{what} cannot go to {to!r}: the session runs on {'cpu' if self._memory is None else 'cuda and cpu'}")
            self._bound[name] = to
            return
        seen = self._seen(what, to)
        if seen is not None and (not seen.contiguous or seen.read_only):
            raise InvalidInput(f"{what}: the array on the GPU cannot be written to: give a C-contiguous one that is not read-only")
        if seen is None and (not isinstance(to, np.ndarray) or not to.flags.writeable):
            raise InvalidInput(f"{what} cannot go to a {type(to).__name__}: give a NumPy array that can be written, or one on the GPU")
        self._bound[name] = to if seen is None else seen

    def clear_binding_inputs(self) -> None:
        """Forgets all inputs."""
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        """Forgets where outputs go, and the results."""
        self._bound.clear()
        self._results.clear()

    def _seen(self, what: str, array: Any) -> Seen | None:
        """`array` if it is on a GPU, checked for being on the session's; None for one in the CPU's memory."""
        if isinstance(array, np.ndarray | np.generic | list | tuple):
            return None
        device = self._memory.device if self._memory is not None else None
        try:
            seen = look(array, self._stream or (device.stream if device else 1), device.ordinal if device else 0)
        except InvalidInput as error:
            raise InvalidInput(f"{what}: {error}") from error
        if seen is None:
            return None
        if seen.device[0] != CUDA:
            raise InvalidInput(f"{what} is on DLPack's device {seen.device}: give a NumPy array, or one on the session's GPU")
        if device is None:
            raise InvalidInput(f"{what} is on a GPU, and the session on the CPU: make it with target='cuda', or give a NumPy array")
        _check_place(what, seen, device)
        return seen

    # -- running ------------------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Runs the model on what is bound; `get_outputs` then gives the results.

        Without a stream it is done on return, and began after what the default stream had been given. On the caller's stream it may still
        be under way where inputs and outputs are on the GPU. Raises InvalidInput for inputs that are not bound, shapes that do not fit,
        and memory that is no longer there.
        """
        missing = [name for name in self._contract.names if name not in self._inputs]
        if missing:
            raise InvalidInput(f"nothing is bound to {', '.join(map(repr, missing))}: call bind_input first")
        inputs = [self._inputs[name] for name in self._contract.names]
        shapes = tuple(array.shape for array in inputs)
        self._contract.check_shapes(shapes)
        if self._memory is None:
            found, device = None, None
        else:
            device = self._memory.device
            for kind, bound in (("input", self._inputs.items()), ("output", self._bound.items())):
                for name, given in bound:
                    if isinstance(given, Seen):
                        _check_place(f"{kind} {name!r}", given, device)
            found = self._find(shapes)
            self._await(inputs, device)
        if found is None or self._memory is None:
            arrays = [self._fetched(array, device) for array in inputs]
            self._results = [self._delivered(name, result) for name, result in zip(self._names, self._run(arrays), strict=True)]
        else:
            self._run_bound(*found, inputs, self._memory)

    def _await(self, inputs: Sequence[Array | Seen], device: Device) -> None:
        """Lets the run begin after what makes its inputs: their streams, or, where they and the caller name none, the default stream."""
        if self._stream is None:
            device.order(1, None)
        for array in inputs:
            if isinstance(array, Seen) and array.stream is not None:
                device.order(array.stream, self._stream)

    def _run_bound(
        self, plan: DevicePlan, takes: list[int], gives: list[int], inputs: Sequence[Array | Seen], memory: DeviceMemory
    ) -> None:
        """One plan is all of the model: it reads and writes where arrays are."""
        from qrt.runtime.device_memory import Held  # here: the CPU needs nothing of it

        fed = [array.address if isinstance(array, Seen) else array for array in (inputs[index] for index in takes)]
        results: list[Any] = [None] * len(self._names)
        places: list[int | None] = [None] * len(plan.outputs)
        for index, (name, position) in enumerate(zip(self._names, gives, strict=True)):
            to, spec = self._bound.get(name), plan.outputs[position]
            if isinstance(to, str) and to == "cuda":
                results[index] = DeviceArray(Held(memory.device, spec.nbytes), spec, memory, self._stream)
                places[position] = results[index]._held.address
            elif isinstance(to, np.ndarray):
                _check_result(f"output {name!r}", spec, to.shape, to.dtype)
            elif isinstance(to, Seen):
                _check_result(f"output {name!r}", spec, to.shape, to.dtype)
                _check_apart(name, to, [array for array in (*self._inputs.values(), *self._bound.values()) if array is not to])
                results[index], places[position] = to.array, to.address
        made = plan.carry_out(fed, places, self._stream)
        for index, (name, position) in enumerate(zip(self._names, gives, strict=True)):
            array = made[position]
            if array is not None:
                results[index] = self._delivered(name, array)
        self._results = results

    def _fetched(self, array: Array | Seen, device: Device | None) -> Array:
        """`array` in the CPU's memory."""
        if not isinstance(array, Seen) or device is None:
            return array  # type: ignore[return-value]  # without a device, there are only arrays
        fetched = np.empty(array.shape, array.dtype)
        device.download(fetched, array.address, self._stream)
        return fetched

    def _delivered(self, name: str, result: Array) -> Any:
        """A result in the CPU's memory, where it is wanted."""
        to = self._bound.get(name, "cpu")
        if isinstance(to, str) and to == "cpu":
            return result
        spec = Spec(result.shape, result.dtype)
        if isinstance(to, np.ndarray):
            _check_result(f"output {name!r}", spec, to.shape, to.dtype)
            to[...] = result
            return to
        assert self._memory is not None
        device = self._memory.device
        if isinstance(to, Seen):
            _check_result(f"output {name!r}", spec, to.shape, to.dtype)
            device.upload(to.address, result, self._stream)
            return to.array
        from qrt.runtime.device_memory import Held

        held = Held(device, result.nbytes)
        device.upload(held.address, result, self._stream)
        return DeviceArray(held, spec, self._memory, self._stream)

    # -- results ------------------------------------------------------------------------------------------------------------
    def get_outputs(self) -> list[Any]:
        """The results of the last run, all of the model's in its order: NumPy arrays, DeviceArrays, and the arrays that were bound."""
        return list(self._results)

    def copy_outputs_to_cpu(self) -> list[Array]:
        """The results of the last run as NumPy arrays."""
        return [self._as_numpy(result) for result in self._results]

    def _as_numpy(self, result: Any) -> Array:
        if isinstance(result, np.ndarray):
            return result
        if isinstance(result, DeviceArray):
            return result.numpy()
        seen = next(to for to in self._bound.values() if isinstance(to, Seen) and to.array is result)
        return self._fetched(seen, self._memory.device if self._memory is not None else None)


def _check(what: str, seen: Seen, dtype: np.dtype[Any]) -> None:
    if seen.dtype != dtype:
        raise InvalidInput(f"{what} has dtype {seen.dtype}: the model takes {dtype}")
    if not seen.contiguous:
        raise InvalidInput(
            f"{what} of shape {seen.shape} is not C-contiguous, its strides are {seen.strides} bytes: make a contiguous copy"
        )


def _check_place(what: str, seen: Seen, device: Device) -> None:
    if seen.device[1] != device.ordinal:
        raise InvalidInput(f"{what} is on GPU {seen.device[1]}: the session is on GPU {device.ordinal}")
    if seen.address % ALIGNMENT and seen.nbytes:
        raise InvalidInput(f"{what} starts at {seen.address:#x}: kernels read memory that starts at a multiple of {ALIGNMENT}; make a copy")
    if seen.nbytes and not device.holds(seen.address, seen.nbytes):
        raise InvalidInput(f"{what}: its {seen.nbytes} bytes at {seen.address:#x} are not memory of the session's GPU: was it given back?")


def _check_apart(name: str, to: Seen, others: Sequence[object]) -> None:
    for other in others:
        if isinstance(other, Seen) and to.address < other.address + other.nbytes and other.address < to.address + to.nbytes:
            raise InvalidInput(f"output {name!r} shares memory with another array that is bound: give it memory of its own")


def _check_result(what: str, spec: Spec, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if (spec.shape, spec.dtype) != (shape, dtype):
        raise InvalidInput(f"{what} is {spec.dtype}{spec.shape}: it cannot go to an array of {dtype}{shape}")
