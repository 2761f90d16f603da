"""Each kind of spec, on values and on edges: what shares an observer, and what Q and DQ come of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from annotated import ACTIVATION, COLUMNS, FLAT, SIGNED, TWO, TWO_WEIGHTS, Annotated, Nodes, file, inputs, taught, two
from cnn import in_ort, in_qrt
from graphs import F32, images, make, ops

import qrt
from qrt.core.accuracy import compute_sqnr
from qrt.graph import constant, is_op
from qrt.loaders import load
from qrt.quantization import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    MinMaxObserver,
    PlaceholderObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    SharedQuantizationSpec,
    annotate_input_qspec_map,
    annotate_output_qspec,
    convert_pt2e,
    prepare_pt2e,
    quantize_dynamic,
)


# -- edges ----------------------------------------------------------------------------------------------------------------------
def readers(model: qrt.Model) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
    """Product → scale and zero point of what it reads; None where that is float."""
    found: dict[str, tuple[np.ndarray, np.ndarray] | None] = {}
    for node in model.graph:
        if is_op(node, "MatMul") and node.inputs[0] is not None:
            maker = node.inputs[0].producer()
            parts = None if maker is None or not is_op(maker, "DequantizeLinear") else [constant(v) for v in maker.inputs[1:3]]
            found[node.name or ""] = None if parts is None else (parts[0], parts[1])  # type: ignore[assignment]
    return found


def test_an_edge_is_quantized_for_its_reader_alone() -> None:
    def annotate(nodes: Nodes) -> None:
        node = nodes["one"]
        node.meta["quantization_annotation"] = QuantizationAnnotation({inputs(node)[0]: ACTIVATION, inputs(node)[1]: COLUMNS})

    int8 = convert_pt2e(taught(two(), annotate, *FLAT))
    found = readers(int8)
    assert found["one"] is not None
    assert found["two"] is None
    assert compute_sqnr(in_ort(int8, FLAT[0]), in_qrt(int8, FLAT[0])) > 100
    z = qrt.InferenceSession(int8).run(["z"], {"x": FLAT[0]})[0]
    np.testing.assert_allclose(z, FLAT[0] @ TWO_WEIGHTS["v"], atol=1e-5)


def test_two_readers_with_different_specs() -> None:
    def annotate(nodes: Nodes) -> None:
        for name, spec in (("one", ACTIVATION), ("two", SIGNED)):
            x, weight = inputs(nodes[name])
            annotate_input_qspec_map(nodes[name], x, spec)
            annotate_input_qspec_map(nodes[name], weight, COLUMNS)

    observed = taught(two(), annotate, *FLAT)
    assert sorted(observed.observers) == ["x.one", "x.two"]
    int8 = convert_pt2e(observed)
    one, other = (readers(int8)[name] for name in ("one", "two"))
    assert one is not None
    assert other is not None
    assert (one[1].dtype, other[1].dtype) == (np.uint8, np.int8)
    assert one[0] != other[0]
    for mine, theirs in zip(qrt.InferenceSession(int8).run(None, {"x": FLAT[0]}), [in_ort(int8, FLAT[0])], strict=False):
        assert compute_sqnr(theirs, mine) > 100


@pytest.mark.parametrize("share", [True, False])
def test_equal_specs_share_unless_they_may_not(share: bool) -> None:
    def annotate(nodes: Nodes) -> None:
        for node in nodes.values():
            x, weight = inputs(node)
            node.meta["quantization_annotation"] = QuantizationAnnotation({x: ACTIVATION, weight: COLUMNS}, allow_implicit_sharing=share)

    observed = taught(two(), annotate, *FLAT)
    assert sorted(observed.observers) == (["x.one"] if share else ["x.one", "x.two"])
    int8 = convert_pt2e(observed)
    assert ops(int8)["QuantizeLinear"] == 1  # observers that learned the same need no second copy
    assert compute_sqnr(in_ort(int8, FLAT[0]), in_qrt(int8, FLAT[0])) > 100


def test_a_value_and_one_of_its_edges() -> None:
    """The value is uint8 for all, and what it is read as there becomes int8 for one."""

    def annotate(nodes: Nodes) -> None:
        x = inputs(nodes["two"])[0]
        annotate_output_qspec(x, ACTIVATION)
        annotate_input_qspec_map(nodes["two"], x, SIGNED)
        for node in nodes.values():
            annotate_input_qspec_map(node, inputs(node)[1], COLUMNS)

    observed = taught(two(), annotate, *FLAT)
    assert sorted(observed.observers) == ["x", "x.two"]
    int8 = convert_pt2e(observed)
    one, other = (readers(int8)[name] for name in ("one", "two"))
    assert one is not None
    assert other is not None
    assert (one[1].dtype, other[1].dtype) == (np.uint8, np.int8)
    assert ops(int8)["QuantizeLinear"] == 2
    assert compute_sqnr(in_ort(int8, FLAT[0]), in_qrt(int8, FLAT[0])) > 100


def test_an_edge_whose_value_has_the_same_spec_adds_nothing() -> None:
    def annotate(nodes: Nodes) -> None:
        for node in nodes.values():
            x, weight = inputs(node)
            annotate_output_qspec(x, ACTIVATION)
            annotate_input_qspec_map(node, x, ACTIVATION)
            annotate_input_qspec_map(node, weight, COLUMNS)

    observed = taught(two(), annotate, *FLAT)
    assert list(observed.observers) == ["x"]
    assert ops(convert_pt2e(observed))["QuantizeLinear"] == 1


# -- shared, fixed, derived, dynamic ----------------------------------------------------------------------------------------------
CHAIN = "(float[N,8] x) => (float[N,8] y) { [a] a = Relu(x) [b] b = Relu(a) [c] c = Relu(b) [d] y = MatMul(c, w) }"


def test_chains_of_shared_specs_end_in_one_observer() -> None:
    def annotate(nodes: Nodes) -> None:
        annotate_output_qspec(nodes["a"], SharedQuantizationSpec(nodes["b"]))
        annotate_output_qspec(nodes["b"], SharedQuantizationSpec((nodes["c"].outputs[0], nodes["d"])))
        annotate_input_qspec_map(nodes["d"], nodes["c"].outputs[0], ACTIVATION)

    model = load(make(CHAIN, w=images(8, 8)))
    observed = taught(model, annotate, *FLAT)
    assert len(observed.observers) == 1
    (params,) = {p.scale.tobytes() for name, p in observed.qparams().items()}
    assert np.frombuffer(params, F32)[0] == F32(max(batch.max() for batch in FLAT) / 255)
    assert ops(convert_pt2e(observed))["QuantizeLinear"] == 3


def test_fixed_qparams() -> None:
    spec = FixedQParamsQuantizationSpec(qrt.quint8, 0.25, 100)
    int8 = convert_pt2e(prepare_pt2e(two(), Annotated(lambda nodes: annotate_output_qspec(inputs(nodes["one"])[0], spec))))
    assert {node: tuple(float(part) for part in parts) for node, parts in readers(int8).items() if parts} == {
        "one": (0.25, 100.0),
        "two": (0.25, 100.0),
    }
    np.testing.assert_array_equal(in_qrt(int8, F32([[0.25] * 8])), in_ort(int8, F32([[0.25] * 8])))


def test_qparams_that_derive_from_two_activations() -> None:
    """A sum gets twice the scale of its operands' mean: anything may be derived."""

    def both(observers: Any) -> tuple[np.ndarray, np.ndarray]:
        scales = [observer.calculate_qparams().scale for observer in observers]
        return np.mean(scales, dtype=F32) * F32(2), np.array(128)

    def annotate(nodes: Nodes) -> None:
        one, two_ = nodes["one"], nodes["two"]
        for node in (one, two_):
            annotate_output_qspec(node, ACTIVATION)
        annotate_output_qspec(nodes["sum"], DerivedQuantizationSpec([one, two_], both, qrt.quint8))

    text = TWO.replace("(float[N,5] y, float[N,5] z)", "(float[N,5] s)").replace(" }", " [sum] s = Add(y, z) }")
    observed = taught(load(make(text, **TWO_WEIGHTS)), annotate, *FLAT)
    found = observed.qparams()
    assert found["s"].scale == F32(found["y"].scale + found["z"].scale)
    assert found["s"].zero_point == 128
    in_ort(convert_pt2e(observed), FLAT[0])


