"""Whole: a model that is one plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qrt.ops.op import Array
from qrt.runtime.plan import Plan

if TYPE_CHECKING:
    from qrt.runtime.device import DevicePlan

__all__ = ["ClockFunction", "Whole"]

# Gets, for each plan that a run walks: its steps' nodes, their kernels, and the cycle counter before the first step and after each.
ClockFunction = Callable[[Sequence[str], Sequence[str], Array], None]


class Whole:
    """A plan that is all of a model: its input k is the model's inputs[k], and the model's output k is the plan's outputs[k]."""

    def __init__(self, plan: Plan | DevicePlan, inputs: list[int], outputs: list[int]) -> None:
        self.plan, self.inputs, self.outputs = plan, inputs, outputs
        # Most models take and give what their plan does, and need not wait for it to be picked.
        self._takes_all = inputs == list(range(len(inputs)))
        self._gives_all = outputs == list(range(len(plan.outputs)))

    def run(self, arrays: Sequence[Array], clock: ClockFunction | None = None) -> list[Array]:
        """The model's outputs, in order, for all its inputs, in order, of the planned shapes; see Plan.run."""
        if not self._takes_all:
            arrays = [arrays[index] for index in self.inputs]
        if clock is None:
            results = self.plan.run(arrays)
        else:
            watch: list[Array] = []
            results = self.plan.run(arrays, None, watch)
            clock(self.plan.names, self.plan.kernels, watch[0])
        return results if self._gives_all else [results[index] for index in self.outputs]
