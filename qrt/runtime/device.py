"""DevicePlan: a program of known shapes on a GPU. Its launches between runs on the CPU are graphs, recorded once for the addresses they
meet and replayed for every run."""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qrt.core.errors import DeviceError, InvalidInput
from qrt.jit.cuda import DeviceKernel
from qrt.ops.op import Array, Base, Boxes, Op, Operand, Ref, Spec, View, refusal
from qrt.ops.program import Program
from qrt.runtime.arena import place
from qrt.runtime.clock import cycles
from qrt.runtime.device_memory import Device, DeviceMemory, Held
from qrt.runtime.emission import Emitter, Packs, emit_program
from qrt.runtime.plan import Plan
from qrt.runtime.segments import HostRun, check_launch, cut
from qrt.runtime.staging import Staging

__all__ = ["Device", "DeviceMemory", "DevicePlan", "plan_mixed"]

# Recordings that a plan keeps: bound inputs and outputs may come in turns.
MAX_RECORDINGS = 8

Addresses = dict[Base, Sequence[int] | Mapping[int, int]]


@dataclass
class _Launch:
    kernel: DeviceKernel
    grid: tuple[int, int]
    record: Array
    refs: list[tuple[str, Ref]]
    boxes: dict[str, Boxes]
    name: str

    @property
    def reads(self) -> list[Ref]:
        """All addresses in its record."""
        return [*(ref for _, ref in self.refs), *(boxes.ref for boxes in self.boxes.values())]


@dataclass
class _Host:
    """A run on the CPU; values that it reads and makes, each with its place on the device."""

    plan: Plan
    reads: list[tuple[int, Operand]]
    makes: list[tuple[int, Operand]]
    name: str


_Part = list[_Launch] | _Host


