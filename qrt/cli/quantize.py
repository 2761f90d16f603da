"""qrt quantize."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

import qrt
from qrt.cli.console import Json, nbytes, progress, show_json, show_table, tell, watched
from qrt.core.errors import InvalidInput
from qrt.core.files import check_writable
from qrt.graph import Model
from qrt.observers import OBSERVERS
from qrt.quantization import QConfig, QConfigMapping, QrtQuantizer, per_channel_weight_observer, weight_observer
from qrt.quantization.never_slower import NeverSlower, time_layers
from qrt.quantization.prepared import prepare_model
from qrt.quantization.shards import merge_shards, save_shard
from qrt.report.samples import Samples

__all__ = ["quantize"]

Observers = Enum("Observers", {name: name for name in OBSERVERS}, type=str)  # type: ignore[misc]  # the names stand in one place
_DEFAULT = Observers("histogram")


def quantize(
    model: Annotated[Path, typer.Argument(help="The float ONNX model.", metavar="IN.onnx")],
    states: Annotated[list[Path] | None, typer.Argument(help="With --merge: what the shards wrote.", metavar="[STATE]...")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where the int8 model goes.", metavar="OUT.onnx")] = None,
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
    never_slower: Annotated[
        bool, typer.Option("--never-slower", help="Time each layer on the first sample; those that int8 makes slower here stay float.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="Only learn from the K-th of N parts of the data, K from 1, and write that to --state.", metavar="K/N"),
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Where what a shard learned goes.", metavar="STATE.safetensors")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Instead of data: the states of all shards, in any order.")] = False,
    json: Json = False,
) -> None:
    """Quantize a float model to int8.

    Machines can share the calibration: each runs with --data, --shard K/N and --state, for K from 1 to N; then one runs with -o and
    --merge STATE... All of them take the same model, --observer and --exclude.
    """
    _check_sources(merge=merge, states=bool(states), dynamic=dynamic, data=data is not None)
    mapping = _mapping(observer, per_tensor)
    if shard is not None or state is not None:
        if shard is None or state is None or data is None or output is not None:
            raise InvalidInput("a shard learns from --data CALIB.npz and writes --state FILE: give these and --shard K/N, and no -o")
        if never_slower:
            raise InvalidInput("--never-slower times layers, which shards do not: --exclude what it found in all of them")
        _learn(model, data, QrtQuantizer(mapping, exclude=exclude or ()), shard, state, json)
        return
    if never_slower and data is None:
        raise InvalidInput("--never-slower times a sample: give --data")
    if output is None:
        raise InvalidInput("give -o OUT.onnx, where the int8 model goes")
    check_writable(output)
    real = qrt.load(model)
    before = model.stat().st_size  # now: `output` may be the same file
    times = None
    if dynamic:
        int8 = qrt.quantize_dynamic(real, exclude=exclude or (), per_channel=not per_tensor)
    elif data is not None:
        int8, times = _static(real, Samples(data, real), mapping, exclude or [], never_slower)
    else:
        prepared = prepare_model(real, QrtQuantizer(mapping, exclude=exclude or ()))
        merge_shards(prepared, states or ())
        int8 = prepared.convert()
    int8.save(output)
    after = output.stat().st_size
    if json:
        found = {} if times is None else {"never_slower": asdict(times)}
        show_json({"model": str(model), "output": str(output), "bytes_before": before, "bytes_after": after, **found})
    else:
        if times is not None:
            _show(times)
        tell(f"{output}: {nbytes(after)}, {after / before:.0%} of {model} ({nbytes(before)})")


def _check_sources(*, merge: bool, states: bool, dynamic: bool, data: bool) -> None:
    """Ranges come from data, from shards' states, or at run time."""
    if states != merge:
        raise InvalidInput("--merge: name the states of all shards" if merge else "more than one file is given; states need --merge")
    if dynamic and (data or merge):
        raise InvalidInput(f"--dynamic learns ranges at run time: leave {'--data' if data else '--merge'} out")
    if merge and data:
        raise InvalidInput("--merge takes what shards learned: leave --data out")
    if not (data or merge or dynamic):
        raise InvalidInput("give --data CALIB.npz, --merge STATE... or --dynamic")


def _mapping(observer: Observers, per_tensor: bool) -> QConfigMapping:
    return QConfigMapping().set_global(QConfig(OBSERVERS[observer.value], weight_observer if per_tensor else per_channel_weight_observer))


def _static(
    real: Model, samples: Samples, mapping: QConfigMapping, exclude: list[str], never_slower: bool
) -> tuple[Model, NeverSlower | None]:
    """The int8 model, and which layers of it are not because they would be slower, if that is asked for."""
    times = None
    if never_slower:
        with progress() as bar:
            bar.add_task("Timing layers", total=None)
            times = time_layers(real, next(iter(samples)), mapping, exclude=exclude)
        if times.all_float:
            return real, times
        exclude = [*exclude, *times.exclude]
    return qrt.quantize(real, watched(samples, "Calibrating"), mapping, exclude=exclude, progress=False), times


def _show(times: NeverSlower) -> None:
    rows = [(layer.name, layer.op_type, f"{layer.float_us:.4g}", f"{layer.int8_us:.4g}") for layer in times.left_float]
    if rows:
        show_table(["layer", "in int8", ">float µs", ">int8 µs"], rows, "Left float, because int8 is slower here:")
    gain = "none of it is int8" if times.all_float else f"{times.int8_us:.4g} µs with int8"
    tell(f"the model takes {times.float_us:.4g} µs in float, and {gain}")


def _learn(model: Path, data: Path, quantizer: QrtQuantizer, shard: str, state: Path, json: bool) -> None:
    """Observes one shard of the data."""
    number, count = _shard(shard)
    check_writable(state)
    real = qrt.load(model)
    samples = Samples(data, real).shard(number, count)
    prepared = prepare_model(real, quantizer)
    prepared.calibrate(watched(samples, f"Observing shard {shard}"))
    save_shard(prepared, state, number, count)
    if json:
        show_json({"model": str(model), "state": str(state), "shard": number, "shards": count, "samples": len(samples)})
    else:
        tell(f"{state}: shard {number} of {count}, {len(samples)} samples")


def _shard(text: str) -> tuple[int, int]:
    """K and N of "K/N"."""
    words = text.split("/")
    if len(words) == 2 and all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        number, count = map(int, words)
        if 1 <= number <= count:
            return number, count
    raise InvalidInput(f"--shard {text}: write K/N, with K from 1 to N: 1/3, 2/3 and 3/3 are three shards")
