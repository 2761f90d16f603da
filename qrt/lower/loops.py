"""Loop and Scan for the Python fallback, as ONNX defines them.

onnx.reference takes an omitted condition of a Loop for false, joins what its rounds give along an axis that is there already, and knows
Scans along the first axis and forwards alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_loop import Loop as ReferenceLoop
from onnx.reference.ops.op_scan import Scan as ReferenceScan

from qrt.core.errors import UnsupportedOp

if TYPE_CHECKING:
    from qrt.ops.op import Array

__all__ = ["LOOPS", "Loop", "Scan"]


class Loop(ReferenceLoop):
    """Repeats its body, at most M times and as long as the condition holds; what is omitted does not end it."""

    op_domain = ""
    body: Any  # these two the base class sets from the node's attributes
    _run_body: Any

    def _run(
        self,
        limit: Array | None,
        condition: Array | None,
        *state: Array,
        context: Mapping[str, Array] | None = None,
        body: object = None,
        attributes: object = None,
        bindings: object = None,
    ) -> tuple[Array, ...]:
        names, carried = self.body.input_names, list(state)
        rounds = None if limit is None else int(np.asarray(limit).item())
        going, done = condition is None or bool(np.asarray(condition).item()), 0
        if going and rounds is None and _hands_on_condition(self.body.proto_):
            raise UnsupportedOp("nothing ends its rounds: it has no limit, and its body hands on the condition as it is")
        scanned: list[list[Array]] = [[] for _ in self.body.output_names[1 + len(carried) :]]
        while going and (rounds is None or done < rounds):
            feeds = dict(context or {}) | dict(zip(names, [np.array(done), np.array(going), *carried], strict=True))
            again, *results = self._run_body(feeds, attributes=attributes, bindings=bindings)
            going, carried, done = bool(np.asarray(again).item()), results[: len(carried)], done + 1
            for parts, part in zip(scanned, results[len(carried) :], strict=True):
                parts.append(part)
        outputs = self.body.proto_.output[1 + len(carried) :]
        return (*carried, *(_stacked(parts, output) for parts, output in zip(scanned, outputs, strict=True)))


class Scan(ReferenceScan):
    """Runs its body on each slice of its inputs, along any axis and in either direction. Of opset 9 and later."""

    op_domain = ""
    body: Any
    _run_body: Any

    def __init__(self, onnx_node: Any, run_params: dict[str, Any]) -> None:
        OpRun.__init__(self, onnx_node, run_params)  # that of ReferenceScan refuses axes and directions
        self.input_names, self.output_names = self.body.input_names, self.body.output_names

    def _run(
        self,
        *args: Array,
        context: Mapping[str, Array] | None = None,
        body: object = None,
        num_scan_inputs: int = 0,
        scan_input_axes: Sequence[int] | None = None,
        scan_input_directions: Sequence[int] | None = None,
        scan_output_axes: Sequence[int] | None = None,
        scan_output_directions: Sequence[int] | None = None,
        attributes: object = None,
        bindings: object = None,
    ) -> tuple[Array, ...]:
        first = len(args) - num_scan_inputs
        carried, given = list(args[:first]), args[first:]
        slices = [np.moveaxis(a, axis, 0) for a, axis in zip(given, scan_input_axes or [0] * len(given), strict=True)]
        slices = [a[::-1] if back else a for a, back in zip(slices, scan_input_directions or [0] * len(given), strict=True)]
        scanned: list[list[Array]] = [[] for _ in self.output_names[first:]]
        for parts_in in zip(*slices, strict=True):
            feeds = dict(context or {}) | dict(zip(self.input_names, [*carried, *parts_in], strict=True))
            results = self._run_body(feeds, attributes=attributes, bindings=bindings)
            carried = results[:first]
            for parts, part in zip(scanned, results[first:], strict=True):
                parts.append(part)
        axes, backwards = scan_output_axes or [0] * len(scanned), scan_output_directions or [0] * len(scanned)
        along = zip(scanned, self.body.proto_.output[first:], axes, backwards, strict=True)
        outputs = [np.moveaxis(_stacked(parts[::-1] if back else parts, output), 0, axis) for parts, output, axis, back in along]
        return (*carried, *outputs)


def _hands_on_condition(body: Any) -> bool:
    """Whether the condition that the body of a Loop gives is the one that it gets."""
    sources = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Identity"}
    name = body.output[0].name
    while name in sources:
        name = sources[name]
    return bool(name == body.input[1].name)


def _stacked(parts: Sequence[Array], output: Any) -> Array:
    """What each round gave, along a new first axis; of no round, by the type that the body declares, with 0 for what it leaves open."""
    if parts:
        return np.stack(parts)
    kind = output.type.tensor_type
    return np.empty((0, *(d.dim_value for d in kind.shape.dim)), helper.tensor_dtype_to_np_dtype(kind.elem_type))


LOOPS = [Loop, Scan]
