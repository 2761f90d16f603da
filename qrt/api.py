"""The whole pipeline on one page. Read it first.

    file ──load──▶ Model ──quantize──▶ Model in QDQ form ──fuse──▶ fused Model ──compile──▶ Executable ──run──▶ arrays

`load` reads and checks a file. `quantize` and `quantize_dynamic` give a new Model, which is standard ONNX and can be saved. A session
(qrt/session.py) compiles a Model of either kind, float or quantized, and runs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import onnx

from qrt.core.errors import InvalidInput
from qrt.graph import Model
from qrt.graph.passes import prepare
from qrt.graph.rules import FusionReport, fuse
from qrt.jit import host_target
from qrt.loaders import load
from qrt.lower import Executable
from qrt.quantization import quantize, quantize_dynamic
from qrt.runtime.team import available_cpus

__all__ = ["Source", "compile_model", "fuse_model", "load", "quantize", "quantize_dynamic"]

# What a model may come as.
Source = str | os.PathLike[str] | bytes | onnx.ModelProto | Model


def fuse_model(model: Model) -> tuple[Model, FusionReport]:
    """A copy of `model` in the fused form (docs/architecture.md), and what was fused, or why not."""
    fused = prepare(model)
    return fused, fuse(fused)


def compile_model(fused: Model, *, num_threads: int | None = None, target: str | None = None, taps: Sequence[str] = ()) -> Executable:
    """What runs a fused (or merely prepared) model. Plans are made as input shapes are met, kernels compiled as plans need them.

    `num_threads`: threads a run may use, the caller's included; by default as many as this process may use processors.
    `target`: the instruction set; by default QRT_TARGET or the best this machine has. `taps`: values that a tapped run shows.
    Raises InvalidInput for a number of threads below 1 and for a target that this machine cannot run.
    """
    threads = available_cpus() if num_threads is None else num_threads
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InvalidInput(f"num_threads is {num_threads!r}: give an integer of 1 or more, or None for every processor")
    return Executable(fused, host_target(target), threads, taps)