def test_a_constant_that_shares_with_an_activation() -> None:
    """The operands of a sum have one scale, which covers both."""

    def annotate(nodes: Nodes) -> None:
        x, offset = inputs(nodes["sum"])
        annotate_input_qspec_map(nodes["sum"], x, ACTIVATION)
        annotate_input_qspec_map(nodes["sum"], offset, SharedQuantizationSpec((x, nodes["sum"])))
        annotate_output_qspec(nodes["sum"], ACTIVATION)

    offset = np.linspace(-20, 20, 8, dtype=F32)
    observed = taught(load(make("(float[N,8] x) => (float[N,8] y) { [sum] y = Add(x, o) }", o=offset)), annotate, *FLAT)
    assert list(observed.observers) == ["x.sum", "y"]
    assert observed.qparams()["x.sum"].scale == F32(40 / 255)
    int8 = convert_pt2e(observed)
    np.testing.assert_array_equal(in_ort(int8, FLAT[0]), in_qrt(int8, FLAT[0]))
    np.testing.assert_allclose(in_qrt(int8, FLAT[0]), FLAT[0] + offset, atol=0.3)


def test_weights_that_share() -> None:
    """Two weights of one scale, that of the larger one."""

    def annotate(nodes: Nodes) -> None:
        one, two_ = nodes["one"], nodes["two"]
        for node in (one, two_):
            annotate_input_qspec_map(node, inputs(node)[0], ACTIVATION)
        tensor = QuantizationSpec(qrt.qint8, MinMaxObserver, -127, 127, qrt.per_tensor_symmetric)
        annotate_input_qspec_map(one, inputs(one)[1], tensor)
        annotate_input_qspec_map(two_, inputs(two_)[1], SharedQuantizationSpec((inputs(one)[1], one)))

    model = load(make(TWO, w=images(8, 5) / 4, v=images(8, 5, seed=1)))
    int8 = convert_pt2e(taught(model, annotate, *FLAT))
    found = {name: constant(value) for name, value in int8.graph.initializers.items() if name.endswith("_quantized")}
    most = {name: np.abs(codes.astype(int)).max() for name, codes in found.items() if codes is not None}
    assert most["v_quantized"] == 127
    assert most["w_quantized"] < 60
    assert compute_sqnr(in_ort(int8, FLAT[0]), in_qrt(int8, FLAT[0])) > 100


