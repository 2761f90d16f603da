"""qrt inspect."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import qrt
from qrt.cli.console import Json, nbytes, show_json, show_table, tell
from qrt.report.inspect import inspect_model

__all__ = ["inspect"]


def inspect(
    model: Annotated[Path, typer.Argument(help="An ONNX model, float or quantized.", metavar="MODEL")],
    why: Annotated[bool, typer.Option("--why", help="Say why a node is not int8, or why it runs in Python.")] = False,
    json: Json = False,
) -> None:
    """Show how each node runs: int8, float, Python."""
    loaded = qrt.load(model)
    nodes = inspect_model(loaded)
    shares: Counter[str] = Counter()
    for node in nodes:
        shares[node.runs] += node.macs
    macs = sum(shares.values())
    if json:
        show_json({"model": str(model), "macs": macs, "nodes": [asdict(node) for node in nodes]})
        return
    columns = ["node", "op", "in", "out", "runs in", ">MACs", ">share", ">bytes", *(["why"] if why else [])]
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
            *([node.why] if why else []),
        )
        for node in nodes
    ]
    show_table(columns, rows)
    counts = Counter(node.runs for node in nodes)
    parts = [f"{count} {runs}" + (f" ({shares[runs] / macs:.0%} of MACs)" if shares[runs] else "") for runs, count in counts.most_common()]
    tell(f"{loaded!r}\n{macs:,} multiply-accumulates; nodes: {', '.join(parts)}")
