"""DevicePlan: a program of known shapes as one graph of launches on a GPU, recorded once and replayed for every run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qrt.jit.cuda import DeviceKernel
from qrt.ops.op import Array, Base, Boxes, Op, Operand, Ref
from qrt.ops.program import Program
from qrt.runtime.arena import place
from qrt.runtime.emission import Emitter, Packs, emit_program

__all__ = ["Device", "DevicePlan"]


class Device(Protocol):
    """What a plan needs of a GPU: see `qrt.jit.driver.Driver`."""

    cc: tuple[int, int]

    def tensor_map(self, address: int, rows: int, columns: int, row_bytes: int, box_rows: int) -> Array: ...

    def allocate(self, nbytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def upload(self, address: int, array: Array) -> None: ...

    def download(self, array: Array, address: int) -> None: ...

    def record(self, launches: Sequence[tuple[DeviceKernel, tuple[int, int], bytes]]) -> Any: ...

    def replay(self, graph: Any) -> None: ...


@dataclass
class _Launch:
    kernel: DeviceKernel
    grid: tuple[int, int]
    record: Array
    refs: list[tuple[str, Ref]]
    boxes: dict[str, Boxes]


class _Builder(Emitter):
    """The `DeviceSteps` that ops emit to."""

    parts = False

    def __init__(self, program: Program, packs: Packs, cc: tuple[int, int]) -> None:
        super().__init__(program, packs)
        self.cc = cc

    def launch(self, kernel: DeviceKernel, grid: tuple[int, int], **fields: int | float | Ref | Boxes) -> None:
        boxes = {name: value for name, value in fields.items() if isinstance(value, Boxes)}
        plain = {name: 0 if isinstance(value, Boxes) else value for name, value in fields.items()}
        self.steps.append(_Launch(kernel, grid, *self.filled(kernel.name, kernel.record, plain), boxes))

    def hand(self, op: Op, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        op.emit_device(self, inputs, outputs)


class DevicePlan:
    """A plan on `device`, whose memory it keeps until it is closed. Runs take turns.

    Making it raises UnsupportedOp where an op has no device kernel, DeviceError where the device refuses.
    """

    def __init__(self, program: Program, device: Device, packs: Packs) -> None:
        self._device, self._lock = device, threading.Lock()
        builder = _Builder(program, packs, device.cc)
        emit_program(program, builder)
        offsets, nbytes = place(builder.buffers)
        self._outputs = [program.specs[value] for value in program.outputs]
        self._places: list[int] = []
        arena = self._allocate(nbytes)
        bases = {
            Base.ARENA: [arena + offset for offset in offsets],
            Base.CONSTANT: [self._allocate(array.nbytes) for array in builder.constants],
            Base.INPUT: [self._allocate(program.specs[value].nbytes) for value in program.inputs],
            Base.OUTPUT: [self._allocate(spec.nbytes) for spec in self._outputs],
        }
        for address, array in zip(bases[Base.CONSTANT], builder.constants, strict=True):
            device.upload(address, array)
        for step in builder.steps:
            for name, ref in step.refs:
                step.record[name] = bases[ref.base][ref.index] + ref.offset
            for name, b in step.boxes.items():
                step.record[name] = self._describe(b, bases[b.ref.base][b.ref.index] + b.ref.offset)
        self._to, self._from = bases[Base.INPUT], bases[Base.OUTPUT]
        self._graph = device.record([(s.kernel, s.grid, s.record.tobytes()[: s.kernel.parameters]) for s in builder.steps])

    def _allocate(self, nbytes: int) -> int:
        self._places.append(self._device.allocate(nbytes))
        return self._places[-1]

    def _describe(self, boxes: Boxes, address: int) -> int:
        """The address of a tensor map of what lies at `address`."""
        made = self._device.tensor_map(address, boxes.rows, boxes.columns, boxes.row_bytes, boxes.box_rows)
        place = self._allocate(made.nbytes)
        self._device.upload(place, made)
        return place

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs for C-contiguous `inputs` of the planned shapes and dtypes."""
        outputs = [np.empty(spec.shape, spec.dtype) for spec in self._outputs]
        with self._lock:
            for address, array in zip(self._to, inputs, strict=True):
                self._device.upload(address, array)
            self._device.replay(self._graph)
            for array, address in zip(outputs, self._from, strict=True):
                self._device.download(array, address)
        return outputs

    def close(self) -> None:
        """Gives the device's memory back; the plan cannot run any more."""
        while self._places:
            self._device.free(self._places.pop())
