"""Which calls of a program a GPU carries out, and the program in which the runs of calls between them are one call each, for the CPU.

A run is as long as it can be. Where a GPU carries out a program only in parts, values are copied to the CPU and back, so a run of device
calls that multiplies little is left to the CPU as well.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qrt.core.errors import KernelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit.cuda import DeviceKernel
from qrt.ops.op import Array, Base, Boxes, Op, Operand, Ref, Spec, Steps, View
from qrt.ops.program import Call, Program
from qrt.runtime.plan import Plan

__all__ = ["HOPPER", "HostRun", "Verdict", "check_launch", "cut", "judge"]

# The compute capability that calls are judged for where there is no device.
HOPPER = (9, 0)

# Multiply-accumulates for which a run of device calls beside runs on the CPU is worth its two copies. Reasoned, not measured.
LEAST_MACS = 1 << 20

# Blocks along the axes of a grid ("CUDA C++ Programming Guide", table "Technical Specifications per Compute Capability").
MOST_BLOCKS = (2**31 - 1, 65535)

# Counts of 32 bits leave kernels room to round them up to whole tiles and blocks.
MOST_COUNTED = 2**31 - 4096


def check_launch(kernel: DeviceKernel, grid: tuple[int, int], fields: Mapping[str, int | float | Ref | Boxes]) -> None:
    """Raises UnsupportedOp for more blocks than a launch may have, and for counts that the kernel's record has no room for."""
    if any(blocks > most for blocks, most in zip(grid, MOST_BLOCKS, strict=True)):
        raise UnsupportedOp(f"{kernel.name} would need {grid} blocks: a launch has at most {MOST_BLOCKS}")
    for name, value in fields.items():
        if kernel.record[name] == np.int32 and not isinstance(value, Ref | Boxes) and not -(2**31) <= value < MOST_COUNTED:
            raise UnsupportedOp(f"{kernel.name} counts {name!r} in 32 bits: {value} is too much")


@dataclass
class Verdict:
    """Where a call runs. `run`: the number of its run, counted from 0 through all of them; None for a view, which is no work.

    `why`: why it is not on the device. `kernels`: those that its device form launches.
    """

    on_device: bool = False
    run: int | None = None
    why: str = ""
    kernels: list[str] = field(default_factory=list)


class _Probe:
    """The `DeviceSteps` that only listens: nothing is packed."""

    def __init__(self, cc: tuple[int, int]) -> None:
        self.cc = cc
        self.kernels: list[str] = []

    def launch(self, kernel: DeviceKernel, grid: tuple[int, int], **fields: int | float | Ref | Boxes) -> None:
        check_launch(kernel, grid, fields)
        self.kernels.append(kernel.name)

    def packed(self, source: Array, how: Hashable, make: Callable[[], Array]) -> Ref:
        return Ref(Base.CONSTANT, 0)

    def scratch(self, nbytes: int) -> Ref:
        return Ref(Base.ARENA, 0)

    def refused(self, rule: str) -> Ref:
        return Ref(Base.CONSTANT, 0)


def judge(program: Program, cc: tuple[int, int] = HOPPER) -> list[Verdict]:
    """For each call of `program`, where it runs beside a device of the compute capability `cc`. Needs no device."""
    verdicts = [_probed(program, call, cc) for call in program.calls]
    work = [(call, verdict) for call, verdict in zip(program.calls, verdicts, strict=True) if not isinstance(call.op, View)]
    if not all(verdict.on_device for _, verdict in work):
        for run in _runs(work):
            macs = sum(_macs(program, call) for call, _ in run)
            if run[0][1].on_device and macs < LEAST_MACS:
                for _, verdict in run:
                    verdict.on_device, verdict.why = False, f"a run of {macs} multiply-accumulates is not worth two copies"
    for number, run in enumerate(_runs(work)):
        for _, verdict in run:
            verdict.run = number
    return verdicts


def _probed(program: Program, call: Call, cc: tuple[int, int]) -> Verdict:
    """Whether the call has kernels on the device, and which."""
    probe = _Probe(cc)
    inputs, outputs = ([_operand(program, value) for value in values] for values in (call.inputs, call.outputs))
    try:
        call.op.emit_device(probe, inputs, outputs)
    except UnsupportedOp as lacking:
        return Verdict(why=str(lacking))
    return Verdict(on_device=True, kernels=probe.kernels)


