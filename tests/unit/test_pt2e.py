"""prepare_pt2e and convert_pt2e: quantizers and observers of one's own, quantizers together, and what else torch's users know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cnn
import numpy as np
import pytest
from annotated import ACTIVATION, COLUMNS, FLAT, WEIGHT, Annotated, Nodes, file, inputs, taught, two
from cnn import BATCHES, FUSED, X, in_ort, in_qrt
from graphs import F32, images, make, ops, prepared
from minilm import feeds, minilm, needs_minilm

import qrt
from qrt.core.accuracy import compute_sqnr
from qrt.core.qparams import QParams
from qrt.graph import Model, constant, ir, is_op
from qrt.graph.rules import fuse
from qrt.loaders import load
from qrt.observers import ObserverBase
from qrt.quantization import (
    ComposableQuantizer,
    DerivedQuantizationSpec,
    EdgeOrNode,
    EmbeddingQuantizer,
    FakeQuantize,
    FixedQParamsQuantizationSpec,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
    QrtQuantizer,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
    annotate_input_qspec_map,
    annotate_output_qspec,
    convert_pt2e,
    default_dynamic_qconfig,
    get_default_qrt_qconfig_mapping,
    lower_pt2e_quantized_to_x86,
    prepare_fx,
    prepare_pt2e,
    prepare_qat_pt2e,
)

MINE = QConfig(
    MinMaxObserver, PerChannelMinMaxObserver.with_args(dtype=qrt.qint8, qscheme=qrt.per_channel_symmetric, quant_min=-127, quant_max=127)
)


# -- a quantizer of one's own ---------------------------------------------------------------------------------------------------
def product_of_scales(observers: Any) -> tuple[np.ndarray, np.ndarray]:
    (x, _), (w, _) = (observer.calculate_qparams() for observer in observers)
    return x * w, np.zeros(np.shape(x * w), np.int64)


class ByHand(Quantizer):
    """For convolutional networks: each kind of spec does its part."""

    def annotate(self, model: Model) -> Model:
        for node in model.graph:
            if is_op(node, "Conv", "Gemm"):
                self._product(node)
            elif is_op(node, "Relu"):
                annotate_output_qspec(node, ACTIVATION)
            elif is_op(node, "Sigmoid"):
                annotate_output_qspec(node, FixedQParamsQuantizationSpec(qrt.quint8, 1 / 256, 0))
            elif is_op(node, "MaxPool", "Flatten"):
                annotate_output_qspec(node, SharedQuantizationSpec(inputs(node)[0]))
            elif is_op(node, "GlobalAveragePool"):
                annotate_output_qspec(node, ACTIVATION)
        annotate_output_qspec(model.graph.inputs[0], ACTIVATION)
        return model

    def _product(self, node: ir.Node) -> None:
        x, weight, *bias = inputs(node)
        annotate_input_qspec_map(node, weight, COLUMNS if is_op(node, "Gemm") else WEIGHT)
        for value in bias:
            derived = DerivedQuantizationSpec([(x, node), (weight, node)], product_of_scales, qrt.qint32, ch_axis=0)
            annotate_input_qspec_map(node, value, derived)
        reader = next(iter(node.outputs[0].uses()), None)
        if reader is not None and not is_op(reader.node, "Relu"):
            annotate_output_qspec(node, ACTIVATION)

    def validate(self, model: Model) -> None:
        if not any(is_op(node, "Conv") for node in model.graph):
            raise qrt.QuantizationError("this backend is for convolutions")


def test_a_quantizer_written_by_hand_gives_what_qrts_own_does() -> None:
    mine = convert_pt2e(taught(cnn.cnn(), ByHand()))
    theirs = convert_pt2e(taught(cnn.cnn(), QrtQuantizer(QConfigMapping().set_global(MINE))))
    assert file(mine) == file(theirs)
    fused = prepared(mine.to_proto())
    fuse(fused)
    assert ops(fused) == FUSED
    assert compute_sqnr(in_ort(mine), in_qrt(mine)) > 100


def test_validate_is_asked() -> None:
    with pytest.raises(qrt.QuantizationError, match="this backend is for convolutions"):
        prepare_pt2e(load(make("(float[N,8] x) => (float[N,5] y) { y = MatMul(x, w) }", w=images(8, 5))), ByHand())


def test_the_hooks_are_called_in_their_order() -> None:
    called = []

    class Told(ByHand):
        def transform_for_annotation(self, model: Model) -> Model:
            called.append("transform_for_annotation")
            return super().transform_for_annotation(model)

        def annotate(self, model: Model) -> Model:
            called.append("annotate")
            return super().annotate(model)

        def validate(self, model: Model) -> None:
            called.append("validate")

        def prepare_obs_or_fq_callback(self, model: Model, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]) -> None:
            called.append("prepare_obs_or_fq_callback")

    prepare_pt2e(cnn.cnn(), Told())
    assert called == ["transform_for_annotation", "annotate", "validate", "prepare_obs_or_fq_callback"]


def test_transform_for_annotation_may_rewrite_the_graph() -> None:
    class Halved(ByHand):
        def transform_for_annotation(self, model: Model) -> Model:
            for node in model.graph:
                if node.name == "fc":
                    weight = constant(node.inputs[1])
                    assert weight is not None
                    node.inputs[1].const_value = ir.tensor(weight / 2)  # type: ignore[union-attr]
            return model

    halved, whole = convert_pt2e(taught(cnn.cnn(), Halved())), convert_pt2e(taught(cnn.cnn(), ByHand()))
    np.testing.assert_allclose(in_qrt(halved) - cnn.WEIGHTS["d"], (in_qrt(whole) - cnn.WEIGHTS["d"]) / 2, atol=0.02)


def test_nodes_that_transform_for_annotation_puts_in_may_be_annotated() -> None:
    class Squared(Quantizer):
        def transform_for_annotation(self, model: Model) -> Model:
            for node in list(model.graph):
                if is_op(node, "Relu"):
                    readers = [use.node for use in node.outputs[0].uses()]
                    square = ir.node("Mul", [node.outputs[0], node.outputs[0]])
                    model.graph.insert_after(node, square)
                    for reader in readers:
                        reader.replace_input_with(list(reader.inputs).index(node.outputs[0]), square.outputs[0])
            return model

        def annotate(self, model: Model) -> Model:
            for node in model.graph:
                if is_op(node, "Mul"):
                    annotate_output_qspec(node, ACTIVATION)
            return model

    text = "(float[N,8] x) => (float[N,5] y) { [one] a = MatMul(x, w) [two] r = Relu(a) [three] y = MatMul(r, v) }"
    model = load(make(text, w=images(8, 8), v=images(8, 5)))
    observed = taught(model, Squared(), *FLAT)
    (name,) = observed.observers
    int8 = convert_pt2e(observed)
    x = FLAT[0]
    squared = np.square(np.maximum(x @ images(8, 8), 0))
    scale = observed.qparams()[name].scale
    np.testing.assert_allclose(in_ort(int8, x), (np.rint(squared / scale) * scale) @ images(8, 5), atol=2 * float(scale))
    np.testing.assert_allclose(in_qrt(int8, x), in_ort(int8, x), atol=2 * float(scale))


def test_a_transform_that_returns_nothing() -> None:
    class Forgetful(ByHand):
        def transform_for_annotation(self, model: Model) -> Model:
            return None  # type: ignore[return-value]

    with pytest.raises(qrt.InvalidInput, match="transform_for_annotation of Forgetful gives a NoneType: return the model"):
        prepare_pt2e(cnn.cnn(), Forgetful())


def test_the_callback_may_replace_observers() -> None:
    class Wide(ByHand):
        def prepare_obs_or_fq_callback(self, model: Model, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]) -> None:
            (x,) = model.graph.inputs
            wide = MinMaxObserver()
            wide(np.array([-100, 100], F32))
            edge_or_node_to_obs_or_fq[x] = wide

    observed = taught(cnn.cnn(), Wide())
    assert observed.qparams()["x"].scale == F32(200 / 255)
    node = next(node for node in convert_pt2e(observed).graph if is_op(node, "QuantizeLinear"))
    assert constant(node.inputs[1]) == F32(200 / 255)
    assert constant(node.inputs[2]) in (127, 128)


def test_an_observer_that_is_replaced_at_one_place_is_at_all() -> None:
    class Wide(ByHand):
        def prepare_obs_or_fq_callback(self, model: Model, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]) -> None:
            pool = next(node for node in model.graph if is_op(node, "MaxPool"))
            edge_or_node_to_obs_or_fq[inputs(pool)[0]] = MinMaxObserver(reduce_range=True)

    observed = taught(cnn.cnn(), Wide())
    seven = observed.qparams()["e"].scale
    assert seven == F32(taught(cnn.cnn(), ByHand()).qparams()["e"].scale * 255 / 127)
    scales = [constant(n.inputs[1]) for n in convert_pt2e(observed).graph if is_op(n, "QuantizeLinear") and inputs(n)[0].name in ("e", "p")]
    assert scales == [seven, seven]
    assert observed.observers["e"].site == "e"  # type: ignore[union-attr]


@pytest.mark.parametrize("spoil", [lambda places, place: places.pop(place), lambda places, place: places.update({place: 0.5})])
def test_a_callback_that_leaves_no_observer(spoil: Callable[[dict[EdgeOrNode, Any], EdgeOrNode], Any]) -> None:
    class Spoilt(ByHand):
        def prepare_obs_or_fq_callback(self, model: Model, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]) -> None:
            spoil(edge_or_node_to_obs_or_fq, model.graph.inputs[0])

    with pytest.raises(qrt.InvalidInput, match=r"x: prepare_obs_or_fq_callback leaves a (NoneType|float): give an observer"):
        prepare_pt2e(cnn.cnn(), Spoilt())


# -- quantizers together --------------------------------------------------------------------------------------------------------
LOOKUP = "(int64[N,T] ids) => (float[N,T,5] y) { [embed] e = Gather(t, ids) [out] y = MatMul(e, m) }"


def test_an_embedding_and_a_product() -> None:
    model = load(make(LOOKUP, t=images(50, 12), m=images(12, 5, seed=1)))
    ids = np.random.default_rng(0).integers(0, 50, (3, 7))
    observed = prepare_pt2e(model, ComposableQuantizer([EmbeddingQuantizer(), QrtQuantizer()]))
    observed(ids)
    int8 = convert_pt2e(observed)
    assert "t_quantized" in int8.graph.initializers
    assert "m_quantized" in int8.graph.initializers
    real = qrt.InferenceSession(model).run(None, {"ids": ids})[0]
    assert compute_sqnr(real, in_ort(int8, ids)) > 30
    assert compute_sqnr(in_ort(int8, ids), in_qrt(int8, ids)) > 50


def _bytes(value: ir.Value) -> int:
    held = constant(value)
    return 0 if held is None else held.nbytes


@needs_minilm
def test_a_transformers_embeddings_and_products() -> None:
    mapping = QConfigMapping().set_global(default_dynamic_qconfig)
    quantizer = ComposableQuantizer([EmbeddingQuantizer(), QrtQuantizer(mapping)])
    model = load(minilm())
    both = convert_pt2e(prepare_pt2e(model, quantizer))
    products = convert_pt2e(prepare_pt2e(model, QrtQuantizer(mapping)))
    names = [name for name in both.graph.initializers if name.endswith("_quantized")]
    tables = [constant(both.graph.initializers[name]) for name in names]
    assert sum(table is not None and table.dtype == np.uint8 for table in tables) >= 1
    assert sum(map(_bytes, both.graph.initializers.values())) < 0.5 * sum(map(_bytes, products.graph.initializers.values()))
    feed = feeds(["my card has not arrived"])
    real, found, other = (qrt.InferenceSession(m).run(None, feed)[0] for m in (model, both, products))
    assert compute_sqnr(real, other) > 10
    assert abs(compute_sqnr(real, other) - compute_sqnr(real, found)) < 2


def test_conflicting_annotations() -> None:
    wide = QuantizationSpec(qrt.quint8, MovingAverageMinMaxObserver)

    def annotate(spec: QuantizationSpec) -> Annotated:
        return Annotated(lambda nodes: annotate_output_qspec(nodes["one"], spec))

    with pytest.raises(qrt.QuantizationError, match=r"'one' has conflicting annotations, of Annotated and of Annotated: let the second"):
        prepare_pt2e(two(), ComposableQuantizer([annotate(ACTIVATION), annotate(wide)]))
    same = prepare_pt2e(two(), ComposableQuantizer([annotate(ACTIVATION), annotate(ACTIVATION)]))
    assert list(same.observers) == ["y"]
    with pytest.raises(qrt.InvalidInput, match="ComposableQuantizer holds a str: give"):
        ComposableQuantizer(["x86"])  # type: ignore[list-item]


def test_qrts_quantizer_leaves_alone_what_is_annotated() -> None:
    signed = QuantizationSpec(qrt.qint8, MinMaxObserver)
    first = Annotated(lambda nodes: annotate_output_qspec(nodes["stem.relu"], signed))
    observed = taught(cnn.cnn(), ComposableQuantizer([first, QrtQuantizer()]))
    assert observed.qparams()["r"].dtype == qrt.qint8
    assert observed.qparams()["s"].dtype == qrt.quint8
    assert compute_sqnr(in_ort(cnn.proto()), in_ort(convert_pt2e(observed))) > 35


# -- what torch's users know besides ---------------------------------------------------------------------------------------------
def test_weights_may_stay_float_in_the_file() -> None:
    observed = taught(cnn.cnn(), ByHand())
    folded, kept = convert_pt2e(observed), convert_pt2e(observed, fold_quantize=False)
    assert "w" in kept.graph.initializers
    assert "w" not in folded.graph.initializers
    assert compute_sqnr(in_ort(folded), in_ort(kept)) > 60
    assert compute_sqnr(in_ort(kept), in_qrt(kept)) > 60


def test_lowering() -> None:
    int8 = convert_pt2e(taught(cnn.cnn(), QrtQuantizer()))
    lowered = lower_pt2e_quantized_to_x86(int8, (X,))
    np.testing.assert_array_equal(lowered(X), in_qrt(int8))
    np.testing.assert_array_equal(lowered(x=X[:1]), in_qrt(int8, X[:1]))
    with pytest.raises(qrt.CalibrationError, match="does not fit"):
        lowered(X[:, :2])


def test_fake_quantizes() -> None:
    mapping = QConfigMapping().set_global(
        QConfig(FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255), MINE.weight)
    )
    observed = prepare_qat_pt2e(cnn.cnn(), QrtQuantizer(mapping))
    for batch in BATCHES:
        observed(batch)
    observed.apply(qrt.quantization.disable_observer)
    np.testing.assert_allclose(observed(X), in_ort(convert_pt2e(observed)), atol=0.05)
    with pytest.raises(qrt.QuantizationError, match=r"nothing in test would be fake-quantized: use specs whose observer_or_fake_quant_ctr"):
        prepare_qat_pt2e(cnn.cnn(), QrtQuantizer())


def test_what_convert_takes() -> None:
    with pytest.raises(qrt.InvalidInput, match="convert_pt2e takes what prepare_pt2e gives, not a Model"):
        convert_pt2e(cnn.cnn())  # type: ignore[arg-type]
    with pytest.raises(qrt.InvalidInput, match="use_reference_representation"):
        convert_pt2e(taught(cnn.cnn(), QrtQuantizer()), use_reference_representation=True)
    with pytest.raises(qrt.InvalidInput, match="the quantizer is a QConfigMapping: give a"):
        prepare_pt2e(cnn.cnn(), get_default_qrt_qconfig_mapping())  # type: ignore[arg-type]


# -- an observer of one's own -----------------------------------------------------------------------------------------------------
class Peak(ObserverBase):
    """A range of four standard deviations, symmetric."""

    def __init__(self, dtype: qrt.QDType = qrt.quint8, deviations: float = 4.0) -> None:
        super().__init__(dtype)
        self.deviations = deviations
        self.count, self.squares = 0, 0.0

    def forward(self, array: np.ndarray) -> np.ndarray:
        self.count += array.size
        self.squares += float(np.square(array, dtype=np.float64).sum())
        return array

    def calculate_qparams(self) -> QParams:
        if not self.count:
            raise qrt.CalibrationError(f"{self.site}: saw no data")
        reach = self.deviations * np.sqrt(self.squares / self.count)
        assert isinstance(self.dtype, qrt.QDType)
        return QParams(np.asarray(reach / 127, F32), np.asarray(128 if self.dtype == qrt.quint8 else 0), self.dtype)


@pytest.mark.parametrize("where", ["qconfig", "spec"])
def test_an_observer_of_ones_own(where: str) -> None:
    if where == "qconfig":
        mapping = QConfigMapping().set_global(QConfig(Peak, Peak.with_args(dtype=qrt.qint8, deviations=3.0)))
        observed = taught(cnn.cnn(), QrtQuantizer(mapping))
    else:

        def annotate(nodes: Nodes) -> None:
            x, weight, _ = inputs(nodes["stem.conv"])
            annotate_output_qspec(x, QuantizationSpec(qrt.quint8, Peak))
            annotate_input_qspec_map(nodes["stem.conv"], weight, QuantizationSpec(qrt.qint8, Peak.with_args(deviations=3.0)))

        observed = taught(cnn.cnn(), annotate)
    found = observed.qparams()
    scale = 4 * np.sqrt(np.mean(np.square(np.concatenate(BATCHES), dtype=np.float64))) / 127
    np.testing.assert_allclose(found["x"].scale, scale, rtol=1e-6)
    np.testing.assert_allclose(found["w"].scale, 3 * np.sqrt(np.mean(np.square(cnn.WEIGHTS["w"], dtype=np.float64))) / 127, rtol=1e-6)
    int8 = convert_pt2e(observed)
    assert compute_sqnr(in_ort(cnn.proto()), in_ort(int8)) > 25
    assert compute_sqnr(in_ort(int8), in_qrt(int8)) > 40


def test_an_observer_of_ones_own_says_where_it_saw_nothing() -> None:
    observed = prepare_fx(cnn.cnn(), QConfigMapping().set_global(QConfig(Peak, MINE.weight)), None)
    with pytest.raises(qrt.CalibrationError, match="x: saw no data"):
        convert_pt2e(observed)
