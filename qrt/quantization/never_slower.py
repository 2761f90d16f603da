"""Never slower: each layer is timed in float and in int8, as it stands in its graph and on this machine, and the faster one is kept.

A layer is a product with what follows it up to the next one, activations and dequantization included, and with the quantization of its own
input: what is there for its sake. One batch is enough, for ranges do not change how long a kernel takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from glob import escape

import numpy as np

from qrt.core.record import record
from qrt.graph import Model, ir, is_op
from qrt.graph.passes import prepare
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.lower import Executable
from qrt.quantization.batches import Batch, feeds_of
from qrt.quantization.placement import QrtQuantizer
from qrt.quantization.prepared import prepare_model
from qrt.quantization.qconfig_mapping import QConfigMapping
from qrt.runtime.clock import Clock
from qrt.runtime.team import available_cpus

__all__ = ["LayerTimes", "NeverSlower", "time_layers"]

# What int8 may take longer and still count as equal: least times of one machine differ by less from one minute to the next.
MARGIN = 0.05
# The share of the whole model's time that float layers have to save, or they are not worth the codes around them.
GAIN = 0.01
# A measurement takes both: small models need time, so that no other program can be in the way all along; large ones need runs.
_SECONDS, _RUNS = 0.5, 25
# The fused forms of what int8 is for (docs/architecture.md).
_FLOAT = ("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedConvTranspose", "FusedGemm", "FusedMatMul")
_PRODUCTS = frozenset({*_FLOAT, "QConv", "QConvAdd", "QConvTranspose", "QConvFloat", "QMatMul", "QMatMulFloat"})
# Every round quantizes, compiles and times the model once more.
_MAX_ROUNDS = 8


@record
class LayerTimes:
    """A layer that could be int8. `name`, `op_type`: its product; `float_us`, `int8_us`: microseconds a run; `kept`: "int8" or "float"."""

    name: str
    op_type: str
    float_us: float
    int8_us: float
    kept: str = "int8"


@record
class NeverSlower:
    """What was found. `layers`: those that could be int8, in the model's order; `float_us`, `int8_us`: microseconds a run of the float
    model, and of that with int8 in the layers that are kept so; `all_float`: whether those are none, for nothing makes the model faster.
    """

    layers: Sequence[LayerTimes]
    float_us: float
    int8_us: float
    all_float: bool

    @property
    def left_float(self) -> list[LayerTimes]:
        """The layers that int8 makes slower."""
        return [layer for layer in self.layers if layer.kept == "float"]

    @property
    def exclude(self) -> list[str]:
        """The patterns to give `qrt.quantize` as `exclude`, beside one's own."""
        return [escape(layer.name) for layer in self.left_float]


