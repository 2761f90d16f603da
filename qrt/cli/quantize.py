"""qrt quantize."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

import qrt
from qrt.cli.console import Json, nbytes, show_json, tell, watched
from qrt.core.errors import InvalidInput
from qrt.core.files import check_writable
from qrt.observers import OBSERVERS
from qrt.quantization import QConfig, QConfigMapping, default_per_channel_weight_observer, default_weight_observer
from qrt.report.samples import Samples

__all__ = ["quantize"]

Observers = Enum("Observers", {name: name for name in OBSERVERS}, type=str)  # type: ignore[misc]  # the names stand in one place
_DEFAULT = Observers("histogram")


def quantize(
    model: Annotated[Path, typer.Argument(help="The float ONNX model.", metavar="IN.onnx")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the int8 model goes.", metavar="OUT.onnx")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Calibration samples: an .npz with an array for each input, named after it, samples stacked along the first axis. "
            "For a model with one input also an .npy.",
            metavar="CALIB.npz",
        ),
    ] = None,
    observer: Annotated[Observers, typer.Option(help="How the range of an activation is learned.")] = _DEFAULT,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="One scale for each weight, not one for each output channel.")] = False,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Only weights now, activations at run time: no data, for language models.")
    ] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Nodes to leave float: a name or a glob. May be repeated.", metavar="GLOB")
    ] = None,
    json: Json = False,
) -> None:
    """Quantize a float model to int8."""
    if dynamic == (data is not None):
        raise InvalidInput("--dynamic learns ranges at run time: leave --data out" if dynamic else "give --data CALIB.npz, or --dynamic")
    check_writable(output)
    real = qrt.load(model)
    before = model.stat().st_size  # now: `output` may be the same file
    if data is None:
        int8 = qrt.quantize_dynamic(real, exclude=exclude or (), per_channel=not per_tensor)
    else:
        weight = default_weight_observer if per_tensor else default_per_channel_weight_observer
        mapping = QConfigMapping().set_global(QConfig(OBSERVERS[observer.value], weight))
        samples = Samples(data, real)
        int8 = qrt.quantize(real, watched(samples, "Calibrating"), mapping, exclude=exclude or (), progress=False)
    int8.save(output)
    after = output.stat().st_size
    if json:
        show_json({"model": str(model), "output": str(output), "bytes_before": before, "bytes_after": after})
    else:
        tell(f"{output}: {nbytes(after)}, {after / before:.0%} of {model} ({nbytes(before)})")
