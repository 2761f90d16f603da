"""Tables of codes, brought together: into one where they follow one another, and into the product before them.

What a program computes stays the same, bit for bit: only values that nobody else reads, or looks at, disappear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from qrt.ops.conv import Conv, Depthwise
from qrt.ops.gemm import Codes, Dense
from qrt.ops.op import Array, Op, Spec
from qrt.ops.program import Call, Program
from qrt.ops.quantization import Lut

__all__ = ["join_tables"]


def join_tables(program: Program, watched: Iterable[int] = ()) -> None:
    """Rewrites `program` in place. `watched`: values that have to be computed."""
    _Tables(program, watched).join()


class _Tables:
    def __init__(self, program: Program, watched: Iterable[int]) -> None:
        self.program = program
        self.calls: list[Call | None] = list(program.calls)
        self.makers = {value: position for position, call in enumerate(program.calls) for value in call.outputs}
        self.readers: dict[int, int] = {}
        for value in (*program.outputs, *watched, *(v for call in program.calls for v in call.inputs)):
            self.readers[value] = self.readers.get(value, 0) + 1

    def join(self) -> None:
        for position in range(len(self.calls)):
            self._settle(position)
        self.program.calls = [call for call in self.calls if call is not None]

    def _settle(self, position: int) -> None:
        """Joins the table at `position`, if there is one, with what makes its codes."""
        call = self.calls[position]
        table = self._table(call)
        if call is None or table is None:
            return
        before = self.makers.get(call.inputs[0])
        maker = self.calls[before] if before is not None else None
        if before is None or maker is None or self.readers[call.inputs[0]] != 1:
            return
        inner = self._table(maker)
        if inner is not None:
            constant = self.program.constant(table[inner.view(np.uint8)])
            self._become(before, None)
            self._become(position, Call(maker.op, (maker.inputs[0], constant), call.outputs, call.name))
            self._settle(position)
        elif maker.op.repeats:
            # Codes are looked up before they are repeated.
            spec = self.program.specs[maker.inputs[0]]
            looked = self.program.value(Spec(spec.shape, table.dtype))
            self.readers[looked] = 1
            self._become(before, Call(call.op, (maker.inputs[0], call.inputs[1]), (looked,), call.name))
            self._become(position, Call(maker.op, (looked, *maker.inputs[1:]), call.outputs, maker.name))
            self._settle(before)
        elif (op := _with_table(maker.op, table)) is not None:
            self._become(before, Call(op, maker.inputs, call.outputs, maker.name))
            self._become(position, None)

    def _become(self, position: int, call: Call | None) -> None:
        self.calls[position] = call
        if call is not None:
            self.makers.update(dict.fromkeys(call.outputs, position))

    def _table(self, call: Call | None) -> Array | None:
        """The table of a call that looks codes up in a constant."""
        return self.program.constants.get(call.inputs[1]) if call is not None and isinstance(call.op, Lut) else None


def _with_table(op: Op, table: Array) -> Op | None:
    """The product whose codes are looked up, if it gives codes."""
    if not isinstance(op, (Conv, Depthwise, Dense)) or not isinstance(op.epilogue, Codes) or table.dtype != np.uint8:
        return None
    first = op.epilogue.table
    return replace(op, epilogue=replace(op.epilogue, table=table if first is None else table[first]))
