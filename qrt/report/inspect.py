"""Which node of a model runs how: in int8, in float, or in Python; on the CPU or a GPU, and by which kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qrt.api import compile_model, fuse_model
from qrt.core.dtypes import is_float
from qrt.core.record import record
from qrt.graph import Model, ir, is_op
from qrt.graph.passes.widen_halves import HALVES
from qrt.jit import host_target, wants_cuda
from qrt.ops.op import View
from qrt.ops.program import Program
from qrt.report.example import example_feeds
from qrt.runtime.device import DevicePlan
from qrt.runtime.plan import Plan
from qrt.runtime.segments import judge

__all__ = ["NodeReport", "inspect_model"]


@record
class NodeReport:
    """One node of the fused model.

    `runs`: "int8", "float", "integer" (other integers and booleans), "folded" (nothing is left to do at run time, or
    another node does it) or "python".
    `inputs`, `outputs`: shapes, as the model declares them. `macs`: multiply-accumulates for the example feeds, `share` of all.
    `nbytes`: of its constants, and what its steps read and write besides. `why`: why it is not int8, or why it runs in Python or not on the
    GPU, or "". `place`: "cpu", or "cuda 1": the first graph on the GPU, or both; "" where nothing is left to do. `kernels`: in order.
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
    place: str
    kernels: list[str]


def inspect_model(model: Model, target: str | None = None) -> list[NodeReport]:
    """The nodes of `model` as they are run, in order. Runs it once, on example feeds. Raises what a run would.

    For "cuda" it needs no GPU: the run is the CPU's, and places and kernels are those of an H200.
    """
    feeds = example_feeds(model)
    fused, report = fuse_model(model)
    executable = compile_model(fused, num_threads=1, target=host_target(target).isa)
    planned = executable.plans(feeds)
    macs, nbytes = _costs([program for _, program in planned])
    where = _on_cuda([program for _, program in planned]) if wants_cuda(target) else _on_cpu([plan for plan, _ in planned])
    total = sum(macs.values())
    reports = []
    for node in fused.graph:
        name = node.name or node.op_type
        runs = _runs(node, name in executable.why, name in nbytes)
        here = where.get(name, _Where())
        places = here.places or (["cpu"] if runs != "folded" else [])
        reasons = [executable.why.get(name), report.why.get(name) if runs == "float" else None, _of_sixteen_bits(node), *here.why]
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
                ", ".join(places),
                here.kernels,
            )
        )
    return reports


@dataclass
class _Where:
    """Where a node's calls run, why not on the GPU, and their kernels."""

    places: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)


def _on_cpu(plans: Sequence[Plan | DevicePlan]) -> dict[str, _Where]:
    found: dict[str, _Where] = defaultdict(_Where)
    for plan in plans:
        for name, kernel in zip(plan.names, plan.kernels, strict=True):
            found[name].kernels.append(kernel)
    return found


def _on_cuda(programs: list[Program]) -> dict[str, _Where]:
    """By node; graphs are counted from 1 through all programs."""
    found: dict[str, _Where] = defaultdict(_Where)
    graphs = 0
    for program in programs:
        numbers: dict[int, int] = {}
        for call, verdict in zip(program.calls, judge(program), strict=True):
            if verdict.run is None:
                continue
            if verdict.on_device and verdict.run not in numbers:
                graphs += 1
                numbers[verdict.run] = graphs
            place = f"cuda {numbers[verdict.run]}" if verdict.on_device else "cpu"
            here = found[call.name]
            here.places += [place] if place not in here.places else []
            here.why += [verdict.why] if verdict.why and verdict.why not in here.why else []
            here.kernels += verdict.kernels if verdict.on_device else []
    return found


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
    return "float" if is_float(kind) else "integer"


def _of_sixteen_bits(node: ir.Node) -> str | None:
    """What a Cast to or from 16 bits is there for."""
    ends = (node.inputs[0], node.outputs[0]) if is_op(node, "Cast") else ()
    found = next((value for value in ends if value is not None and value.dtype in HALVES), None)
    return None if found is None or found.dtype is None else f"{found.name!r} is {found.dtype.name.lower()}: qrt computes in float32"


def _shape(value: ir.Value) -> str:
    if value.shape is None:
        return "?"
    return "×".join(str(dim) if isinstance(dim, int) else dim.value or "?" for dim in value.shape) or "scalar"
