"""qrt run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import qrt
from qrt.cli.console import Json, Target, show_json, show_table
from qrt.core.errors import InvalidInput
from qrt.core.files import check_writable, write_whole
from qrt.ops.op import Array
from qrt.report.samples import read_arrays

__all__ = ["run"]


def run(
    model: Annotated[Path, typer.Argument(help="An ONNX model, float or quantized.", metavar="MODEL")],
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="An input's name and the file of its array. Once for each input.", metavar="NAME=FILE.npy"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the outputs go, under their names.", metavar="OUT.npz")
    ] = None,
    target: Target = None,
    json: Json = False,
) -> None:
    """Run a model on arrays from files."""
    if output is not None:
        check_writable(output)
    given = [_feed(pair) for pair in input_ or ()]
    feeds = dict(given)
    if len(feeds) != len(given):
        raise InvalidInput("--input names one input twice")
    session = qrt.InferenceSession(model, target=target)
    results = dict(zip([arg.name for arg in session.get_outputs()], session.run(None, feeds), strict=True))
    if output is not None:
        write_whole(output, lambda part: _write(part, results))
    if json:
        outputs = [{"name": name, "shape": list(array.shape), "dtype": str(array.dtype)} for name, array in results.items()]
        show_json({"model": str(model), "output": str(output) if output else None, "outputs": outputs})
    else:
        show_table(["output", "shape", "dtype", ">min", ">max"], [(name, *_summary(array)) for name, array in results.items()])


def _feed(pair: str) -> tuple[str, Array]:
    name, _, file = pair.partition("=")
    if not name or not file:
        raise InvalidInput(f"--input {pair}: write NAME=FILE.npy")
    arrays = read_arrays(Path(file))
    if len(arrays) != 1:
        raise InvalidInput(f"{file} holds {len(arrays)} arrays: give a file with one")
    return name, next(iter(arrays.values()))


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    """What numpy.savez writes; that cannot write an array called "file"."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _summary(array: Array) -> tuple[str, str, str, str]:
    ends = [f"{float(end):.6g}" for end in (array.min(), array.max())] if array.size else ["", ""]
    return "×".join(map(str, array.shape)) or "scalar", str(array.dtype), ends[0], ends[1]
