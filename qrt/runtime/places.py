"""Where values lie: which share memory, and which are parts of others.

A view is its source under another shape. A slice is a part of its source, if whoever reads it can read there. An input of a concatenation
lies in its part of the result from the start, if whoever makes it can write there and whoever else reads it can read there (`Op.writes`,
`Op.reads`), so that nothing is copied. A result takes over the memory of an operand that dies, where the op allows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from qrt.core.record import record
from qrt.ops.op import View
from qrt.ops.program import Call, Program
from qrt.ops.strides import is_contiguous, viewed

__all__ = ["Place", "places_of"]


@record
class Place:
    """In the memory of the value `root`, `start` bytes behind its beginning, with `strides` in elements."""

    root: int
    start: int
    strides: tuple[int, ...]


def places_of(program: Program, taps: Sequence[int] = (), parts: bool = True) -> list[Place]:
    """The place of each value. Values of `taps` stand whole right after the call that makes them; `parts`: whether any may be a part."""
    roots = program.roots()
    places = [Place(root, 0, spec.strides) for root, spec in zip(roots, program.specs, strict=True)]
    if parts:
        _Parts(program, roots, places, taps).place()
    _share_in_place(program, places)
    return places


class _Parts:
    """Puts inputs of concatenations into their parts of the results, and leaves slices where they are."""

    def __init__(self, program: Program, roots: list[int], places: list[Place], taps: Sequence[int]) -> None:
        self.program, self.roots, self.places = program, roots, places
        self.makers: dict[int, Call] = {}
        self.readers: dict[int, list[tuple[Call, int]]] = {}
        self.family: dict[int, list[int]] = {}
        for value, root in enumerate(roots):
            self.family.setdefault(root, []).append(value)
        for call in program.calls:
            if isinstance(call.op, View):
                continue
            for index, value in enumerate(call.inputs):
                self.readers.setdefault(roots[value], []).append((call, index))
            self.makers.update(dict.fromkeys(call.outputs, call))
        self.results = {roots[value] for value in program.outputs}
        # What has a place of its own: given by others, read by others, or watched.
        self.fixed = self.results | {roots[value] for value in (*program.inputs, *program.constants, *taps)}

    def place(self) -> None:
        """From the last concatenation to the first: a result that is a part itself has its place before its own parts are placed."""
        from qrt.ops.movement import Concat, Slice  # here: a start from a kept plan places nothing, and needs no op

        for call in reversed(self.program.calls):
            if isinstance(call.op, Concat):
                begin = 0
                for index, value in enumerate(call.inputs):
                    self._join(call, index, call.op.axis, begin)
                    begin += self.program.specs[value].shape[call.op.axis]
        for call in self.program.calls:
            if isinstance(call.op, Slice):
                self._cut(call, *call.op.walk(self.program.specs[call.inputs[0]].shape, self.places[call.inputs[0]].strides))

    def _cut(self, slicing: Call, strides: Sequence[int], start: int) -> None:
        """Leaves the result of a slice where its input lies, if all that read it can read there. The caller's arrays end where they end."""
        specs, source, root = self.program.specs, self.places[slicing.inputs[0]], slicing.outputs[0]
        outside = self.results | {self.roots[value] for value in (*self.program.inputs, *self.program.constants)}
        if root in self.fixed or self.places[root].root != root or source.root in outside or specs[root].size == 0 or min(strides) < 1:
            return
        found = {v: viewed(specs[root].shape, strides, specs[v].shape) for v in self.family[root]}
        walks = {v: walk for v, walk in found.items() if walk is not None}
        if len(walks) == len(found) and self._read(self.readers.get(root, []), walks):
            for v, walk in walks.items():
                self.places[v] = Place(source.root, source.start + start * specs[root].dtype.itemsize, walk)

    def _join(self, concat: Call, index: int, axis: int, begin: int) -> None:
        """Places input `index` of the concatenation at its part of the result, which begins at `begin` of `axis`, if that can be."""
        specs, value = self.program.specs, concat.inputs[index]
        whole, root = self.places[concat.outputs[0]], self.roots[value]
        if root in self.fixed or self.places[root].root != root or specs[value].size == 0:
            return
        start = whole.start + begin * whole.strides[axis] * specs[value].dtype.itemsize
        family = self.family[root]
        strides = [viewed(specs[value].shape, whole.strides, specs[v].shape) for v in family]
        walks = {v: walk for v, walk in zip(family, strides, strict=True) if walk is not None}
        if len(walks) == len(family) and self._fits(concat, index, root, walks, whole.root in self.results):
            for v, walk in walks.items():
                self.places[v] = Place(whole.root, start, walk)

    def _fits(self, concat: Call, index: int, root: int, walks: dict[int, tuple[int, ...]], is_result: bool) -> bool:
        """Whether the maker of `root` can write, and all its readers read, with these strides."""
        specs, maker = self.program.specs, self.makers[root]
        if is_contiguous(specs[root].shape, walks[root]):
            return True
        others = [(call, k) for call, k in self.readers[root] if (call, k) != (concat, index)]
        # An output's memory ends where it ends; kernels that read past the end of a row copy such a value first, whole.
        if maker.outputs[0] != root or not maker.op.writes(specs[root], walks[root]) or (others and is_result):
            return False
        return self._read(others, walks)

    def _read(self, readers: Sequence[tuple[Call, int]], walks: dict[int, tuple[int, ...]]) -> bool:
        """Whether all `readers` can read values with these strides."""
        for call, k in readers:
            spec, walk = self.program.specs[call.inputs[k]], walks[call.inputs[k]]
            if not is_contiguous(spec.shape, walk) and not call.op.reads(k, spec, walk):
                return False
        return True


def _share_in_place(program: Program, places: list[Place]) -> None:
    """Lets outputs take over the memory of inputs that die there, where the op allows it and neither is a part of another value."""
    last: dict[int, int] = {}
    for position, call in enumerate(program.calls):
        for value in (*call.inputs, *call.outputs):
            last[places[value].root] = position
    fixed = {places[v].root for v in (*program.inputs, *program.constants, *program.outputs)}

    def whole(value: int, nbytes: int) -> bool:
        return program.specs[places[value].root].nbytes == nbytes == program.specs[value].nbytes

    for position, call in enumerate(program.calls):
        for index in call.op.inplace:
            x, y = call.inputs[index], call.outputs[0]
            source, result = places[x].root, places[y].root
            alike = whole(x, program.specs[y].nbytes) and whole(y, program.specs[x].nbytes)
            others = [places[v].root for k, v in enumerate(call.inputs) if k != index]
            if alike and last[source] == position and source not in fixed and result not in fixed and source not in others:
                for value, place in enumerate(places):
                    if place.root == result:
                        places[value] = Place(source, place.start, place.strides)
                last[source] = max(last[source], last[result])
                break
