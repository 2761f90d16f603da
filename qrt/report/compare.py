"""What quantization did to a model: layer by layer, and at the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from qrt.api import compile_model, fuse_model
from qrt.core.accuracy import decibels, difference
from qrt.core.dtypes import qint8, quint8
from qrt.core.errors import InvalidInput
from qrt.core.numerics import dequantize
from qrt.core.qparams import QParams
from qrt.feeds import Contract
from qrt.graph import Model, constant, ir, is_op
from qrt.graph.passes import prepare
from qrt.interface import declared
from qrt.ops.op import Array

__all__ = ["Comparison", "Difference", "compare_models"]


@dataclass
class Difference:
    """How far one value of the int8 model is from the float model's, over all samples.

    `sqnr`: signal to quantization noise, 10·log10(Σ float² / Σ (float − int8)²) in dB; inf where they are equal. `cosine`: of the angle
    between the two as vectors. `largest`: the largest absolute difference. `agreement`: how often the largest element along the last axis
    stands at the same place; None where that axis has fewer than two elements.
    """

    name: str
    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    other: float = 0.0
    largest: float = 0.0
    rows: int = 0
    agreeing: int = 0

    def add(self, real: Array, found: Array) -> None:
        """Takes one sample into account."""
        a, b = np.asarray(real, np.float64), np.asarray(found, np.float64)
        if a.shape != b.shape:
            raise InvalidInput(f"{self.name!r} has shape {a.shape} in one model and {b.shape} in the other: these are two different models")
        error = difference(a, b)
        with np.errstate(over="ignore", invalid="ignore"):  # masks hold infinities: their cosine is unknown
            self.signal += float(np.sum(a * a))
            self.other += float(np.sum(b * b))
            self.product += float(np.sum(a * b))
            self.noise += float(np.sum(error**2))
        self.largest = max(self.largest, float(np.max(np.abs(error), initial=0.0)))
        if a.ndim and a.shape[-1] > 1 and a.size:
            same = a.argmax(-1) == b.argmax(-1)
            self.rows += same.size
            self.agreeing += int(same.sum())

    @property
    def sqnr(self) -> float:
        return decibels(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        norm = math.sqrt(self.signal * self.other)
        return self.product / norm if norm else float(self.signal == self.other)

    @property
    def agreement(self) -> float | None:
        return self.agreeing / self.rows if self.rows else None


@dataclass
class Comparison:
    """`layers`: values that both models have, worst first. `outputs`: in the models' order."""

    samples: int
    layers: list[Difference] = field(default_factory=list)
    outputs: list[Difference] = field(default_factory=list)


def compare_models(real: Model, quantized: Model, samples: Iterable[Mapping[str, Array]], target: str | None = None) -> Comparison:
    """Runs both models on `samples` and compares values of the same name: float ones as they are, int8 codes by what they stand for.

    The int8 model runs as a session runs it. Raises InvalidInput for models whose inputs or outputs differ, and for no samples.
    """
    for kind, ours, theirs in (("inputs", real.inputs, quantized.inputs), ("outputs", real.outputs, quantized.outputs)):
        if [info.name for info in ours] != [info.name for info in theirs]:
            raise InvalidInput(f"{real.name} and {quantized.name} have different {kind}: these are not two forms of one model")
    plain = prepare(real)
    fused, _ = fuse_model(quantized)
    views = _views(prepare(quantized), fused, {value.name or "" for node in plain.graph for value in node.outputs})
    left = compile_model(plain, target=target, taps=sorted({name for name, _ in views.values()}))
    right = compile_model(fused, target=target, taps=sorted(views))
    check = Contract(declared(real))
    held: dict[str, Array] = {}
    layers = {name: Difference(name) for name, _ in views.values()}
    outputs = [Difference(info.name) for info in real.outputs]
    count = 0

    def keep(name: str, array: Array) -> None:
        held[name] = array.copy()

    def look(name: str, array: Array) -> None:
        site, decode = views[name]
        if site in held:
            layers[site].add(held[site], decode(array))

    for sample in samples:
        feeds = check(sample)
        held.clear()
        wanted = left.run(feeds, keep)
        for output, a, b in zip(outputs, wanted, right.run(feeds, look), strict=True):
            output.add(a, b)
        count += 1
    if not count:
        raise InvalidInput("no samples to compare on")
    seen = [layer for layer in layers.values() if layer.signal or layer.other]
    return Comparison(count, sorted(seen, key=lambda layer: layer.sqnr), outputs)


def _views(quantized: Model, fused: Model, sites: set[str]) -> dict[str, tuple[str, Callable[[Array], Array]]]:
    """The values of the fused int8 model that stand for a value of the float model: name → that value's name, and how to decode."""
    there = {value.name or "" for node in fused.graph for value in node.outputs}
    views: dict[str, tuple[str, Callable[[Array], Array]]] = {name: (name, np.asarray) for name in sites & there}
    for node in quantized.graph:
        if not is_op(node, "QuantizeLinear") or node.inputs[0] is None:
            continue
        # A model's output keeps its name through quantization; what is quantized goes by another.
        site = (node.inputs[0].name or "").removesuffix("_QuantizeLinear_Input")
        for codes, params in _forms(node):
            if codes in there and site in sites:
                views.pop(site, None)
                views[codes] = (site, partial(dequantize, qparams=params))
    return views


def _forms(node: ir.Node) -> list[tuple[str, QParams]]:
    """The codes that a per-tensor QuantizeLinear gives, by name, and what int8 ones become in the fused form (rules/unsigned.py)."""
    codes = node.outputs[0].name or ""
    scale, zero_point = (constant(value) for value in node.inputs[1:3]) if len(node.inputs) > 2 else (None, None)
    if scale is None or zero_point is None or scale.size != 1:
        return []
    scale, zero_point = scale.reshape(()), zero_point.reshape(())
    if zero_point.dtype == np.uint8:
        return [(codes, QParams(scale, zero_point, quint8))]
    if zero_point.dtype == np.int8:
        return [(codes, QParams(scale, zero_point, qint8)), (f"{codes}_uint8", QParams(scale, zero_point.astype(np.int32) + 128, quint8))]
    return []
