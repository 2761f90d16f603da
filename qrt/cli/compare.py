"""qrt compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import qrt
from qrt.cli.console import Json, show_json, show_table, watched
from qrt.core.errors import InvalidInput
from qrt.core.files import check_writable, write_whole
from qrt.report.compare import Comparison, Difference, compare_models
from qrt.report.samples import Samples

__all__ = ["compare"]


def compare(
    real: Annotated[Path, typer.Argument(help="The float model.", metavar="FLOAT")],
    quantized: Annotated[Path, typer.Argument(help="The model quantized from it.", metavar="INT8")],
    data: Annotated[Path, typer.Option(help="Samples, as for qrt quantize.", metavar="X.npz")],
    plot: Annotated[Path | None, typer.Option(help="Draw the layers' errors into this file.", metavar="OUT.png")] = None,
    json: Json = False,
) -> None:
    """Show what int8 changed, layer by layer."""
    if plot is not None:
        check_writable(plot)
        _matplotlib()
    model = qrt.load(real)
    samples = Samples(data, model)
    found = compare_models(model, qrt.load(quantized), watched(samples, "Comparing"))
    if plot is not None:
        _draw(found, plot)
    if json:
        show_json({"samples": found.samples, "layers": [_fields(d) for d in found.layers], "outputs": [_fields(d) for d in found.outputs]})
        return
    columns = ["layer", ">SQNR dB", ">cosine", ">largest error"]
    show_table(columns, [_row(d) for d in found.layers], f"Layers, worst first, on {found.samples} samples")
    columns = ["output", *columns[1:], ">same argmax"]
    rows = [(*_row(d), "" if d.agreement is None else f"{d.agreement:.2%}") for d in found.outputs]
    show_table(columns, rows, "\nOutputs")


def _row(difference: Difference) -> tuple[str, str, str, str]:
    return difference.name, f"{difference.sqnr:.1f}", f"{difference.cosine:.5f}", f"{difference.largest:.4g}"


def _fields(difference: Difference) -> dict[str, object]:
    return {
        "name": difference.name,
        "sqnr_db": difference.sqnr,
        "cosine": difference.cosine,
        "largest_error": difference.largest,
        "agreement": difference.agreement,
    }


def _matplotlib() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInput("--plot needs matplotlib: pip install 'qrt[plot]'") from error
    return Figure


def _draw(found: Comparison, path: Path) -> None:
    figure = _matplotlib()(figsize=(8, max(2.0, 0.25 * len(found.layers) + 1)), layout="constrained")
    axes = figure.subplots()
    axes.barh([d.name for d in found.layers], [min(d.sqnr, 200.0) for d in found.layers])
    axes.invert_yaxis()
    axes.set_xlabel("SQNR in dB: more is better")
    axes.tick_params(axis="y", labelsize=7)
    try:
        write_whole(path, lambda part: figure.savefig(part, dpi=150))
    except ValueError as error:
        raise InvalidInput(f"--plot {path}: {error}") from error
