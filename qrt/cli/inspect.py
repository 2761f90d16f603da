"""qrt inspect."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import qrt
from qrt.cli.console import Json, Target, nbytes, show_json, show_table, tell
from qrt.jit import wants_cuda
from qrt.report.inspect import NodeReport, inspect_model

__all__ = ["inspect"]


def inspect(
    model: Annotated[Path, typer.Argument(help="An ONNX model, float or quantized.", metavar="MODEL")],
    why: Annotated[bool, typer.Option("--why", help="Say why a node is not int8, or why it runs in Python.")] = False,
    target: Target = None,
    json: Json = False,
) -> None:
    """Show how each node runs: int8, float, Python.

    With --target cuda also where: in which graph on the GPU and by which kernels, or on the CPU. It needs no GPU.
    """
    loaded = qrt.load(model)
    nodes = inspect_model(loaded, target)
    on_cuda = wants_cuda(target)
    shares: Counter[str] = Counter()
    for node in nodes:
        shares[node.runs] += node.macs
    macs = sum(shares.values())
    if json:
        show_json({"model": str(model), "macs": macs, "nodes": [asdict(node) for node in nodes]})
        return
    more = [*(["place", "kernels"] if on_cuda else []), *(["why"] if why else [])]
    columns = ["node", "op", "in", "out", "runs in", ">MACs", ">share", ">bytes", *more]
    rows = [
        (
            node.name,
            node.op,
            ", ".join(node.inputs),
            ", ".join(node.outputs),
            node.runs,
            f"{node.macs:,}" if node.macs else "",
            f"{node.share:.1%}" if node.macs else "",
            nbytes(node.nbytes),
            *([node.place, ", ".join(node.kernels)] if on_cuda else []),
            *([node.why] if why else []),
        )
        for node in nodes
    ]
    show_table(columns, rows)
    counts = Counter(node.runs for node in nodes)
    parts = [f"{count} {runs}" + (f" ({shares[runs] / macs:.0%} of MACs)" if shares[runs] else "") for runs, count in counts.most_common()]
    tell(f"{loaded!r}\n{macs:,} multiply-accumulates; nodes: {', '.join(parts)}")
    if on_cuda:
        tell(_on_cuda(nodes))


def _on_cuda(nodes: list[NodeReport]) -> str:
    """What goes to the GPU, in a line."""
    launches = [kernel for node in nodes for kernel in node.kernels]
    graphs = {place for node in nodes for place in node.place.split(", ") if place.startswith("cuda")}
    on_cpu = sum("cpu" in node.place for node in nodes)
    return f"{len(launches)} launches of {len(set(launches))} kernels in {len(graphs)} graphs on the GPU; {on_cpu} nodes on the CPU"
