"""Plan: a program of known shapes as a table of (kernel, record) over one slab, ready to run.

Building it validates everything native code will trust: from here on nothing is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qrt.core.errors import InvalidInput, KernelError
from qrt.core.target import Target
from qrt.jit import Kernel, cache_bytes
from qrt.jit.load import address
from qrt.ops.op import Array, Base, Op, Operand, Ref, Spec, refusal
from qrt.ops.program import Program, require_memory
from qrt.runtime.arena import ALIGNMENT, place
from qrt.runtime.emission import Emitter, Packs, Tap, emit_program
from qrt.runtime.kernels import JOB, STEP
from qrt.runtime.outputs import Outputs, start_of
from qrt.runtime.pages import room
from qrt.runtime.team import run_job

__all__ = ["Packs", "Plan", "Tap", "build"]

# Fields of a JOB, as words.
_BEGIN, _END, _CLOCK = (list(JOB.names or ()).index(name) for name in ("begin", "end", "clock"))

# Steps, about four blocks of a residual network, within which memory does not change hands: measured on ResNet-50, two threads, where 4
# steps gain 1 %, 8 and the whole network 2 %, 16 steps 4 %.
PAUSE = 16


@dataclass
class _Step:
    kernel: Kernel
    record: Array
    threads: int
    refs: list[tuple[str, Ref]]
    name: str
    rule: str = ""


class _Builder(Emitter):
    """The `Steps` that ops emit to."""

    def __init__(self, program: Program, target: Target, threads: int, packs: Packs) -> None:
        super().__init__(program, packs)
        self.target, self.threads = target, threads

    def step(self, kernel: Kernel, threads: int | None = None, **fields: int | float | Ref) -> None:
        record, refs = self.filled(kernel.name, kernel.record, fields)
        self.steps.append(_Step(kernel, record, min(threads or self.threads, self.threads), refs, self.current))

    def rule(self, text: str) -> None:
        self.steps[-1].rule = text

    def hand(self, op: Op, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        op.emit(self, inputs, outputs)


def build(program: Program, target: Target, threads: int, packs: Packs, taps: Sequence[int] = ()) -> Plan:
    """The plan of `program` for `target` and up to `threads` threads. `taps`: values that must stand in memory, whole,
    right after the step that makes them."""
    builder = _Builder(program, target, threads, packs)
    return _assemble(program, builder, emit_program(program, builder, taps))


def _laid_out(builder: _Builder) -> tuple[list[int], int]:
    """Where the builder's buffers lie in the slab, and its size. As long as they fit the threads' L2 caches, each stays with its core."""
    if builder.threads > 1:
        offsets, size = place(builder.buffers, PAUSE)
        if size <= builder.threads * cache_bytes(2):
            return offsets, size
    return place(builder.buffers)


def _assemble(program: Program, builder: _Builder, taps: list[Tap]) -> Plan:
    offsets, size = _laid_out(builder)
    require_memory(size, "one run")
    table = np.zeros(len(builder.steps), STEP)
    starts: list[int] = []
    total = 0
    for step in builder.steps:
        starts.append(total)
        total += -(-step.record.nbytes // ALIGNMENT) * ALIGNMENT
    blob = np.zeros(max(total, ALIGNMENT), np.uint8)
    moves: dict[tuple[Base, int], list[tuple[int, int]]] = {}
    for i, (step, start) in enumerate(zip(builder.steps, starts, strict=True)):
        fields = step.kernel.record.fields
        assert fields is not None
        for name, ref in step.refs:
            index, offset = (0, offsets[ref.index] + ref.offset) if ref.base is Base.ARENA else (ref.index, ref.offset)
            moves.setdefault((ref.base, index), []).append(((start + fields[name][1]) // 8, offset))
        blob[start : start + step.record.nbytes] = np.frombuffer(step.record.tobytes(), np.uint8)
        alone = step.threads == 1 and i + 1 < len(builder.steps) and builder.steps[i + 1].threads == 1
        table[i] = (0, start, step.threads, 0 if alone else 1)
    return Plan(
        target=builder.target,
        functions=[s.kernel for s in builder.steps],
        table=table,
        blob=blob,
        relocations=moves,
        arena_nbytes=size,
        offsets=offsets,
        constants=builder.constants,
        outputs=[program.specs[v] for v in program.outputs],
        threads=max((step.threads for step in builder.steps), default=1),  # a plan of small steps wakes nobody
        names=[s.name for s in builder.steps],
        rules={i: s.rule for i, s in enumerate(builder.steps) if s.rule},
        taps=taps,
    )


def _words(array: Array) -> memoryview:
    """The array's bytes as int64 words, each read and written several times faster than through a record's fields."""
    return array.view(np.uint8).data.cast("q")


class _Context:
    """One run's own memory: a slab, the outputs', and records whose addresses point into them and at the constants."""

    def __init__(self, plan: Plan) -> None:
        self.slab = room(plan.arena_nbytes)
        blob = room(plan.blob.nbytes)
        blob[:] = plan.blob
        self.words = _words(blob)
        self.outputs = Outputs(plan.outputs, [plan.relocations.get((Base.OUTPUT, i), ()) for i in range(len(plan.outputs))], self.words)
        for position, offset in plan.relocations.get((Base.ARENA, 0), ()):
            self.words[position] = offset + self.slab.ctypes.data
        for index, array in enumerate(plan.constants):
            for position, offset in plan.relocations.get((Base.CONSTANT, index), ()):
                self.words[position] = offset + array.ctypes.data
        self._table = plan.table.copy()
        self._table["record"] += blob.ctypes.data
        self._barrier = np.zeros(8, np.int64)
        self._clock = np.zeros(len(plan.table) + 1, np.int64)
        self._job = np.zeros(1, JOB)
        self._job["table"] = self._table.ctypes.data
        self._job["barrier"] = self._barrier.ctypes.data
        self._job["end"] = len(plan.table)
        self._job_words = _words(self._job)
        self._job_address = self._job.ctypes.data

    def execute(self, threads: int) -> None:
        """Runs every step."""
        if threads > 1:
            self._barrier[0] = 0
        run_job(self._job_address, threads)

    def execute_part(self, begin: int, end: int, threads: int) -> None:
        """Runs the steps begin … end − 1."""
        words = self._job_words
        whole = words[_END]
        words[_BEGIN], words[_END] = begin, end
        self.execute(threads)
        words[_BEGIN], words[_END] = 0, whole

    def execute_timed(self, threads: int) -> Array:
        """Runs every step. Gives the cycle counter before the first and after each."""
        self._job_words[_CLOCK] = self._clock.ctypes.data
        self.execute(threads)
        self._job_words[_CLOCK] = 0
        return self._clock.copy()


@dataclass
class Plan:
    """A table of kernel calls, frozen; `run` may be called from many threads at once.

    `functions`: the kernel of each step; their addresses are written into `table`, whose records are offsets into `blob`. `relocations`:
    for each base, the words of `blob` that are addresses relative to it, with their offsets: the slab's (index 0), a constant's, an
    input's or an output's. `rules`: for each step that may refuse what an input holds, what it must hold.
    """

    target: Target
    functions: list[Kernel]
    table: Array
    blob: Array
    relocations: dict[tuple[Base, int], list[tuple[int, int]]]
    arena_nbytes: int
    constants: list[Array]
    outputs: list[Spec]
    threads: int
    names: list[str]
    rules: dict[int, str] = field(default_factory=dict)
    offsets: list[int] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    _free: list[_Context] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kernels = [kernel.name for kernel in self.functions]
        self.table["kernel"] = [address(kernel, self.target) for kernel in self.functions]
        # Looked up once, as every run needs them: for each input, the words that get its address.
        self._reads = [(index, places) for (base, index), places in self.relocations.items() if base is Base.INPUT]
        self._refusals = [(self._word(step, "refused"), step) for step in self.rules]

    def _word(self, step: int, name: str) -> int:
        """Which word of the records is the field `name` of a step's."""
        fields = self.functions[step].record.fields
        if fields is None or name not in fields:
            raise KernelError(f"the record of {self.kernels[step]} has no field {name!r}")
        return (int(self.table["record"][step]) + fields[name][1]) // 8

    def run(
        self, inputs: Sequence[Array], tap: Callable[[int, Array], None] | None = None, clock: list[Array] | None = None
    ) -> list[Array]:
        """Outputs for C-contiguous `inputs` of the planned shapes and dtypes. InvalidInput where a step refuses what an input holds.

        `tap(value, array)` is called for each tapped value, with a view that is valid during the call. `clock` receives
        an int64 array: the cycle counter before the first step and after each.
        """
        try:
            context = self._free.pop()
        except IndexError:
            context = _Context(self)
        words = context.words
        for index, places in self._reads:
            start = start_of(inputs[index])
            for position, offset in places:
                words[position] = start + offset
        outputs = context.outputs.make()
        if tap is not None:
            self._run_tapped(context, inputs, outputs, tap)
        elif clock is not None:
            clock.append(context.execute_timed(self.threads))
        else:
            context.execute(self.threads)
        refused = self._take_refusal(context) if self._refusals else ""
        self._free.append(context)
        if refused:
            raise InvalidInput(refused)
        return outputs

    def _take_refusal(self, context: _Context) -> str:
        """What the first step that refused an input says of it, or nothing; the words that say so become 0 again."""
        said = ""
        for word, step in self._refusals:
            found = context.words[word]
            if found != 0:
                context.words[word] = 0
                said = said or f"node {self.names[step]!r}: {refusal(self.rules[step], found)}"
        return said

    def _run_tapped(self, context: _Context, inputs: Sequence[Array], outputs: Sequence[Array], tap: Callable[[int, Array], None]) -> None:
        done = 0
        for point in self.taps:
            context.execute_part(done, point.after, self.threads)
            done = point.after
            tap(point.value, self._view(context, point, inputs, outputs))
        context.execute_part(done, len(self.table), self.threads)

    def _view(self, context: _Context, point: Tap, inputs: Sequence[Array], outputs: Sequence[Array]) -> Array:
        if point.ref.base is Base.ARENA:
            start = self.offsets[point.ref.index] + point.ref.offset
            return context.slab[start : start + point.spec.nbytes].view(point.spec.dtype).reshape(point.spec.shape)
        arrays = {Base.INPUT: inputs, Base.OUTPUT: outputs, Base.CONSTANT: self.constants}[point.ref.base]
        return arrays[point.ref.index].reshape(point.spec.shape)
