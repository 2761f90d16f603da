"""Calibration: runs the float model on real inputs with our own kernels and lets an observer see every site."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sized

import numpy as np

from qrt.core.errors import CalibrationError
from qrt.core.qparams import QParams
from qrt.graph import Model, ir
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.lower import Executable
from qrt.observers import ObserverBase
from qrt.quantization.convert import check_activation
from qrt.quantization.placement import Placement, Site

__all__ = ["Batch", "calibrate", "feeds_of"]

Batch = Mapping[str, np.ndarray] | np.ndarray


def calibrate(model: Model, placement: Placement, data: Iterable[Batch], *, progress: bool) -> dict[Site, QParams]:
    """The qparams of every site that has its own, learned from `data`.

    `model`: a prepared float model, which stays as it is. Raises CalibrationError for no data, and for data that does not fit the inputs or
    makes NaN or infinity anywhere that is observed.
    """
    sites = {site.name: site for site in placement.sites.values() if site.shares is None and site.fixed is None}
    observers = {name: site.qconfig.activation() for name, site in sites.items()}
    for name, observer in observers.items():
        observer.site = name
    executable = _executable(model, list(observers))

    def tap(name: str, array: np.ndarray) -> None:
        observers[name](_in_memory_order(array, observers[name]))

    batches = 0
    for index, batch in enumerate(_watched(data, progress)):
        executable.run(feeds_of(model, batch, f"calibration batch {index}"), tap)
        batches += 1
    if not batches:
        raise CalibrationError("no calibration data: give at least one batch, better 100 to 500 samples like those to come")
    learned = {}
    for name, site in sites.items():
        learned[site] = observers[name].calculate_qparams()
        check_activation(learned[site], name)
    return learned


def _executable(model: Model, names: list[str]) -> Executable:
    """The model fused, but with the values `names` still there to be seen."""
    model = model.clone()
    real = list(model.graph.outputs)
    made = {v.name: v for node in model.graph for v in node.outputs}
    # Rules keep what is an output.
    model.graph.outputs.extend(made[name] for name in names if name in made and not made[name].is_graph_output())
    fuse(model)
    del model.graph.outputs[len(real) :]
    return Executable(model, host_target(), 1, taps=names)


def _in_memory_order(array: np.ndarray, observer: ObserverBase) -> np.ndarray:
    """`array` with its axes as they lie in memory, which saves an observer of the whole tensor a copy."""
    if observer.axis is not None:
        return array
    return array.transpose(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))


def _watched(data: Iterable[Batch], progress: bool) -> Iterator[Batch]:
    """`data`, with a bar on standard error while it is consumed, if that is a terminal."""
    if not progress or not sys.stderr.isatty():
        yield from data
        return
    from rich.console import Console
    from rich.progress import track

    total = len(data) if isinstance(data, Sized) else None
    yield from track(data, "Calibrating", total=total, console=Console(stderr=True), transient=True)


def feeds_of(model: Model, batch: Batch, where: str) -> dict[str, np.ndarray]:
    """One batch as feeds of `model`, checked against its inputs. Raises CalibrationError, which says `where`."""
    inputs = {v.name or "": v for v in model.graph.inputs}
    if not isinstance(batch, Mapping):
        if len(inputs) != 1:
            raise CalibrationError(f"{where} is one array; {model.name} has inputs {', '.join(inputs)}: give dicts")
        batch = {next(iter(inputs)): batch}
    missing, unknown = inputs.keys() - batch.keys(), batch.keys() - inputs.keys()
    if missing or unknown:
        what = f"lacks {sorted(missing)}" if missing else f"names {sorted(unknown)}"
        raise CalibrationError(f"{where} {what}; the inputs of {model.name} are {', '.join(inputs)}")
    return {name: _checked(value, np.asarray(batch[name]), f"{where}, input {name!r}") for name, value in inputs.items()}


def _checked(value: ir.Value, array: np.ndarray, where: str) -> np.ndarray:
    wanted = value.dtype.numpy() if value.dtype is not None else array.dtype
    if array.dtype != wanted:
        raise CalibrationError(f"{where} has dtype {array.dtype}: give {wanted}")
    if value.shape is not None:
        shape = tuple(value.shape)
        if array.ndim != len(shape) or any(isinstance(d, int) and d != n for d, n in zip(shape, array.shape, strict=False)):
            given = tuple(d if isinstance(d, int) else str(d) for d in shape)
            raise CalibrationError(f"{where} has shape {array.shape}, which does not fit {given}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CalibrationError(f"{where} holds NaN or infinity; remove the sample")
    return np.ascontiguousarray(array).reshape(array.shape)