def time_layers(model: Model, batch: Batch, qconfig_mapping: QConfigMapping | None = None, *, exclude: Iterable[str] = ()) -> NeverSlower:
    """Find the layers of a float model that are slower in int8 than in float, on this machine and on as many threads as a session takes.

    `batch`: one input like those to come, also in size: a dict of name → array, or one array for a model with one input.
    `qconfig_mapping`, `exclude`: as for `qrt.quantize`.

    Layers that are slower by more than 5 % become float, and the model is quantized and timed again, for now other values go from float to
    int8 and back. That stands if it made the model faster by 1 %; else only the half of them that loses most is tried. A model that takes
    longer than the float one even so stays float as a whole. Layers that a QConfig quantizes dynamically count only as part of that whole.
    Takes up to a minute. Raises what `qrt.quantize` raises.
    """
    quantizer = QrtQuantizer(qconfig_mapping, exclude=exclude)
    clean = prepare(model)
    feeds = feeds_of(clean, batch, "the batch to time")
    real = _form(clean)

    def int8_but_for(names: Iterable[str]) -> _Form:
        again = QrtQuantizer(quantizer.mapping, exclude=[*quantizer.exclude, *map(escape, names)])
        prepared = prepare_model(model, again)
        prepared.calibrate([feeds])
        return _form(prepared.convert())

    best = int8_but_for(())
    real_times, best_times = step_times([real.executable, best.executable], feeds)
    layers = _layers(real, real_times, best, best_times)
    left: list[str] = []
    tries = _slow(layers)
    for _ in range(_MAX_ROUNDS):
        if sum(layers[name].int8_us - layers[name].float_us for name in tries) <= GAIN * best_times.total:
            break
        trial = real if best.int8.keys() <= set(tries) else int8_but_for([*left, *tries])
        real_times, best_times, trial_times = step_times([form.executable for form in (real, best, trial)], feeds)
        if trial_times.total >= best_times.total * (1 - GAIN):
            tries = tries[: len(tries) // 2]
            continue
        left, best, best_times = [*left, *tries], trial, trial_times
        layers |= {name: replace(layers[name], kept="float") for name in tries}
        layers |= _layers(real, real_times, best, best_times)
        tries = _slow(layers)
    if best is not real and best_times.total > real_times.total * (1 + MARGIN):
        # Once more, for this is about all of it, and another program may have been in the way.
        real_times, best_times = step_times([real.executable, best.executable], feeds)
    if best_times.total > real_times.total * (1 + MARGIN):
        best, best_times = real, real_times
        layers = {name: replace(layer, kept="float") for name, layer in layers.items()}
    return NeverSlower(list(layers.values()), real_times.total, best_times.total, best is real)


def _slow(layers: Mapping[str, LayerTimes]) -> list[str]:
    """The int8 layers that float would make faster, those that lose most first."""
    slow = [layer for layer in layers.values() if layer.kept == "int8" and layer.int8_us > layer.float_us * (1 + MARGIN)]
    return [layer.name for layer in sorted(slow, key=lambda layer: layer.float_us - layer.int8_us)]


# -- layers ---------------------------------------------------------------------------------------------------------------
@record
class _Form:
    """A model, float or int8, ready to run. `owners`: node → the product whose layer it is in; `int8`: products of codes → operator."""

    executable: Executable
    owners: Mapping[str, str]
    int8: Mapping[str, str]


def _form(model: Model) -> _Form:
    """`model` as a session runs it."""
    fused = prepare(model)
    fuse(fused)
    products = [node for node in fused.graph if node.op_type in _PRODUCTS]
    int8 = {node.name or "": node.op_type for node in products if node.op_type.startswith("Q")}
    return _Form(Executable(fused, host_target(), available_cpus()), _owners(fused, products), int8)


def _owners(fused: Model, products: Sequence[ir.Node]) -> dict[str, str]:
    """Node → the last product up from it; of what quantizes, the first one down. What has none is in no layer."""
    number = {node: index for index, node in enumerate(products)}
    above, below = dict(number), dict(number)
    nodes = list(fused.graph)
    for node in nodes:
        makers = [v.producer() for v in node.inputs if v is not None]
        found = [above[maker] for maker in makers if maker in above]
        if found and node not in number:
            above[node] = max(found)
    for node in reversed(nodes):
        found = [below[use.node] for v in node.outputs for use in v.uses() if use.node in below]
        if found and node not in number:
            below[node] = min(found)
    owners = {}
    for node in nodes:
        first = below.get(node) if is_op(node, "QuantizeLinear", "DynamicQuantizeLinear") else None
        index = above.get(node) if first is None else first
        if index is not None:
            owners[node.name or node.op_type] = products[index].name or ""
    return owners


def _layers(real: _Form, real_times: Times, form: _Form, times: Times) -> dict[str, LayerTimes]:
    """The int8 layers of `form` beside those of the float model, by product."""
    ours, theirs = _by_layer(real, real_times), _by_layer(form, times)
    return {name: LayerTimes(name, op, ours[name], theirs[name]) for name, op in form.int8.items() if name in ours and name in theirs}


def _by_layer(form: _Form, times: Times) -> dict[str, float]:
    sums: dict[str, float] = {}
    for node, microseconds in times.nodes.items():
        if node in form.owners:
            sums[form.owners[node]] = sums.get(form.owners[node], 0.0) + microseconds
    return sums


# -- the clock ------------------------------------------------------------------------------------------------------------
@record
class Times:
    """Least microseconds of the steps of each node, by its name."""

    nodes: Mapping[str, float]

    @property
    def total(self) -> float:
        """Of a run in which nothing comes between."""
        return sum(self.nodes.values())


def step_times(executables: Sequence[Executable], feeds: Mapping[str, np.ndarray]) -> list[Times]:
    """How long each takes on `feeds`: run in turns, so that all meet the same machine."""
    clock = Clock()
    for executable in executables:
        executable.run(feeds)  # plans and compiles
    least = [_cycles(executable, feeds) for executable in executables]
    begin, runs = time.perf_counter(), 0
    while runs < _RUNS or time.perf_counter() - begin < _SECONDS:
        for executable, known in zip(executables, least, strict=True):
            for name, spent in _cycles(executable, feeds).items():
                known[name] = min(known[name], spent)
        runs += 1
    start, end = clock.microseconds(np.array([0, 1 << 32]))
    rate = float(end - start) / (1 << 32)
    return [Times({name: spent * rate for name, spent in known.items()}) for known in least]


def _cycles(executable: Executable, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Cycles of the steps of each node, in one run."""
    sums: dict[str, int] = {}

    def add(names: Sequence[str], kernels: Sequence[str], cycles: np.ndarray) -> None:
        for name, spent in zip(names, np.diff(cycles).tolist(), strict=True):
            sums[name] = sums.get(name, 0) + spent

    executable.run(feeds, clock=add)
    return sums
