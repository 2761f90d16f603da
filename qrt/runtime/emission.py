"""What any plan begins with: the ops of a program emit steps, and values get buffers that live as long as they are needed."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qrt.core.errors import KernelError
from qrt.core.record import record
from qrt.ops.op import Array, Base, Op, Operand, Ref, Spec
from qrt.ops.program import Call, Program
from qrt.runtime.arena import Buffer
from qrt.runtime.pages import Shelf
from qrt.runtime.places import places_of
from qrt.runtime.shared import shared

__all__ = ["Emitter", "Packs", "Tap", "emit_program"]


class Packs:
    """Packed constants, made once per model and shared by its plans. What several sessions pack alike lies in memory once."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, Hashable], tuple[Array, Array]] = {}
        self._shelf = Shelf()
        self._lock = threading.Lock()

    def get(self, source: Array, how: Hashable, make: Callable[[], Array]) -> Array:
        """The packing `how` of `source`, from `make()` the first time."""
        with self._lock:
            found = self._made.get((id(source), how))
            if found is None:
                packed = shared(make(), self._shelf.put)
                # The source stays referenced: an id belongs to one array only while that array lives.
                found = self._made[id(source), how] = (source, packed)
            return found[1]

    def drop_all_but(self, used: Iterable[Array]) -> None:
        """Lets go of what is none of `used`: the tables of shapes whose plans are gone."""
        kept = {id(packed) for packed in used}
        with self._lock:
            self._made = {key: made for key, made in self._made.items() if id(made[1]) in kept}

    @property
    def nbytes(self) -> int:
        """Bytes of packed constants."""
        return sum(packed.nbytes for _, packed in self._made.values())


@record
class Tap:
    """A value to look at while a plan runs: after step `after`, at `ref`."""

    value: int
    after: int
    ref: Ref
    spec: Spec


class Emitter(ABC):
    """What ops emit to, whatever runs their steps: buffers, constants, records.

    `parts`: whether ops are asked to write into parts of values.
    """

    parts = True

    def __init__(self, program: Program, packs: Packs) -> None:
        self.program, self.packs = program, packs
        self.steps: list[Any] = []
        self.buffers: list[Buffer] = []
        self.constants: list[Array] = []
        self._constant_index: dict[int, int] = {}
        self._open_scratch: list[int] = []
        self.current = ""

    # -- what ops call ------------------------------------------------------------------------------------------------
    def packed(self, source: Array, how: Hashable, make: Callable[[], Array]) -> Ref:
        return self.constant(self.packs.get(source, how, make))

    def scratch(self, nbytes: int) -> Ref:
        self.buffers.append(Buffer(nbytes, len(self.steps), len(self.steps)))
        self._open_scratch.append(len(self.buffers) - 1)
        return Ref(Base.ARENA, len(self.buffers) - 1)

    # -- what plans call ------------------------------------------------------------------------------------------------
    @abstractmethod
    def hand(self, op: Op, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        """Lets the op append its steps."""

    def filled(self, kernel: str, kind: np.dtype[np.void], fields: Mapping[str, int | float | Ref]) -> tuple[Array, list[tuple[str, Ref]]]:
        """A kernel's record with all fields but its addresses, and those."""
        names = kind.names or ()
        if set(fields) != set(names):
            odd = sorted(set(fields) ^ set(names))
            raise KernelError(f"node {self.current!r}: record of {kernel} wants {list(names)}; missing or unknown: {odd}")
        record = np.zeros((), kind)
        refs = []
        for name, value in fields.items():
            if isinstance(value, Ref):
                refs.append((name, value))
            else:
                record[name] = value
        return record, refs

    def constant(self, array: Array) -> Ref:
        index = self._constant_index.get(id(array))
        if index is None:
            index = self._constant_index[id(array)] = len(self.constants)
            self.constants.append(array)
        return Ref(Base.CONSTANT, index)

    def emit(self, call: Call, operands: dict[int, Operand]) -> None:
        self.current = call.name
        self.hand(call.op, [operands[i] for i in call.inputs], [operands[i] for i in call.outputs])
        for index in self._open_scratch:
            self.buffers[index].last = len(self.steps) - 1
        self._open_scratch.clear()


def emit_program(program: Program, builder: Emitter, taps: Sequence[int] = ()) -> list[Tap]:
    """Lets every call emit its steps, with its values in buffers that share memory where they may."""
    places = places_of(program, taps, builder.parts)
    refs: dict[int, Ref] = {}
    for index, value in enumerate(program.inputs):
        refs[places[value].root] = Ref(Base.INPUT, index)
    for value, array in program.constants.items():
        if places[value].root == value:
            refs[value] = builder.constant(array)
    for index, value in enumerate(program.outputs):
        if places[value].root in refs:
            raise KernelError(f"output {index} of the program has no buffer of its own")
        refs[places[value].root] = Ref(Base.OUTPUT, index)

    operands: dict[int, Operand] = {}
    tapped: list[Tap] = []

    def operand(value: int) -> Operand:
        place = places[value]
        if place.root not in refs:
            builder.buffers.append(Buffer(program.specs[place.root].nbytes, len(builder.steps), len(builder.steps)))
            refs[place.root] = Ref(Base.ARENA, len(builder.buffers) - 1)
        return Operand(program.specs[value], refs[place.root] + place.start, place.strides, program.constants.get(value))

    for value in program.inputs:  # what only renames the axes of an input lives in it
        if value in taps:
            tapped.append(Tap(value, 0, refs[places[value].root], program.specs[value]))
    for call in program.calls:
        for value in (*call.inputs, *call.outputs):
            operands[value] = operand(value)
        builder.emit(call, operands)
        for value in (*call.inputs, *call.outputs):
            ref = refs[places[value].root]
            if ref.base is Base.ARENA:
                builder.buffers[ref.index].last = max(len(builder.steps) - 1, 0)
        for value in call.outputs:
            if value in taps:
                tapped.append(Tap(value, len(builder.steps), refs[places[value].root], program.specs[value]))
    return tapped