def _operand(program: Program, value: int) -> Operand:
    spec = program.specs[value]
    return Operand(spec, Ref(Base.ARENA, value), spec.strides, program.constants.get(value))


def _macs(program: Program, call: Call) -> int:
    return call.op.macs([program.specs[v] for v in call.inputs], [program.specs[v] for v in call.outputs])


def _runs(work: Iterable[tuple[Call, Verdict]]) -> list[list[tuple[Call, Verdict]]]:
    """The longest runs of calls that follow each other in the same place."""
    runs: list[list[tuple[Call, Verdict]]] = []
    for item in work:
        if not runs or runs[-1][0][1].on_device != item[1].on_device:
            runs.append([])
        runs[-1].append(item)
    return runs


@record(eq=False)
class HostRun(Op):
    """A run of calls on the CPU. `given`, `made`: its inputs and outputs, as values of the program around it."""

    plan: Plan
    specs: tuple[Spec, ...]
    given: tuple[int, ...]
    made: tuple[int, ...]

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return self.specs

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(self.plan.run(inputs))

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        raise KernelError("a run of calls on the CPU stands only in programs for a device")


def cut(program: Program, cc: tuple[int, int], plan: Callable[[Program], Plan]) -> Program:
    """The same values and results; calls that `judge` leaves to the CPU gathered into HostRuns, which `plan` plans."""
    verdicts = judge(program, cc)
    if all(verdict.on_device for verdict in verdicts):
        return program
    whole = Program(program.specs, program.constants, [], program.inputs, program.outputs)
    gatherer = _Gatherer(program)
    host: list[Call] = []
    views: list[Call] = []

    def close() -> None:
        if host:
            op = gatherer.gather(host, plan)
            whole.calls.append(Call(op, op.given, op.made, f"{host[0].name} … {host[-1].name}"))
        whole.calls.extend(views)  # what views the results of a run comes after it
        host.clear()
        views.clear()

    for call, verdict in zip(program.calls, verdicts, strict=True):
        if verdict.run is None:
            views.append(call)
        elif verdict.on_device:
            close()
            whole.calls.append(call)
        else:
            host.append(call)
    close()
    return whole


class _Gatherer:
    """Makes programs of runs of calls. What crosses their borders are whole values: views are made again where they are needed."""

    def __init__(self, program: Program) -> None:
        self.program, self.roots = program, program.roots()
        self.views = {call.outputs[0]: call for call in program.calls if isinstance(call.op, View)}
        self.readers: dict[int, list[Call]] = {}
        for call in program.calls:
            if not isinstance(call.op, View):
                for value in call.inputs:
                    self.readers.setdefault(self.roots[value], []).append(call)
        self.results = {self.roots[value] for value in program.outputs}

    def gather(self, calls: Sequence[Call], plan: Callable[[Program], Plan]) -> HostRun:
        """The run of `calls`."""
        part, known, reads = Program(), dict[int, int](), list[int]()

        def bring(value: int) -> int:
            if value not in known:
                known[value] = new = part.value(self.program.specs[value])
                if value in self.program.constants:
                    part.constants[new] = self.program.constants[value]  # the very array: packs know it by that
                elif value in self.views:
                    view = self.views[value]
                    part.calls.append(Call(view.op, (bring(view.inputs[0]),), (new,), view.name))
                else:
                    part.inputs.append(new)
                    reads.append(value)
            return known[value]

        for call in calls:
            inputs = tuple(bring(value) for value in call.inputs)
            for value in call.outputs:
                known[value] = part.value(self.program.specs[value])
            part.calls.append(Call(call.op, inputs, tuple(known[value] for value in call.outputs), call.name))
        inside = {id(call) for call in calls}
        makes = [
            value
            for call in calls
            for value in call.outputs
            if value in self.results or any(id(reader) not in inside for reader in self.readers.get(value, ()))
        ]
        part.outputs = [known[value] for value in makes]
        return HostRun(plan(part), tuple(part.specs[v] for v in part.outputs), tuple(reads), tuple(makes))
