"""Executable: a fused graph cut into stages, each a native program or a Python step, with a plan per input shape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qrt.core.errors import InvalidInput, QrtError, UnsupportedOp
from qrt.core.garbage import uncollected
from qrt.core.target import Target
from qrt.graph import Model, ir
from qrt.lower.counted import SuppressStep, is_counted, step_of
from qrt.lower.handlers import HANDLERS
from qrt.lower.known import computed, is_of, of_constants, with_constants
from qrt.lower.lowering import Constants, Lowering, NotConstant, NotNative
from qrt.lower.python_step import PythonStep
from qrt.lower.spelled import SPELLED
from qrt.lower.tables import join_tables
from qrt.ops.op import Array
from qrt.ops.program import Program
from qrt.runtime.clock import cycles
from qrt.runtime.plan import Packs, Plan, build
from qrt.runtime.whole import ClockFunction, Whole

if TYPE_CHECKING:
    from qrt.runtime.device import DeviceMemory, DevicePlan

__all__ = ["Executable", "TapFunction"]

TapFunction = Callable[[str, Array], None]

# Plans kept per stage; a server that sees more shapes than this plans the oldest again.
MAX_PLANS = 64
# Of what the plans of a model keep for one run each; a server that meets large images of ever new sizes would fill the machine.
MAX_SLAB_BYTES = 1 << 30
# An input of more elements than this is data, not a shape.
MAX_SHAPE_ELEMENTS = 64

_Names = dict[int, list[tuple[str, tuple[int, ...]]]]
_Step = PythonStep | SuppressStep
_Planned = tuple["Plan | DevicePlan", Program, _Names]


@dataclass
class _Native:
    """A run of nodes that one plan carries out. `by_value`: inputs whose contents decide shapes, so that plans are keyed
    by their contents as well."""

    nodes: list[ir.Node]
    inputs: list[ir.Value]
    outputs: list[ir.Value]
    plans: dict[object, _Planned] = field(default_factory=dict)
    by_value: set[ir.Value] = field(default_factory=set)


class Executable:
    """A model made runnable for one target, and for the device of `memory` where there is one: the CPU does then what that has no kernels
    for. `run` may be called from many threads at once.

    `taps`: names of values that a tapped run hands to the tap. `calls`: functions that carry nodes out, by the node's name. `why`: for each
    node that runs in Python, the reason.
    """

    def __init__(
        self,
        model: Model,
        target: Target,
        threads: int,
        taps: Sequence[str] = (),
        calls: Mapping[str, Callable[[Array], Array]] | None = None,
        memory: DeviceMemory | None = None,
    ) -> None:
        if memory is not None and taps:
            raise InvalidInput("values are tapped on the CPU only: leave out the target 'cuda', or QRT_TARGET")
        self.memory = memory
        self.model, self.target, self.threads = model, target, threads
        self.taps = frozenset(taps)
        self.calls = calls or {}
        self.packs = Packs()
        self.constants = Constants()
        self.why: dict[str, str] = {}
        self._lock = threading.RLock()
        # By shapes of the inputs: the short way of runs for which one plan is all of the model.
        self.wholes: dict[tuple[tuple[int, ...], ...], Whole] = {}
        self._nodes = list(model.graph)
        self._inputs = [(value, value.name or "") for value in model.graph.inputs]
        self._outputs = list(model.graph.outputs)
        self._stages = self._cut()

    # -- stages -----------------------------------------------------------------------------------------------------------
    def _cut(self) -> list[_Native | _Step]:
        """Cuts the nodes, in order, into stretches of native nodes and single Python nodes."""
        groups: list[list[ir.Node]] = []
        python: list[bool] = []
        self._nodes = [node for node in self._nodes if self._why_python(node) is None or not self._computed_once(node)]
        for node in self._nodes:
            reason = self._why_python(node)
            if reason is not None:
                self.why[node.name or node.op_type] = reason
                groups.append([node])
                python.append(True)
            elif groups and not python[-1]:
                groups[-1].append(node)
            else:
                groups.append([node])
                python.append(False)
        known = of_constants(self._nodes, self.why)
        needed = set(self._outputs)
        self._fresh: set[ir.Value] = set()  # what native stages give: arrays that nobody else holds
        stages: list[_Native | _Step] = []
        for nodes, is_python in reversed(list(zip(groups, python, strict=True))):
            if is_python:
                step = step_of(nodes[0], self.model, self.calls.get(nodes[0].name or ""), self.target, self.threads)
                needed.update(step.inputs)
                stages.append(step)
                continue
            nodes = with_constants(nodes, known)
            made = {v for node in nodes for v in node.outputs}
            uses = [v for node in nodes for v in node.inputs if v is not None]
            inputs = [v for v in dict.fromkeys(uses) if v not in made and v.const_value is None]
            outputs = [v for node in nodes for v in node.outputs if v in needed]
            needed.update(inputs)
            self._fresh.update(outputs)
            stages.append(_Native(nodes, inputs, outputs))
        return stages[::-1]

    def _computed_once(self, node: ir.Node) -> bool:
        """Whether a node without a kernel reads constants alone, and what it gives, if that is not too much, is a constant from now on."""
        names = {node.name, *(value.name for value in node.outputs)}
        if not is_of(node, set()) or not names.isdisjoint(self.taps | self.calls.keys()):
            return False
        found = computed(node, self.model)
        if found is None:
            return False
        for value, array in found.items():
            value.const_value = ir.tensor(array)
        self.why.pop(node.name or node.op_type, None)
        return True

    def _why_python(self, node: ir.Node) -> str | None:
        if node.name in self.why:
            return self.why[node.name]
        if (node.domain, node.op_type) not in HANDLERS:
            return "how many results it has depends on what they are" if is_counted(node) else "no kernel for this operator"
        return None

    # -- running ----------------------------------------------------------------------------------------------------------
    def run(self, feeds: Mapping[str, Array], tap: TapFunction | None = None, clock: ClockFunction | None = None) -> list[Array]:
        """The graph's outputs, in order, for `feeds`: each input's name to a C-contiguous array of its dtype and rank."""
        while True:
            try:
                results = self._run(feeds, tap, clock)
                break
            except _Recut as found:
                self._recut(found)
        stage = self._stages[0] if len(self._stages) == 1 else None
        if isinstance(stage, _Native) and not stage.by_value and self._fresh.issuperset(self._outputs):
            shapes = tuple([feeds[name].shape for _, name in self._inputs])
            if shapes not in self.wholes:
                with self._lock:
                    self.wholes[shapes] = self._whole(stage, feeds)
        return results

    def _whole(self, stage: _Native, feeds: Mapping[str, Array]) -> Whole:
        """The plan of the stage, which is all of the model."""
        plan, _, _ = self._plan(stage, [feeds[value.name or ""] for value in stage.inputs])
        fed = [value for value, _ in self._inputs]
        return Whole(plan, [fed.index(value) for value in stage.inputs], [stage.outputs.index(value) for value in self._outputs])

    def _recut(self, found: _Recut) -> None:
        """Cuts again around a node that turned out to need Python only when its shapes were known."""
        with self._lock:
            self.why[found.node.name or found.node.op_type] = found.reason
            self._stages = self._cut()

    def _run(self, feeds: Mapping[str, Array], tap: TapFunction | None, clock: ClockFunction | None) -> list[Array]:
        values: dict[ir.Value, Array] = {value: feeds[name] for value, name in self._inputs}
        if tap is not None:
            for value, array in values.items():
                if value.name in self.taps:
                    tap(value.name or "", array)
        for stage in self._stages:
            if not isinstance(stage, _Native):
                begin = cycles() if clock is not None else 0
                results = stage.run(values)
                if clock is not None:
                    clock([stage.node.name or stage.node.op_type], ["python"], np.array([begin, cycles()]))
                for value, array in zip(stage.outputs, results, strict=True):
                    values[value] = array
                    if tap is not None and value.name in self.taps:
                        tap(value.name, array)
                continue
            arrays = [values[v] for v in stage.inputs]
            plan, _, names = self._plan(stage, arrays)
            watch: list[Array] | None = [] if clock is not None else None
            results = plan.run(arrays, None if tap is None else _named(tap, names), watch)
            values.update(zip(stage.outputs, results, strict=True))
            if clock is not None and watch:
                clock(plan.names, plan.kernels, watch[0])
        return [values[v] if v in self._fresh else np.array(_known(v, values)) for v in self._outputs]

    def plans(self, feeds: Mapping[str, Array]) -> list[tuple[Plan | DevicePlan, Program]]:
        """The plans that a run on `feeds` walks: for inspection. Runs the model once."""
        found: list[tuple[Plan | DevicePlan, Program]] = []
        self.run(feeds)
        for stage in self._stages:
            if isinstance(stage, _Native):
                found += [(plan, program) for plan, program, _ in stage.plans.values()][-1:]
        return found

    def whole(self, feeds: Mapping[str, Array]) -> Whole:
        """The one plan that carries out the model on feeds like these, which are not run: only shapes and dtypes matter.

        Raises UnsupportedOp where one plan is not all of the model, or not for all feeds of these shapes.
        """
        while True:
            if self.why:
                node, reason = next(iter(self.why.items()))
                raise UnsupportedOp(
                    f"{self.model.name}: node {node!r} runs in Python ({reason}), so that the model cannot be compiled to a file"
                )
            stage = self._stages[0] if self._stages else None
            if not isinstance(stage, _Native) or not set(self._outputs) <= set(stage.outputs):
                raise UnsupportedOp(
                    f"{self.model.name} has an output that is one of its inputs or constants: it cannot be compiled to a file"
                )
            whole = None
            try:
                whole = self._whole(stage, feeds)
            except _Recut as found:
                self._recut(found)
                continue
            except QrtError:  # about contents that were not meant to be looked at, if they were
                if not stage.by_value:
                    raise
            if whole is None or stage.by_value:
                names = ", ".join(repr(value.name) for value in stage.inputs if value in stage.by_value)
                raise UnsupportedOp(f"{self.model.name}: shapes depend on what {names} holds: the model cannot be compiled to a file")
            return whole

    def _plan(self, stage: _Native, arrays: Sequence[Array]) -> _Planned:
        """The stage's plan for inputs like `arrays`, made at first sight of their shapes."""
        found = stage.plans.get(_key(stage, arrays))
        if found is not None:
            return found
        with self._lock:
            found = stage.plans.get(_key(stage, arrays))
            if found is None:
                with uncollected():
                    program, names = self._lower(stage, arrays)
                    found = (self._build(program, tuple(names)), program, names)
                dropped = self._make_room(stage, _slab_bytes(found[0]))
                stage.plans[_key(stage, arrays)] = found
                if dropped:
                    self.packs.drop_all_but(array for plan in self._plans() for array in plan.constants)
            return found

    def _make_room(self, stage: _Native, nbytes: int) -> bool:
        """Drops the oldest plans of the stage, as far as one more of `nbytes` asks for that. Says whether it did."""
        kept = sum(map(_slab_bytes, self._plans()))
        dropped = False
        while stage.plans and (len(stage.plans) >= MAX_PLANS or kept + nbytes > MAX_SLAB_BYTES):
            oldest, _, _ = stage.plans.pop(next(iter(stage.plans)))
            kept -= _slab_bytes(oldest)
            dropped = True
        if dropped:
            self.wholes.clear()
        return dropped

    def _plans(self) -> Iterator[Plan | DevicePlan]:
        """The plans that are kept."""
        for stage in self._stages:
            if isinstance(stage, _Native):
                yield from (plan for plan, _, _ in stage.plans.values())

    def _build(self, program: Program, taps: tuple[int, ...]) -> Plan | DevicePlan:
        if self.memory is None:
            return build(program, self.target, self.threads, self.packs, taps)
        from qrt.runtime.device import plan_mixed  # here, because most sessions need none of it

        return plan_mixed(program, self.memory, self.packs, lambda part: build(part, self.target, self.threads, self.packs))

    def close(self) -> None:
        """Gives a device's memory back; on a device, nothing can be run any more."""
        if self.memory is not None:
            self.memory.close()

    def _lower(self, stage: _Native, arrays: Sequence[Array]) -> tuple[Program, _Names]:
        """The stage's program for inputs like `arrays`, and the tapped values in it."""
        while True:
            low = Lowering(HANDLERS, self.constants)
            for value, array in zip(stage.inputs, arrays, strict=True):
                low.feed(value, array, value in stage.by_value)
            node = stage.nodes[0]
            try:
                for node in stage.nodes:
                    low.lower(node)
            except NotNative as reason:
                wanted = _origins(reason.value, stage, arrays) if isinstance(reason, NotConstant) else set()
                if wanted <= stage.by_value:
                    if node.domain != "" and node.op_type not in SPELLED:
                        raise UnsupportedOp(f"node {node.name!r} ({node.op_type}) has no kernel, nor another way: {reason}") from reason
                    raise _Recut(node, str(reason)) from reason
                stage.by_value |= wanted
                stage.plans.clear()
                continue
            names = low.tapped(self.taps)
            program = low.finish(stage.outputs)
            join_tables(program, names)
            return program, names


