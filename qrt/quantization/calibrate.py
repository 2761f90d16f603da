"""Calibration: runs the float model on real inputs with our own kernels and lets an observer see every site."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized

import numpy as np

from qrt.core.errors import CalibrationError
from qrt.core.qparams import QParams
from qrt.graph import Model
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.lower import Executable
from qrt.observers import ObserverBase
from qrt.quantization.batches import Batch, feeds_of
from qrt.quantization.convert import check_activation
from qrt.quantization.placement import Placement, Site

__all__ = ["Batch", "calibrate"]


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