def test_dynamic_specs() -> None:
    dynamic = QuantizationSpec(qrt.quint8, PlaceholderObserver, is_dynamic=True)

    def annotate(nodes: Nodes) -> None:
        for node in nodes.values():
            x, weight = inputs(node)
            annotate_input_qspec_map(node, x, dynamic)
            annotate_input_qspec_map(node, weight, COLUMNS)

    int8 = convert_pt2e(prepare_pt2e(two(), Annotated(annotate)))
    assert file(int8) == file(quantize_dynamic(two()))
    assert ops(int8)["DynamicQuantizeLinear"] == 1


def test_an_input_whose_axes_are_only_renamed_is_observed() -> None:
    def annotate(nodes: Nodes) -> None:
        annotate_output_qspec(nodes["turn"], ACTIVATION)

    text = "(float[N,8,3] x) => (float[N,3,5] y) { [turn] t = Transpose<perm: ints = [0,2,1]>(x) [one] y = MatMul(t, w) }"
    x = images(2, 8, 3)
    observed = taught(load(make(text, w=images(8, 5))), annotate, x)
    assert observed.qparams()["t"].scale == F32((x.max() - x.min()) / F32(255))
    assert compute_sqnr(in_ort(convert_pt2e(observed), x), in_qrt(convert_pt2e(observed), x)) > 100