class _Builder(Emitter):
    """The `DeviceSteps` that ops emit to."""

    parts = False

    def __init__(self, program: Program, packs: Packs, cc: tuple[int, int]) -> None:
        super().__init__(program, packs)
        self.cc = cc
        self.rules: list[tuple[str, str]] = []  # for each refusal the node, and what its input must hold
        self.words = 0  # the constant that holds refusals: launches write it

    def launch(self, kernel: DeviceKernel, grid: tuple[int, int], **fields: int | float | Ref | Boxes) -> None:
        check_launch(kernel, grid, fields)
        boxes = {name: value for name, value in fields.items() if isinstance(value, Boxes)}
        plain = {name: 0 if isinstance(value, Boxes) else value for name, value in fields.items()}
        self.steps.append(_Launch(kernel, grid, *self.filled(kernel.name, kernel.record, plain), boxes, self.current))

    def refused(self, rule: str) -> Ref:
        if not self.rules:
            self.words = len(self.constants)
            self.constants.append(np.zeros(0, np.int64))
        self.rules.append((self.current, rule))
        self.constants[self.words] = np.zeros(len(self.rules), np.int64)
        return Ref(Base.CONSTANT, self.words, 8 * (len(self.rules) - 1))

    def hand(self, op: Op, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        if isinstance(op, HostRun):
            reads, makes = list(zip(op.given, inputs, strict=True)), list(zip(op.made, outputs, strict=True))
            self.steps.append(_Host(op.plan, reads, makes, self.current))
        else:
            op.emit_device(self, inputs, outputs)


class _Recording:
    """A plan's graphs for certain addresses, one for each of its runs of launches, and the tensor maps that they read."""

    def __init__(self, device: Device, parts: Sequence[_Part], at: Addresses) -> None:
        self._device, self._at = device, at
        self._maps: list[Held] = []
        self.graphs: list[int] = []
        self._release = weakref.finalize(self, _destroy, device, self.graphs)
        self._release.atexit = False
        for part in parts:
            if not isinstance(part, _Host):
                self.graphs.append(device.record([self._placed(launch) for launch in part]))

    def _placed(self, launch: _Launch) -> tuple[DeviceKernel, tuple[int, int], bytes]:
        record = launch.record.copy()
        for name, ref in launch.refs:
            record[name] = self._address(ref)
        for name, boxes in launch.boxes.items():
            record[name] = self._describe(boxes)
        return launch.kernel, launch.grid, record.tobytes()[: launch.kernel.parameters]

    def _address(self, ref: Ref) -> int:
        return self._at[ref.base][ref.index] + ref.offset

    def _describe(self, boxes: Boxes) -> int:
        """The address of a tensor map."""
        made = self._device.tensor_map(self._address(boxes.ref), boxes.rows, boxes.columns, boxes.row_bytes, boxes.box_rows)
        self._maps.append(Held(self._device, made.nbytes))
        self._device.upload(self._maps[-1].address, made)
        return self._maps[-1].address

    def free(self) -> None:
        self._release()
        for held in self._maps:
            held.free()


def _destroy(device: Device, graphs: Sequence[int]) -> None:
    for graph in graphs:
        device.destroy(graph)


class DevicePlan:
    """A plan on `device`, whose memory it keeps until it is closed, or with others in `memory`. Runs take turns.

    `program` may hold HostRuns. Making it raises UnsupportedOp where an op has no device kernel, DeviceError where the device refuses.
    """

    def __init__(self, program: Program, device: Device, packs: Packs, memory: DeviceMemory | None = None) -> None:
        self.memory = memory if memory is not None else DeviceMemory(device)
        self._device = device
        builder = _Builder(program, packs, device.cc)
        emit_program(program, builder)
        self._offsets, self._arena_nbytes = place(builder.buffers)
        self._parts = _parted(builder.steps)
        self.names = [part.name if isinstance(part, _Host) else f"{part[0].name} … {part[-1].name}" for part in self._parts]
        self.kernels = [f"cpu: {len(p.plan.kernels)} steps" if isinstance(p, _Host) else f"cuda: {len(p)} launches" for p in self._parts]
        self.inputs = [program.specs[value] for value in program.inputs]
        self.outputs = [program.specs[value] for value in program.outputs]
        roots = program.roots()
        self._input_values, self._output_values = list(program.inputs), [roots[value] for value in program.outputs]
        self._launched = {roots[v] for c in program.calls if not isinstance(c.op, View | HostRun) for v in (*c.inputs, *c.outputs)}
        self._crossing = _crossing(self._parts, self._input_values, self._output_values, program)
        read = {ref.index for step in builder.steps if isinstance(step, _Launch) for ref in step.reads if ref.base is Base.CONSTANT}
        self._constants = {index: self.memory.constant(builder.constants[index]) for index in sorted(read)}
        self._rules, self._words = builder.rules, builder.words
        self._copies: dict[tuple[Base, int], Held] = {}
        self._staging: Staging | None = None
        self._recordings: OrderedDict[tuple[int, ...], _Recording] = OrderedDict()

    @property
    def constants(self) -> list[Array]:
        """What it reads that no run changes, on the device and in its runs on the CPU."""
        hosts = [part.plan for part in self._parts if isinstance(part, _Host)]
        return [*(held.array for held in self._constants.values()), *(array for plan in hosts for array in plan.constants)]

    def run(
        self, inputs: Sequence[Array], tap: Callable[[int, Array], None] | None = None, clock: list[Array] | None = None
    ) -> list[Array]:
        """Outputs for C-contiguous `inputs` of the planned shapes and dtypes. InvalidInput where a step on the CPU refuses what it gets.

        `clock` receives an int64 array: the cycle counter before the first part and after each. Nothing is tapped.
        """
        times: list[int] | None = None if clock is None else []
        outputs = self.carry_out(inputs, [None] * len(self.outputs), None, times)
        if clock is not None:
            clock.append(np.array(times, np.int64))
        return [output for output in outputs if output is not None]

    def carry_out(
        self, inputs: Sequence[Array | int], outputs: Sequence[int | None], stream: int | None, times: list[int] | None = None
    ) -> list[Array | None]:
        """Runs on `stream` with inputs that are arrays, or addresses on the device; gives the outputs that get no address.

        Returns before the device is done where neither an output nor the CPU has to be waited for and `stream` is the caller's.
        """
        memory, device = self.memory, self._device
        with memory.lock:
            memory.check_open()
            at, recording = self._recorded(inputs, outputs)  # which may wait for the run before
            if memory.pending:
                device.follow(stream)
            try:
                results = self._run(inputs, outputs, at, recording, stream, times)
                memory.pending = stream is not None and None not in outputs
                if memory.pending:
                    device.mark(stream)
                else:
                    device.wait(stream)
                    self._check_refusals()
            except BaseException:
                with contextlib.suppress(DeviceError):  # what was launched still uses the arena
                    device.wait(stream)
                raise
        return results

    def _run(
        self,
        inputs: Sequence[Array | int],
        outputs: Sequence[int | None],
        at: Addresses,
        recording: _Recording,
        stream: int | None,
        times: list[int] | None,
    ) -> list[Array | None]:
        device = self._device
        host: dict[int, Array] = {}
        if times is not None:
            times.append(cycles())
        for value, array in zip(self._input_values, inputs, strict=True):
            if not isinstance(array, int):
                host[value] = array
                self._send(value, array, at, stream)
        graphs = iter(recording.graphs)
        for part in self._parts:
            if isinstance(part, _Host):
                self._run_host(part, host, at, stream)
            else:
                device.replay(next(graphs), stream)
            if times is not None:
                device.wait(stream)
                times.append(cycles())
        self._bring([value for value, wanted in zip(self._output_values, outputs, strict=True) if wanted is None], host, at, stream)
        return [self._result(index, host, wanted, stream) for index, wanted in enumerate(outputs)]

    def _check_refusals(self) -> None:
        """Raises InvalidInput for the first input that a launch refused; the words that say so become 0 again."""
        if not self._rules:
            return
        words, address = np.empty(len(self._rules), np.int64), self._constants[self._words].address
        self._device.download(words, address)
        if words.any():
            self._device.upload(address, np.zeros_like(words))
            node, rule = self._rules[first := int(np.flatnonzero(words)[0])]
            raise InvalidInput(f"node {node!r}: {refusal(rule, int(words[first]))}")

    def _run_host(self, part: _Host, host: dict[int, Array], at: Addresses, stream: int | None) -> None:
        """A run on the CPU: what it reads is brought there, what it makes is sent if launches read it."""
        self._bring([value for value, _ in part.reads], host, at, stream)
        made = part.plan.run([host[value] for value, _ in part.reads])
        for (value, _), array in zip(part.makes, made, strict=True):
            host[value] = array
            self._send(value, array, at, stream)

    # -- values that cross ------------------------------------------------------------------------------------------------
    def _rooms(self) -> dict[int, Array]:
        """Page-locked memory for values that both the CPU and launches touch: made for the first run that needs it, if there is any."""
        if self._staging is None:
            touched = {value: spec for value, (_, spec) in self._crossing.items() if value in self._launched and spec.nbytes}
            self._staging = Staging(self._device, touched)
        return self._staging.rooms

    def _send(self, value: int, array: Array, at: Addresses, stream: int | None) -> None:
        """Sends a value to the device, if launches touch it; `array` may change once this returns."""
        if value not in self._launched:
            return
        ref, _ = self._crossing[value]
        address, room = at[ref.base][ref.index], self._rooms().get(value)
        if room is None:
            self._device.upload(address, array, stream)
            return
        if self.memory.pending:  # a run may still be on its way that reads this room
            self.memory.settle()
        room[...] = array
        self._device.send(address, room, stream)

    def _bring(self, values: Sequence[int], host: dict[int, Array], at: Addresses, stream: int | None) -> None:
        """Brings values to the CPU that are not there; in page-locked memory they are there until the next run."""
        waits = False
        for value in values:
            if value in host:
                continue
            (ref, spec), room = self._crossing[value], self._rooms().get(value)
            if room is None:
                host[value] = np.empty(spec.shape, spec.dtype)
                self._device.download(host[value], at[ref.base][ref.index], stream)
            else:
                host[value], waits = room, True
                self._device.fetch(room, at[ref.base][ref.index], stream)
        if waits:
            self._device.wait(stream)

    def _result(self, index: int, host: Mapping[int, Array], wanted: int | None, stream: int | None) -> Array | None:
        """Output `index`, unless it is `wanted` on the device, where it then is."""
        value = self._output_values[index]
        if wanted is None:
            array = host[value].reshape(self.outputs[index].shape)
            return array.copy() if value in self._rooms() else array
        if value in host and value not in self._launched:
            self._device.upload(wanted, host[value], stream)
        return None

    # -- addresses ------------------------------------------------------------------------------------------------------------
    def _recorded(self, inputs: Sequence[Array | int], outputs: Sequence[int | None]) -> tuple[Addresses, _Recording]:
        """Where everything is in a run with these inputs and outputs, and the graphs for that."""
        arena = self.memory.arena(self._arena_nbytes)
        begins = [x if isinstance(x, int) else self._copy(Base.INPUT, index) for index, x in enumerate(inputs)]
        ends = [y if y is not None else self._copy(Base.OUTPUT, index) for index, y in enumerate(outputs)]
        at: Addresses = {
            Base.ARENA: [arena + offset for offset in self._offsets],
            Base.CONSTANT: {index: held.address for index, held in self._constants.items()},
            Base.INPUT: begins,
            Base.OUTPUT: ends,
        }
        key = (arena, *begins, *ends)
        if key not in self._recordings:
            while len(self._recordings) >= MAX_RECORDINGS:
                self.memory.settle()
                self._recordings.popitem(last=False)[1].free()
            self._recordings[key] = _Recording(self._device, self._parts, at)
        self._recordings.move_to_end(key)
        return at, self._recordings[key]

    def _copy(self, base: Base, index: int) -> int:
        """Memory on the device for an input or output that is an array in the CPU's; none for one that only the CPU touches."""
        values, specs = (self._input_values, self.inputs) if base is Base.INPUT else (self._output_values, self.outputs)
        if values[index] not in self._launched:
            return 0
        if (base, index) not in self._copies:
            self._copies[base, index] = Held(self._device, specs[index].nbytes)
        return self._copies[base, index].address

    def close(self) -> None:
        """Gives the device's memory back, that of the plans that share it too; they cannot run any more."""
        self.memory.close()
        self.release()

    def release(self) -> None:
        """Gives back what is this plan's alone."""
        for recording in self._recordings.values():
            recording.free()
        for held in self._copies.values():
            held.free()
        if self._staging is not None:
            self._staging.free()


def plan_mixed(program: Program, memory: DeviceMemory, packs: Packs, on_cpu: Callable[[Program], Plan]) -> DevicePlan:
    """The plan of `program` in `memory`, with what the device has no kernels for planned by `on_cpu`."""
    return DevicePlan(cut(program, memory.device.cc, on_cpu), memory.device, packs, memory)


def _crossing(parts: Sequence[_Part], inputs: Sequence[int], outputs: Sequence[int], program: Program) -> dict[int, tuple[Ref, Spec]]:
    """The values that the CPU may touch, and where they are on the device."""
    found = {value: (Ref(Base.INPUT, index), program.specs[value]) for index, value in enumerate(inputs)}
    found |= {value: (Ref(Base.OUTPUT, index), program.specs[value]) for index, value in enumerate(outputs)}
    hosts = [part for part in parts if isinstance(part, _Host)]
    crossing = {value: (operand.ref, operand.spec) for part in hosts for value, operand in (*part.reads, *part.makes)}
    return crossing | found


def _parted(steps: Sequence[_Launch | _Host]) -> list[_Part]:
    """The launches between runs on the CPU as one list each."""
    parts: list[_Part] = []
    for step in steps:
        if isinstance(step, _Host):
            parts.append(step)
        elif parts and not isinstance(parts[-1], _Host):
            parts[-1].append(step)
        else:
            parts.append([step])
    return parts