def _named(tap: TapFunction, names: _Names) -> Callable[[int, Array], None]:
    """The plan's view of `tap`: each value under each of its names, in logical layout."""

    def look(value: int, array: Array) -> None:
        for name, perm in names[value]:
            tap(name, array.transpose([perm.index(axis) for axis in range(len(perm))]))

    return look


def _slab_bytes(plan: Plan | DevicePlan) -> int:
    """What a run of the plan needs; those on a device share their memory."""
    return plan.arena_nbytes if isinstance(plan, Plan) else 0


def _known(value: ir.Value, values: Mapping[ir.Value, Array]) -> Array:
    """What `value` holds: computed, fed or constant."""
    return values[value] if value in values else value.const_value.numpy()  # type: ignore[union-attr]


def _key(stage: _Native, arrays: Sequence[Array]) -> object:
    """What a plan depends on: shapes and dtypes, and the contents of the inputs that decide shapes."""
    like = [(a.shape, a.dtype) for a in arrays]
    if not stage.by_value:
        return tuple(like)
    return tuple(like), *(a.tobytes() for v, a in zip(stage.inputs, arrays, strict=True) if v in stage.by_value)


def _origins(value: ir.Value | None, stage: _Native, arrays: Sequence[Array]) -> set[ir.Value]:
    """The stage's small integer inputs that `value` is computed from."""
    small = {v for v, a in zip(stage.inputs, arrays, strict=True) if a.dtype.kind in "iub" and a.size <= MAX_SHAPE_ELEMENTS}
    seen: set[ir.Value] = set()
    open_ = [value] if value is not None else []
    while open_:
        this = open_.pop()
        if this in seen:
            continue
        seen.add(this)
        producer = this.producer()
        if producer is not None and this not in small:
            open_ += [v for v in producer.inputs if v is not None]
    return seen & small


class _Recut(Exception):
    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason
