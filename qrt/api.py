"""The whole pipeline on one page. Read it first.

    file ──load──▶ Model ──quantize──▶ Model in QDQ form ──fuse──▶ fused Model ──compile──▶ Executable ──run──▶ arrays

`load` reads and checks a file. `quantize` and `quantize_dynamic` (qrt/quantization/) give a new Model, which is standard ONNX and can be
saved. A session (qrt/session.py) compiles a Model of either kind, float or quantized, and runs it. `compile` writes a Model and its plans
to a file that a session starts from faster.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from qrt.artifact import SUFFIX, save
from qrt.core.errors import InvalidInput
from qrt.graph import Model
from qrt.graph.passes import clean, prepare
from qrt.graph.rules import FusionReport, fuse
from qrt.interface import Interface, interface_of
from qrt.jit import host_target, wants_cuda
from qrt.loaders import load
from qrt.lower import Executable
from qrt.runtime.team import checked_threads

if TYPE_CHECKING:
    import onnx

    from qrt.runtime.device_memory import DeviceMemory

__all__ = ["Model", "Source", "compile", "compile_model", "fuse_model", "load", "open_model"]

# What a model may come as.
Source: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | Model"


def fuse_model(model: Model) -> tuple[Model, FusionReport]:
    """A copy of `model` in the fused form (docs/architecture.md), and what was fused, or why not."""
    fused = prepare(model)
    return fused, fuse(fused)


def compile_model(fused: Model, *, num_threads: int | None = None, target: str | None = None, taps: Sequence[str] = ()) -> Executable:
    """What runs a fused (or merely prepared) model. Plans are made as input shapes are met, kernels compiled as plans need them.

    `num_threads`: threads a run may use, the caller's included; by default as many as this process may use processors.
    `target`: the instruction set, or "cuda"; by default QRT_TARGET or the best this machine has. `taps`: values that a tapped run shows.
    Raises InvalidInput for a number of threads below 1 and for a target that this machine cannot run, DeviceError for a GPU that cannot
    be used.
    """
    threads = checked_threads(num_threads)
    return Executable(fused, host_target(target), threads, taps, memory=_device_memory() if wants_cuda(target) else None)


def _device_memory() -> DeviceMemory:
    from qrt.jit import driver  # here: nothing of CUDA is touched before somebody asks for it
    from qrt.runtime.device_memory import DeviceMemory

    return DeviceMemory(driver.Driver())


def open_model(source: Source, *, num_threads: int | None = None, target: str | None = None) -> tuple[Interface, Executable]:
    """A model as a session holds it: what it looks like from outside, and what runs it. Raises what `load` and `compile_model` do."""
    model = load(source)
    interface = interface_of(model)
    # A model that was loaded here is nobody else's, and needs no copy.
    fused = prepare(model) if model is source else clean(model)
    fuse(fused)
    return interface, compile_model(fused, num_threads=num_threads, target=target)


def compile(
    model: Source,
    path: str | os.PathLike[str],
    shapes: Mapping[str, Sequence[int]] | Sequence[Mapping[str, Sequence[int]]] = (),
    *,
    num_threads: int | None = None,
    target: str | None = None,
) -> None:
    """Writes `model`, planned for this machine, to a file (docs/artifact.md) that InferenceSession starts from in a fraction of the time.

    `path`: ends in .qrt. `shapes`: input name → shape, once or for each of several plans; inputs of fixed shape need none. A session runs
    other shapes too: it plans them when it meets them. `num_threads`, `target`: as for a session.
    Raises ModelError or UnsupportedOp for a model that cannot be compiled, InvalidInput for shapes that do not fit, OutputError.
    """
    where = Path(os.path.abspath(path))
    if where.suffix != SUFFIX:
        raise InvalidInput(f"{where.name} does not end in {SUFFIX}, by which a session knows a compiled model: give it that suffix")
    save(load(model), where, [shapes] if isinstance(shapes, Mapping) else list(shapes), num_threads, target)


Model.savers[SUFFIX] = compile
