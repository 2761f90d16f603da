"""Program: typed calls over values of known shape. It knows no ONNX, and can be interpreted by NumPy alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qrt.core.errors import InvalidInput, ModelError, QrtError
from qrt.core.record import record
from qrt.ops.op import Array, Op, Spec, View

__all__ = ["Call", "Program", "interpret", "require_memory"]

_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(nbytes: int, what: str) -> None:
    """ModelError where `nbytes` are more than this machine's memory: the system would promise them and end the process later."""
    if nbytes > _MEMORY:
        raise ModelError(f"{what} takes {nbytes / 1e9:.3g} GB, and this machine has {_MEMORY / 1e9:.3g} GB of memory")


@record
class Call:
    """One op applied to values; `name` is the model's node it comes from."""

    op: Op
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    name: str


@dataclass
class Program:
    """Values are integers: indices of `specs`. `constants` holds those known before a run, `inputs` and `outputs` the
    rest of the interface, in order. Calls are in an order that can be executed."""

    specs: list[Spec] = field(default_factory=list)
    constants: dict[int, Array] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def value(self, spec: Spec) -> int:
        """A new value."""
        self.specs.append(spec)
        return len(self.specs) - 1

    def constant(self, array: Array) -> int:
        """A new value known before any run; the array is made C-contiguous and must not be changed afterwards."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        value = self.value(Spec(array.shape, array.dtype))
        self.constants[value] = array
        return value

    def roots(self) -> list[int]:
        """For each value, the value whose bytes it is: itself, or the root of what it views."""
        roots = list(range(len(self.specs)))
        for call in self.calls:
            if isinstance(call.op, View):
                roots[call.outputs[0]] = roots[call.inputs[0]]
        return roots

    def call(self, op: Op, inputs: Sequence[int], name: str) -> tuple[int, ...]:
        """Appends `op` applied to `inputs`; gives its outputs. Errors of shape inference name the node."""
        try:
            specs = op.infer([self.specs[i] for i in inputs])
            for spec in specs:
                require_memory(spec.nbytes, f"a value of shape {spec.shape}")
        except QrtError as error:
            raise type(error)(f"node {name!r}: {error}") from error
        outputs = tuple(self.value(spec) for spec in specs)
        self.calls.append(Call(op, tuple(inputs), outputs, name))
        return outputs


def interpret(program: Program, feeds: Sequence[Array]) -> list[Array]:
    """Runs a program by the ops' NumPy references: slow and obviously right. `feeds` and results are in program order."""
    values: dict[int, Array] = dict(program.constants)
    values.update(zip(program.inputs, feeds, strict=True))
    for call in program.calls:
        try:
            results = call.op.reference([values[i] for i in call.inputs])
        except InvalidInput as error:
            raise InvalidInput(f"node {call.name!r}: {error}") from error
        for index, result in zip(call.outputs, results, strict=True):
            if Spec(result.shape, result.dtype) != program.specs[index]:
                raise ModelError(f"node {call.name!r}: reference gave {result.dtype}{result.shape}, expected {program.specs[index]}")
            values[index] = result
    return [values[i] for i in program.outputs]
