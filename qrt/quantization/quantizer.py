"""Quantizers: what says, node by node, how a graph is to be quantized. The vocabulary of torch's export quantization (pt2e).

A `Quantizer` writes a `QuantizationAnnotation` to the nodes it knows (`annotate`, `node.meta`); whatever quantizes in qrt does so by one.
A tensor is named by an ir.Value; where a value is quantized for one of its readers only, by the edge (value, reader).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qrt.core.dtypes import QDType, QScheme, per_channel_affine_float_qparams, quint8
from qrt.core.errors import InvalidInput, QuantizationError
from qrt.core.record import record
from qrt.graph import Model, ir
from qrt.observers import PerChannelMinMaxObserver
from qrt.quantization.rules import is_embedding

__all__ = [
    "ComposableQuantizer",
    "DerivedQuantizationSpec",
    "EdgeOrNode",
    "EmbeddingQuantizer",
    "FixedQParamsQuantizationSpec",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "annotate_input_qspec_map",
    "annotate_output_qspec",
    "annotation_of",
    "annotations_in",
    "forget",
]

# A value; the node that makes it, if it makes no other; or a value on its way to one reader.
EdgeOrNode = tuple[ir.Value, ir.Node] | ir.Value | ir.Node

# Where annotations are kept in the meta of nodes and values.
KEY = "quantization_annotation"


class QuantizationSpecBase(ABC):  # noqa: B024 - a common name, as in torch; each spec says something else
    """What may be said of a tensor: one of the four specs below."""


def _check_range(quant_min: int | None, quant_max: int | None) -> None:
    if quant_min is not None and quant_max is not None and quant_min > quant_max:
        raise QuantizationError(f"quant_min {quant_min} is above quant_max {quant_max}: exchange them")


@record
class QuantizationSpec(QuantizationSpecBase):
    """A tensor becomes codes, with qparams that an observer learns.

    `dtype`: of the codes. `observer_or_fake_quant_ctr`: makes the observer or fake-quantize; it gets whichever of the fields here are given
    and it knows. `quant_min`, `quant_max`: a custom range of codes. `qscheme`; `ch_axis`: the channel axis of a per-channel observer.
    `is_dynamic`: qparams are computed in each run. Raises QuantizationError for an empty range and a negative axis.
    """

    dtype: QDType
    observer_or_fake_quant_ctr: Callable[..., Any]
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: QScheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        _check_range(self.quant_min, self.quant_max)
        if self.ch_axis is not None and self.ch_axis < 0:
            raise QuantizationError(f"ch_axis is {self.ch_axis}: count the channel axis from the first, from 0 on")


@record
class FixedQParamsQuantizationSpec(QuantizationSpecBase):
    """A tensor whose range is known: these qparams, and no observer. `scale` > 0; `zero_point` within the codes of `dtype`."""

    dtype: QDType
    scale: float
    zero_point: int
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: QScheme | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        _check_range(self.quant_min, self.quant_max)


@record
class SharedQuantizationSpec(QuantizationSpecBase):
    """A tensor has the observer, and so the qparams, of another. `edge_or_node`: that other."""

    edge_or_node: EdgeOrNode


@record(eq=False)
class DerivedQuantizationSpec(QuantizationSpecBase):
    """A tensor's qparams follow from those of others, as those of a bias from its input's and its weight's.

    `derived_from`: the others. `derive_qparams_fn`: their observers, in that order → scale and zero point, of shape () or, along `ch_axis`
    (0 if None), (channels,). The rest as in QuantizationSpec.
    """

    derived_from: Sequence[EdgeOrNode]
    derive_qparams_fn: Callable[[Sequence[Any]], tuple[np.ndarray, np.ndarray]]
    dtype: QDType
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: QScheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        _check_range(self.quant_min, self.quant_max)


@dataclass
class QuantizationAnnotation:
    """How a node is quantized. `input_qspec_map`: an input → the spec of the edge to this node; `output_qspec`: of its (float) outputs.

    An edge without a spec of its own takes what its maker's output gives. `allow_implicit_sharing`: whether edges from one value with equal
    specs, and that value itself, have one observer. `_annotated`: set by quantizers for others to see.
    """

    input_qspec_map: dict[ir.Value, QuantizationSpecBase | None] = field(default_factory=dict)
    output_qspec: QuantizationSpecBase | None = None
    allow_implicit_sharing: bool = True
    _annotated: bool = False


class Quantizer(ABC):
    """Base of quantizers, one's own included: write `annotate`, and `validate` if there is something to check.

    `prepare_pt2e` calls, in this order, `transform_for_annotation`, `annotate`, `validate` and `prepare_obs_or_fq_callback`.
    """

    def transform_for_annotation(self, model: Model) -> Model:
        """Rewrite the (cleaned) float graph before it is annotated; by default not at all."""
        return model

    @abstractmethod
    def annotate(self, model: Model) -> Model:
        """Annotate the nodes that this quantizer knows, in place, and return the model."""

    def validate(self, model: Model) -> None:  # noqa: B027 - most have nothing to check
        """Raise QuantizationError if the annotated graph is none that the backend supports."""

    def prepare_obs_or_fq_callback(self, model: Model, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]) -> None:  # noqa: B027 - as above
        """See, and change in place, which observer or fake-quantize each value and edge has got."""


class ComposableQuantizer(Quantizer):
    """Several quantizers, one after the other. Each may only annotate what none before it has.

    Raises QuantizationError, from `annotate`, where one changes the annotation of another.
    """

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        for quantizer in quantizers:
            if not isinstance(quantizer, Quantizer):
                raise InvalidInput(f"ComposableQuantizer holds a {type(quantizer).__name__}: give qrt.quantization.Quantizer objects")
        self.quantizers = list(quantizers)

    def transform_for_annotation(self, model: Model) -> Model:
        for quantizer in self.quantizers:
            model = quantizer.transform_for_annotation(model)
        return model

    def annotate(self, model: Model) -> Model:
        seen: dict[ir.Node | ir.Value, tuple[object, Quantizer]] = {}
        for quantizer in self.quantizers:
            quantizer.annotate(model)
            for place, found in annotations_in(model).items():
                now = (dict(found.input_qspec_map), found.output_qspec)
                if place in seen and seen[place][0] != now:
                    first = type(seen[place][1]).__name__
                    raise QuantizationError(
                        f"{place.name!r} has conflicting annotations, of {first} and of {type(quantizer).__name__}: "
                        "let the second leave alone what is annotated, or put it first"
                    )
                seen.setdefault(place, (now, quantizer))
        return model

    def validate(self, model: Model) -> None:
        for quantizer in self.quantizers:
            quantizer.validate(model)

    def prepare_obs_or_fq_callback(self, model: Model, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]) -> None:
        for quantizer in self.quantizers:
            quantizer.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)


class EmbeddingQuantizer(Quantizer):
    """Tables that rows are looked up in (Gather along axis 0 of a constant) become uint8; each row has a float scale and zero point."""

    def annotate(self, model: Model) -> Model:
        spec = QuantizationSpec(
            quint8, PerChannelMinMaxObserver.with_args(eps=2.0**-12), qscheme=per_channel_affine_float_qparams, ch_axis=0
        )
        for node in model.graph:
            table = node.inputs[0] if is_embedding(node) and annotation_of(node) is None else None
            if table is not None:
                annotate_input_qspec_map(node, table, spec)
        return model


def annotation_of(place: ir.Node | ir.Value) -> QuantizationAnnotation | None:
    """What is said of a node or a value, if anything."""
    found = place.meta.get(KEY)
    if found is not None and not isinstance(found, QuantizationAnnotation):
        raise InvalidInput(f"{place.name!r} is annotated with a {type(found).__name__}: give a QuantizationAnnotation")
    return found


def annotate_input_qspec_map(node: ir.Node, input_node: ir.Value, qspec: QuantizationSpecBase | None) -> None:
    """Say how the input `input_node` of `node` is quantized on its way there."""
    _annotation(node).input_qspec_map[input_node] = qspec


def annotate_output_qspec(node: ir.Node | ir.Value, qspec: QuantizationSpecBase | None) -> None:
    """Say how the outputs of `node`, or one value, such as an input of the model, are quantized."""
    _annotation(node).output_qspec = qspec


def _annotation(place: ir.Node | ir.Value) -> QuantizationAnnotation:
    found = annotation_of(place) or QuantizationAnnotation(_annotated=True)
    place.meta[KEY] = found
    return found


def annotations_in(model: Model) -> Mapping[ir.Node | ir.Value, QuantizationAnnotation]:
    """All annotations of a graph, in its order: of its inputs, then of each node and of its outputs."""
    places: list[ir.Node | ir.Value] = list(model.graph.inputs)
    for node in model.graph:
        places += [node, *node.outputs]
    return {place: found for place in places if (found := annotation_of(place)) is not None}


def forget(model: Model) -> None:
    """Takes all annotations off a graph."""
    for place in annotations_in(model):
        del place.meta[KEY]
