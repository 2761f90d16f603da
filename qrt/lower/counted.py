"""Nodes whose results have an extent that depends on what they hold: a plan computes the most there can be, and how many they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from qrt.core.errors import InvalidInput, ModelError
from qrt.core.target import Target
from qrt.graph import Model, attr_int, ir, is_op
from qrt.lower.python_step import PythonStep
from qrt.ops.detection import Suppress
from qrt.ops.op import Spec
from qrt.ops.program import Program
from qrt.runtime.plan import Packs, Plan, build

if TYPE_CHECKING:
    from qrt.ops.op import Array

__all__ = ["SuppressStep", "is_counted", "step_of"]

# Plans kept, one for each set of shapes.
_MAX_PLANS = 16


def is_counted(node: ir.Node) -> bool:
    """Whether a SuppressStep runs the node: NonMaxSuppression of float32."""
    given = node.inputs[:2]
    return is_op(node, "NonMaxSuppression") and len(given) == 2 and all(v is not None and v.dtype == ir.DataType.FLOAT for v in given)


def step_of(
    node: ir.Node, model: Model, function: Callable[[Array], Array] | None, target: Target, threads: int
) -> PythonStep | SuppressStep:
    """What runs a node that is part of no plan; `function`: as of PythonStep."""
    return SuppressStep(node, target, threads) if function is None and is_counted(node) else PythonStep(node, model, function)


class SuppressStep:
    """A NonMaxSuppression, run by its kernel in a plan of its own. `inputs`: the values that it reads."""

    def __init__(self, node: ir.Node, target: Target, threads: int) -> None:
        self.node, self._target, self._threads = node, target, threads
        self._given = [*node.inputs, *[None] * 5][:5]
        self.inputs = [v for v in dict.fromkeys(self._given) if v is not None and v.const_value is None]
        self.outputs = list(node.outputs)
        self._centers = bool(attr_int(node, "center_point_box", 0))
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._lock = threading.Lock()

    def run(self, values: Mapping[ir.Value, Array]) -> list[Array]:
        """(image, class, box) of each box that stays: (n, 3) int64, image by image, class by class, best first."""
        boxes, scores, *numbers = (
            None if v is None else values[v] if v in values else v.const_value.numpy()  # type: ignore[union-attr]
            for v in self._given
        )
        most, overlap, least = (self._number(k, array) for k, array in enumerate(numbers))
        if boxes is None or scores is None or boxes.ndim != 3:
            raise ModelError(f"node {self.node.name!r}: NonMaxSuppression needs boxes (images, boxes, 4) and scores")
        if overlap is not None and not 0 <= overlap <= 1:
            raise InvalidInput(f"node {self.node.name!r}: iou_threshold must be within 0 … 1; it is {overlap}")
        op = Suppress(int(min(max(most or 0, 0), boxes.shape[1])), self._centers, least is not None)
        thresholds = np.array([overlap or 0.0, least or 0.0], np.float32)
        chosen, counts = self._plan(op, boxes.shape, scores.shape).run([np.ascontiguousarray(a) for a in (boxes, scores, thresholds)])
        return [_listed(chosen, counts)]

    def _number(self, k: int, array: Array | None) -> float | None:
        if array is None:
            return None
        if array.size != 1:
            raise ModelError(f"node {self.node.name!r}: input {k + 2} of NonMaxSuppression has {array.size} values; it takes one number")
        number: float = array.reshape(()).item()
        return number

    def _plan(self, op: Suppress, boxes: tuple[int, ...], scores: tuple[int, ...]) -> Plan:
        key = (op, boxes, scores)
        with self._lock:
            plan = self._plans.get(key)
            if plan is None:
                program = Program()
                program.inputs = [program.value(Spec(shape, np.dtype(np.float32))) for shape in (boxes, scores, (2,))]
                program.outputs = list(program.call(op, program.inputs, self.node.name or self.node.op_type))
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                plan = self._plans[key] = build(program, self._target, self._threads, Packs())
        return plan


def _listed(chosen: Array, counts: Array) -> Array:
    """The first counts[i, j] of each chosen[i, j], each with i and j before it: (n, 3) int64."""
    images, classes, most = chosen.shape
    units = np.repeat(np.arange(images * classes), counts.reshape(-1))
    places = np.arange(len(units)) - np.repeat(np.cumsum(counts) - counts.reshape(-1), counts.reshape(-1))
    listed = np.empty((len(units), 3), np.int64)
    listed[:, 0], listed[:, 1] = units // max(classes, 1), units % max(classes, 1)
    listed[:, 2] = chosen.reshape(-1)[units * most + places]
    return listed
