"""qrt compile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import qrt
from qrt.cli.console import Json, nbytes, show_json, tell
from qrt.core.errors import InvalidInput

__all__ = ["compile_", "shape_sets"]


def compile_(
    model: Annotated[Path, typer.Argument(help="An ONNX model, float or quantized.", metavar="IN.onnx")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the compiled model goes.", metavar="OUT.qrt")],
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="The shape of an input that the model leaves open. Once for each such input; to plan for more shapes, name them again.",
            metavar="NAME=1,3,224,224",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads a run may use; by default one per processor.", min=1)] = None,
    target: Annotated[str | None, typer.Option(help="The instruction set, if not this machine's best.", metavar="ISA")] = None,
    json: Json = False,
) -> None:
    """Write a model with its plans to a file that starts fast."""
    shapes = shape_sets(shape or ())
    qrt.compile(model, output, shapes, num_threads=threads, target=target)
    before, after = model.stat().st_size, output.stat().st_size
    if json:
        show_json({"model": str(model), "output": str(output), "plans": max(len(shapes), 1), "bytes_before": before, "bytes_after": after})
    else:
        tell(f"{output}: {nbytes(after)} for {max(len(shapes), 1)} set(s) of shapes; {model} has {nbytes(before)}")


def shape_sets(pairs: list[str] | tuple[()]) -> list[dict[str, tuple[int, ...]]]:
    """Shapes by input, one set after the other: a name that comes again begins the next."""
    sets: list[dict[str, tuple[int, ...]]] = []
    for pair in pairs:
        name, _, text = pair.rpartition("=")
        extents = [extent.strip() for extent in text.split(",")] if text else []
        if not name or not all(extent.isascii() and extent.isdigit() and len(extent) < 19 for extent in extents):
            raise InvalidInput(f"--shape {pair}: write NAME=1,3,224,224, numbers with commas between them")
        if not sets or name in sets[-1]:
            sets.append({})
        sets[-1][name] = tuple(map(int, extents))
    return sets
