"""Plans as plain data and arrays of bytes, and back: what a compiled model's file holds of them.

Reading one checks every index and length, so that a damaged plan is an error. What it cannot check is what kernels make of their
records, and what their object code does: a plan is only to be read from a file that is trusted like code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from qrt.core.dtypes import dtype_of, is_number
from qrt.core.sections import Piece, Sections, check
from qrt.core.target import Target
from qrt.jit import Kernel, host_target, record_dtype
from qrt.jit.cache import unwrapped, wrapped
from qrt.jit.load import code_of, provide
from qrt.ops.op import Array, Base, Spec
from qrt.runtime.arena import ALIGNMENT
from qrt.runtime.kernels import RUNTIME, STEP
from qrt.runtime.plan import Plan

__all__ = ["Writer", "read_plan", "read_runtime", "read_specs", "write_specs"]

_BASES = list(Base)
_SOURCE = re.compile(r"qrt\.ops(\.[a-z0-9_]+)*\.cpu[a-z0-9_]*:[a-z0-9_]+")
_KINDS = frozenset({"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"})
_MAX_ARENA = 1 << 40


class Writer:
    """Collects plans for `target`; constants and kernels that they share are written once."""

    def __init__(self, target: Target) -> None:
        self.sections: list[Piece] = []
        self._target = target
        self._constants: dict[int, int] = {}
        self._objects: dict[Kernel, int] = {}

    def section(self, data: Piece) -> int:
        """The index of a new section."""
        self.sections.append(data)
        return len(self.sections) - 1

    def runtime(self) -> list[int]:
        """The sections of the object code of what runs plans."""
        return [self._object(kernel) for kernel in RUNTIME]

    def _object(self, kernel: Kernel) -> int:
        if kernel not in self._objects:
            self._objects[kernel] = self.section(wrapped(code_of(kernel, self._target)))
        return self._objects[kernel]

    def plan(self, plan: Plan) -> dict[str, Any]:
        """A plan without taps, as plain data that refers to sections."""
        positions = {kernel: i for i, kernel in enumerate(dict.fromkeys(plan.functions))}
        steps = [plan.table[name] for name in ("record", "threads", "meet")]
        table = np.column_stack([[positions[kernel] for kernel in plan.functions], *steps]) if plan.functions else np.zeros((0, 4))
        moves = [
            (_BASES.index(base), index, position, offset)
            for (base, index), places in plan.relocations.items()
            for position, offset in places
        ]
        for array in plan.constants:
            if id(array) not in self._constants:
                self._constants[id(array)] = self.section(array.reshape(-1).view(np.uint8).data)
        return {
            "arena": plan.arena_nbytes,
            "threads": plan.threads,
            "outputs": write_specs(plan.outputs),
            "names": plan.names,
            "rules": [[step, rule] for step, rule in plan.rules.items()],
            "kernels": [[*_write_kernel(kernel), self._object(kernel)] for kernel in positions],
            "constants": [self._constants[id(array)] for array in plan.constants],
            "table": self.section(table.astype("<i8").tobytes()),
            "records": self.section(plan.blob.tobytes()),
            "relocations": self.section(np.array(moves, "<i8").tobytes()),
        }


def _write_kernel(kernel: Kernel) -> list[Any]:
    fields = [[name, kernel.record[name].str[1:]] for name in kernel.record.names or ()]
    return [kernel.name, kernel.source, list(kernel.params), fields]


def write_specs(specs: Sequence[Spec]) -> list[Any]:
    """Specs as plain data."""
    return [[spec.dtype.name, list(spec.shape)] for spec in specs]


def read_specs(data: Any) -> list[Spec]:
    """Specs from plain data. Raises what `sections.damaged` catches."""
    specs = [Spec(tuple(shape), dtype_of(str(dtype))) for dtype, shape in data]
    for spec in specs:
        check(is_number(spec.dtype) and all(type(n) is int and n >= 0 for n in spec.shape), "a value has no dtype or shape")
        check(len(spec.shape) <= 32 and spec.nbytes <= _MAX_ARENA, "a value is too big")
    return specs


def read_plan(data: dict[str, Any], sections: Sections, inputs: Sequence[Spec], target: Target) -> Plan:
    """The plan that `data` describes, for `inputs`. Raises what `sections.damaged` catches; KernelError if a kernel does not load."""
    kernels = [_read_kernel(target, *row) for *row, _ in data["kernels"]]
    for kernel, (*_, code) in zip(kernels, data["kernels"], strict=True):
        provide(kernel, target, _read_object(sections, code))
    constants: list[Array] = [sections[index] for index in data["constants"]]
    outputs, arena, threads, names = read_specs(data["outputs"]), data["arena"], data["threads"], data["names"]
    check(type(arena) is int and 0 <= arena <= _MAX_ARENA, "its slab has no size")
    check(type(threads) is int and threads >= 1, "its number of threads is none")
    blob = sections[data["records"]]
    rows = sections.words(data["table"], 4)
    check(blob.size % ALIGNMENT == 0, "its records are cut off")
    check(isinstance(names, list) and len(names) == len(rows) and all(isinstance(name, str) for name in names), "its steps are miscounted")
    table = np.zeros(len(rows), STEP)
    functions: list[Kernel] = []
    addresses: set[int] = set()
    words = [[offset // 8 for kind, offset, *_ in (kernel.record.fields or {}).values() if kind == np.int64] for kernel in kernels]
    for i, (index, start, sharers, meet) in enumerate(rows.tolist()):
        check(0 <= index < len(kernels) and 1 <= sharers <= threads and meet in (0, 1), "a step is none")
        record = kernels[index].record
        check(start >= 0 and start % ALIGNMENT == 0 and start + record.itemsize <= blob.size, "a record lies outside of its records")
        addresses.update(start // 8 + word for word in words[index])
        table[i] = (0, start, sharers, meet)
        functions.append(kernels[index])
    room = {(Base.ARENA, 0): arena}
    room |= {(Base.CONSTANT, i): array.nbytes for i, array in enumerate(constants)}
    room |= {(Base.INPUT, i): spec.nbytes for i, spec in enumerate(inputs)}
    room |= {(Base.OUTPUT, i): spec.nbytes for i, spec in enumerate(outputs)}
    relocations: dict[tuple[Base, int], list[tuple[int, int]]] = {}
    for base, index, position, offset in sections.words(data["relocations"], 4).tolist():
        check(0 <= base < len(_BASES) and position in addresses, "a relocation is none")
        key = (_BASES[base], index)
        check(key in room and 0 <= offset <= room[key], "a record points outside of its buffer")
        relocations.setdefault(key, []).append((position, offset))
    refusing = [i for i, kernel in enumerate(functions) if "refused" in (kernel.record.names or ())]
    rules = {step: str(rule) for step, rule in data["rules"]}
    check(set(rules) <= set(refusing), "its rules are those of other steps")
    return Plan(target, functions, table, blob, relocations, arena, constants, outputs, threads, names, rules)


def read_runtime(data: list[int], sections: Sections) -> None:
    """Lets this process run plans by the code in the file: any machine that can run its plans can run it."""
    for kernel, code in zip(RUNTIME, data, strict=True):
        provide(kernel, host_target(), _read_object(sections, code))


def _read_object(sections: Sections, index: int) -> bytes:
    code = unwrapped(sections[index].tobytes())
    if code is None:
        raise ValueError("the object code of a kernel is damaged")
    return code


def _read_kernel(target: Target, name: str, source: str, params: list[Any], fields: list[list[str]]) -> Kernel:
    """A kernel of qrt's own: a file names no code but that of ops/**/cpu*.py."""
    check(_SOURCE.fullmatch(source) is not None and all(kind in _KINDS for _, kind in fields), "a kernel is none of qrt's")
    check(all(isinstance(param, int | float | str | bool) for param in params), "a kernel is none of qrt's")
    kernel = Kernel(name, record_dtype(*((str(field), kind) for field, kind in fields)), source, tuple(params))
    check(kernel.isa in target.ladder, "a kernel is for another target")
    return kernel
