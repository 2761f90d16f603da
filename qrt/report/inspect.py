"""Which node of a model runs how: in int8, in float, or in Python."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from qrt.api import compile_model, fuse_model
from qrt.graph import Model, ir
from qrt.ops.op import View
from qrt.ops.program import Program
from qrt.report.example import example_feeds

__all__ = ["NodeReport", "inspect_model"]


@dataclass(frozen=True)
class NodeReport:
    """One node of the fused model.

    `runs`: "int8", "float", "integer" (other integers and booleans), "folded" (nothing is left to do at run time) or "python".
    `inputs`, `outputs`: shapes, as the model declares them. `macs`: multiply-accumulates for the example feeds, `share` of all.
    `nbytes`: of its constants, and what its steps read and write besides. `why`: why it is not int8, or why it runs in Python, or "".
    """

    name: str
    op: str
    inputs: list[str]
    outputs: list[str]
    runs: str
    macs: int
    share: float
    nbytes: int
    why: str


def inspect_model(model: Model, target: str | None = None) -> list[NodeReport]:
    """The nodes of `model` as they are run, in order. Runs it once, on example feeds. Raises what a run would."""
    feeds = example_feeds(model)
    fused, report = fuse_model(model)
    executable = compile_model(fused, num_threads=1, target=target)
    macs, nbytes = _costs([program for _, program in executable.plans(feeds)])
    total = sum(macs.values())
    reports = []
    for node in fused.graph:
        name = node.name or node.op_type
        runs = _runs(node, name in executable.why, name in nbytes)
        reasons = [executable.why.get(name), report.why.get(name) if runs == "float" else None]
        reports.append(
            NodeReport(
                name,
                f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
                [_shape(value) for value in node.inputs if value is not None and value.const_value is None],
                [_shape(value) for value in node.outputs],
                runs,
                macs[name],
                macs[name] / total if total else 0.0,
                nbytes[name]
                + sum(value.const_value.nbytes for value in node.inputs if value is not None and value.const_value is not None),
                "; ".join(reason for reason in reasons if reason),
            )
        )
    return reports


def _costs(programs: list[Program]) -> tuple[dict[str, int], dict[str, int]]:
    """Multiply-accumulates and bytes of activations moved, by node."""
    macs: dict[str, int] = defaultdict(int)
    nbytes: dict[str, int] = defaultdict(int)
    for program in programs:
        for call in program.calls:
            inputs, outputs = ([program.specs[v] for v in values] for values in (call.inputs, call.outputs))
            macs[call.name] += call.op.macs(inputs, outputs)
            if not isinstance(call.op, View):
                nbytes[call.name] += sum(program.specs[v].nbytes for v in (*call.inputs, *call.outputs) if v not in program.constants)
    return macs, nbytes


def _runs(node: ir.Node, in_python: bool, has_steps: bool) -> str:
    if in_python:
        return "python"
    if not has_steps:
        return "folded"
    dtype = node.outputs[0].dtype
    kind = np.dtype(dtype.numpy()) if dtype is not None else np.dtype(np.float32)
    if (node.domain == "ai.qrt" and node.op_type.startswith("Q")) or (kind.itemsize == 1 and kind.kind in "iu"):
        return "int8"
    return "float" if kind.kind == "f" else "integer"


def _shape(value: ir.Value) -> str:
    if value.shape is None:
        return "?"
    return "×".join(str(dim) if isinstance(dim, int) else dim.value or "?" for dim in value.shape) or "scalar"
