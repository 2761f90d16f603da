"""Annotations and specs that the quantization engine refuses: each its own message, which names the site and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import cnn
import numpy as np
import pytest
from annotated import ACTIVATION, Annotated, Nodes
from cnn import X
from graphs import F32, images, make

import qrt
from qrt.graph import ir
from qrt.loaders import load
from qrt.quantization import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    SharedQuantizationSpec,
    annotate_input_qspec_map,
    annotate_output_qspec,
    convert_pt2e,
    prepare_pt2e,
)


def weight(spec: QuantizationSpec) -> Callable[[Nodes], None]:
    return lambda nodes: annotate_input_qspec_map(nodes["stem.conv"], _input(nodes["stem.conv"], 1), spec)


def activation(spec: Any, node: str = "stem.conv", index: int = 0) -> Callable[[Nodes], None]:
    return lambda nodes: annotate_input_qspec_map(nodes[node], _input(nodes[node], index), spec)


def output(spec: Any, node: str = "stem.relu") -> Callable[[Nodes], None]:
    return lambda nodes: annotate_output_qspec(nodes[node], spec)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _ring(nodes: Nodes) -> None:
    annotate_output_qspec(nodes["stem.relu"], SharedQuantizationSpec(nodes["block.relu"]))
    annotate_output_qspec(nodes["block.relu"], SharedQuantizationSpec(nodes["head.conv"]))
    annotate_output_qspec(nodes["head.conv"], SharedQuantizationSpec(nodes["stem.relu"]))


def _itself(nodes: Nodes) -> None:
    annotate_output_qspec(nodes["stem.relu"], SharedQuantizationSpec(nodes["stem.relu"]))


def _derived_ring(nodes: Nodes) -> None:
    one, two = nodes["stem.relu"], nodes["block.relu"]
    annotate_output_qspec(one, DerivedQuantizationSpec([two], lambda o: o[0].calculate_qparams(), qrt.quint8))
    annotate_output_qspec(two, DerivedQuantizationSpec([one], lambda o: o[0].calculate_qparams(), qrt.quint8))


def _derived_float(nodes: Nodes) -> None:
    node = nodes["stem.conv"]
    edges = [(_input(node, 0), node), (_input(node, 1), node)]
    annotate_input_qspec_map(node, _input(node, 2), DerivedQuantizationSpec(edges, lambda o: o[0].calculate_qparams(), qrt.qint32))


def _no_input(nodes: Nodes) -> None:
    annotate_input_qspec_map(nodes["head.conv"], _input(nodes["stem.conv"], 0), ACTIVATION)


def _of_a_value(nodes: Nodes) -> None:
    x = _input(nodes["stem.conv"], 0)
    x.meta["quantization_annotation"] = QuantizationAnnotation({x: ACTIVATION})


def _no_annotation(nodes: Nodes) -> None:
    nodes["fc"].meta["quantization_annotation"] = {"output": ACTIVATION}


def _constant_itself(nodes: Nodes) -> None:
    annotate_output_qspec(_input(nodes["stem.conv"], 1), ACTIVATION)


def _node_and_value(nodes: Nodes) -> None:
    annotate_output_qspec(nodes["stem.relu"], ACTIVATION)
    annotate_output_qspec(nodes["stem.relu"].outputs[0], QuantizationSpec(qrt.qint8, MinMaxObserver))


DYNAMIC = QuantizationSpec(qrt.quint8, PlaceholderObserver, is_dynamic=True)


def _dynamic_bias(nodes: Nodes) -> None:
    x, w, b = (_input(nodes["fc"], index) for index in range(3))
    for value, spec in ((x, DYNAMIC), (w, QuantizationSpec(qrt.qint8, MinMaxObserver)), (b, QuantizationSpec(qrt.qint8, MinMaxObserver))):
        annotate_input_qspec_map(nodes["fc"], value, spec)


def _derived_dynamic(nodes: Nodes) -> None:
    node = nodes["stem.conv"]
    x, w = _input(node, 0), _input(node, 1)
    annotate_input_qspec_map(node, x, DYNAMIC)
    annotate_input_qspec_map(node, w, QuantizationSpec(qrt.qint8, MinMaxObserver))
    annotate_output_qspec(nodes["fc"], DerivedQuantizationSpec([(x, node), (w, node)], lambda o: o[0].calculate_qparams(), qrt.quint8))


PER_CHANNEL = PerChannelMinMaxObserver.with_args(qscheme=qrt.per_channel_symmetric)
REFUSED: dict[str, tuple[Callable[[Nodes], None], str]] = {
    "ring": (_ring, "shared specs go round in a ring: 'r' → 'e' → 'h' → 'r'; give one of them a spec of its own"),
    "ring of one": (_itself, "shared specs go round in a ring: 'r' → 'r'; give one of them a spec of its own"),
    "derived in a ring": (_derived_ring, "the qparams of 'r' derive from themselves in the end"),
    "derived from float": (
        _derived_float,
        "'b' on its way to 'stem.conv' derives its qparams from 'x', which is not quantized: annotate that, or leave 'b' on its way to "
        "'stem.conv' float",
    ),
    "none of its inputs": (_no_input, "the annotation of 'head.conv' names 'x', which is none of its inputs"),
    "inputs of a value": (_of_a_value, "the annotation of 'x' names 'x', which is none of its inputs"),
    "no annotation": (_no_annotation, "'fc' is annotated with a dict: give a QuantizationAnnotation"),
    "no spec": (output(qrt.quint8), "'r' is annotated with a QDType: give a QuantizationSpec or one of its kin"),
    "channel axis beyond the rank": (
        weight(QuantizationSpec(qrt.qint8, PER_CHANNEL, ch_axis=4)),
        "'w' on its way to 'stem.conv' has 4 axes; its spec's ch_axis is 4: give one of 0 … 3",
    ),
    "other channel axis": (
        weight(QuantizationSpec(qrt.qint8, PER_CHANNEL, ch_axis=1)),
        "'w' on its way to 'stem.conv', the weight of Conv 'stem.conv', has a spec with ch_axis 1: its output channels lie along axis 0",
    ),
    "activation per channel": (
        activation(QuantizationSpec(qrt.quint8, PerChannelMinMaxObserver, qscheme=qrt.per_channel_affine, ch_axis=1)),
        "'x' on its way to 'stem.conv' is an activation; its spec is qrt.per_channel_affine: activations take one scale per tensor",
    ),
    "int16": (
        activation(QuantizationSpec(qrt.qint16, MinMaxObserver)),
        "'x' on its way to 'stem.conv' would become qrt.qint16, which its operator's rule does not support: activations may be "
        "qrt.quint8 or qrt.qint8; change the dtype of its qconfig or spec, or leave it float (None)",
    ),
    "weight of uint8": (
        weight(QuantizationSpec(qrt.quint8, MinMaxObserver)),
        "'w' on its way to 'stem.conv' would become qrt.quint8, which its operator's rule does not support: the weight of Conv 'stem.conv' "
        "may be qrt.qint8; change the dtype",
    ),
    "dynamic where nothing is": (
        activation(DYNAMIC, "block.pool"),
        "'e' on its way to 'block.pool' is quantized dynamically, which MaxPool 'block.pool' cannot read: only a Conv, Gemm or MatMul",
    ),
    "dynamic for all": (output(DYNAMIC), "'r' is quantized dynamically for all that read it: annotate the edge to each product instead"),
    "dynamic without a weight": (
        activation(DYNAMIC),
        "'x' on its way to 'stem.conv' is quantized dynamically, and its weight 'w' is not quantized: annotate that; a bias stays float",
    ),
    "dynamic with a bias": (
        _dynamic_bias,
        "'f' on its way to 'fc' is quantized dynamically, and so is more than its weight; a bias stays float",
    ),
    "dynamic weight": (
        weight(QuantizationSpec(qrt.qint8, PlaceholderObserver, is_dynamic=True)),
        "'w' on its way to 'stem.conv' has qparams that are known before, and its spec says is_dynamic: take that away",
    ),
    "dynamic and fixed": (
        activation(FixedQParamsQuantizationSpec(qrt.quint8, 0.1, 0, is_dynamic=True)),
        "has qparams that are known before, and its spec says is_dynamic: take that away",
    ),
    "derived from what is dynamic": (
        _derived_dynamic,
        "'y' derives its qparams from 'x' on its way to 'stem.conv', which is quantized in each run: leave 'y' float",
    ),
    "constant itself": (_constant_itself, "'w' is a constant: annotate the edges to its readers, with annotate_input_qspec_map"),
    "node and value": (_node_and_value, "'r' has conflicting annotations, its own and that of its node: take one of them away"),
    "observer of another dtype": (
        activation(QuantizationSpec(qrt.quint8, lambda: MinMaxObserver(dtype=qrt.qint8))),
        "x.stem.conv: its spec says qrt.quint8, and its observer gives another: make them agree",
    ),
    "no observer": (activation(QuantizationSpec(qrt.quint8, dict)), "x.stem.conv: its spec makes a dict: give what makes an observer"),
    "observer that cannot be made": (
        activation(QuantizationSpec(qrt.quint8, lambda threshold: MinMaxObserver())),
        "x.stem.conv: its observer cannot be made: .*threshold",
    ),
    "observer with options that contradict": (
        activation(QuantizationSpec(qrt.quint8, MinMaxObserver, qscheme=qrt.per_channel_affine)),
        "is an activation; its spec is qrt.per_channel_affine",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_annotations_that_are_refused(name: str) -> None:
    annotate, message = REFUSED[name]
    with pytest.raises(qrt.QrtError, match=message if ".*" in message else re.escape(message)):
        prepare_pt2e(cnn.cnn(), Annotated(annotate))


def test_shared_with_a_float_value() -> None:
    def annotate(nodes: Nodes) -> None:
        annotate_output_qspec(nodes["stem.relu"], SharedQuantizationSpec(nodes["block.conv"]))

    with pytest.raises(qrt.QuantizationError, match="'r' shares the qparams of 's', which is not quantized: annotate that too"):
        prepare_pt2e(cnn.cnn(), Annotated(annotate))


def test_a_spec_that_names_a_node_of_several_outputs() -> None:
    model = make("(float[N,8] x) => (float[N,4] y) { [cut] a, b = Split<axis: int = 1, num_outputs: int = 2>(x) [sum] y = Add(a, b) }")

    def annotate(nodes: Nodes) -> None:
        annotate_output_qspec(nodes["sum"], SharedQuantizationSpec(nodes["cut"]))

    with pytest.raises(qrt.QuantizationError, match="a spec names node 'cut', which has 2 outputs: name the value"):
        prepare_pt2e(load(model), Annotated(annotate))


def test_integers_do_not_become_codes() -> None:
    model = make("(int64[N] ids) => (float[N,4] y) { [embed] y = Gather(t, ids) }", t=images(9, 4))
    with pytest.raises(
        qrt.QuantizationError, match="'ids' on its way to 'embed' is annotated, but holds INT64: only float32 becomes codes"
    ):
        prepare_pt2e(load(model), Annotated(activation(ACTIVATION, "embed", 1)))


@pytest.mark.parametrize(
    ("make_spec", "message"),
    [
        (lambda: QuantizationSpec(qrt.quint8, MinMaxObserver, 200, 100), "quant_min 200 is above quant_max 100: exchange them"),
        (lambda: FixedQParamsQuantizationSpec(qrt.quint8, 0.1, 0, 9, 8), "quant_min 9 is above quant_max 8: exchange them"),
        (lambda: DerivedQuantizationSpec([], lambda o: o, qrt.qint32, 1, 0), "quant_min 1 is above quant_max 0: exchange them"),
        (
            lambda: QuantizationSpec(qrt.qint8, MinMaxObserver, ch_axis=-1),
            "ch_axis is -1: count the channel axis from the first",
        ),
    ],
)
def test_specs_that_are_refused(make_spec: Callable[[], Any], message: str) -> None:
    with pytest.raises(qrt.QuantizationError, match=message):
        make_spec()


@pytest.mark.parametrize(
    ("derive", "message"),
    [
        (lambda o: None, "'b' on its way to 'stem.conv': its derive_qparams_fn fails"),
        (lambda o: o[5].calculate_qparams(), "'b' on its way to 'stem.conv': its derive_qparams_fn fails"),
        (lambda o: (np.array(-1.0, F32), np.array(0)), "'stem.conv': its derive_qparams_fn gives no qparams: scale -1.0 is not"),
        (lambda o: (np.ones(3, F32), np.zeros(3, int)), r"'b' of shape \(8,\) has 3 scales along axis 0: give one for each"),
    ],
    ids=["nothing", "error", "negative", "channels"],
)
def test_functions_that_derive_no_qparams(derive: Callable[[Any], Any], message: str) -> None:
    def annotate(nodes: Nodes) -> None:
        node = nodes["stem.conv"]
        x, w, b = node.inputs
        assert x is not None
        assert w is not None
        assert b is not None
        annotate_input_qspec_map(node, x, ACTIVATION)
        annotate_input_qspec_map(node, w, QuantizationSpec(qrt.qint8, PER_CHANNEL, ch_axis=0))
        annotate_input_qspec_map(node, b, DerivedQuantizationSpec([(x, node), (w, node)], derive, qrt.qint32))

    observed = prepare_pt2e(cnn.cnn(), Annotated(annotate))
    observed(X)
    with pytest.raises(qrt.QuantizationError, match=message):
        convert_pt2e(observed)
