"""Quantizers for tests: annotations that a function writes, specs, and a model of two products that read one input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cnn import BATCHES
from graphs import images, make

import qrt
from qrt.graph import Model, ir
from qrt.loaders import load
from qrt.quantization import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    PreparedModel,
    QuantizationSpec,
    Quantizer,
    prepare_pt2e,
)

Nodes = dict[str, ir.Node]
ACTIVATION = QuantizationSpec(qrt.quint8, MinMaxObserver)
WEIGHT = QuantizationSpec(qrt.qint8, PerChannelMinMaxObserver, -127, 127, qrt.per_channel_symmetric, 0)
COLUMNS = QuantizationSpec(qrt.qint8, PerChannelMinMaxObserver, -127, 127, qrt.per_channel_symmetric, 1)


class Annotated(Quantizer):
    """Whatever a function does to the nodes, by their names."""

    def __init__(self, annotate: Callable[[Nodes], None]) -> None:
        self.function = annotate

    def annotate(self, model: Model) -> Model:
        self.function({node.name or "": node for node in model.graph})
        return model


def taught(model: qrt.Model, quantizer: Quantizer | Callable[[Nodes], None], *batches: np.ndarray) -> PreparedModel:
    """A prepared model, after some batches; by default those of the CNN."""
    observed = prepare_pt2e(model, quantizer if isinstance(quantizer, Quantizer) else Annotated(quantizer))
    for batch in batches or BATCHES:
        observed(batch)
    return observed


def file(model: qrt.Model) -> bytes:
    return model.to_proto().SerializeToString(deterministic=True)


def inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


TWO = "(float[N,8] x) => (float[N,5] y, float[N,5] z) { [one] y = MatMul(x, w) [two] z = MatMul(x, v) }"
TWO_WEIGHTS = {"w": images(8, 5), "v": images(8, 5, seed=1)}
FLAT = [images(4, 8, seed=k) for k in range(3, 6)]
SIGNED = QuantizationSpec(qrt.qint8, MovingAverageMinMaxObserver)


def two() -> qrt.Model:
    return load(make(TWO, **TWO_WEIGHTS))
