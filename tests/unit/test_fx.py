"""prepare_fx, convert_fx and fuse_fx: custom and backend configs, converting, embeddings, and what they refuse."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import cnn
import numpy as np
import onnx
import pytest
from cnn import BATCHES, X, everywhere, float_products, in_ort, in_qrt, scales, taught
from graphs import F32, images, make, ops

import qrt
from qrt.core.accuracy import compute_sqnr
from qrt.graph import constant
from qrt.loaders import load
from qrt.quantization import (
    BackendConfig,
    BackendPatternConfig,
    ConvertCustomConfig,
    DTypeConfig,
    FuseCustomConfig,
    PrepareCustomConfig,
    QConfig,
    convert_fx,
    default_embedding_qat_qconfig,
    default_per_channel_symmetric_qnnpack_qconfig,
    default_qconfig,
    default_qrt_qconfig,
    default_symmetric_qnnpack_qconfig,
    float_qparams_weight_only_qconfig,
    fuse_fx,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    get_qrt_backend_config,
    prepare_fx,
    prepare_qat_fx,
)


# -- custom configs -------------------------------------------------------------------------------------------------------------
def test_a_standalone_module_has_a_mapping_of_its_own() -> None:
    signed = everywhere(default_per_channel_symmetric_qnnpack_qconfig)
    custom = PrepareCustomConfig().set_standalone_module_name("head", signed, (X,), None, None)
    int8 = convert_fx(taught(everywhere(default_qrt_qconfig), prepare_custom_config=custom))
    dtypes = {name: zero_point.dtype.name for name, (_, zero_point) in scales(int8).items()}
    assert dtypes == {
        "x": "uint8",
        "r": "uint8",
        "s": "uint8",
        "e": "uint8",
        "p": "uint8",
        "h": "int8",
        "q": "int8",
        "g": "int8",
        "f": "int8",
    }
    assert compute_sqnr(in_ort(int8), in_qrt(int8)) > 40


def test_a_standalone_module_without_a_mapping_has_its_parents() -> None:
    custom = PrepareCustomConfig().set_standalone_module_name("head", None, (X,), None, None)
    mine = convert_fx(taught(everywhere(default_qconfig), prepare_custom_config=custom))
    plain = convert_fx(taught(everywhere(default_qconfig)))
    assert mine.to_proto().SerializeToString() == plain.to_proto().SerializeToString()


def test_a_module_that_is_not_traced_stays_float() -> None:
    custom = {"non_traceable_module_name": ["block"]}
    int8 = convert_fx(taught(everywhere(default_qrt_qconfig), prepare_custom_config=custom))
    assert float_products(int8) == ["block.conv"]


@pytest.mark.parametrize("qconfig", [default_qrt_qconfig, default_symmetric_qnnpack_qconfig], ids=["uint8", "int8"])
def test_inputs_and_outputs_that_hold_codes(qconfig: QConfig) -> None:
    custom = PrepareCustomConfig().set_input_quantized_indexes([0]).set_output_quantized_indexes([0])
    plain = convert_fx(taught(everywhere(qconfig), prepare_custom_config=PrepareCustomConfig().set_output_quantized_indexes([0])))
    int8 = convert_fx(taught(everywhere(qconfig), prepare_custom_config=custom))
    dtype = np.dtype(np.uint8 if qconfig is default_qrt_qconfig else np.int8)
    assert [v.dtype for v in (*int8.inputs, *int8.outputs)] == [f"tensor({dtype.name})"] * 2
    scale, zero_point = scales(plain)["x"]
    info = np.iinfo(dtype)
    codes = np.clip(np.rint(X / scale) + zero_point, info.min, info.max).astype(dtype)
    theirs = in_ort(int8, codes)
    assert theirs.dtype == dtype
    np.testing.assert_array_equal(theirs, in_qrt(int8, codes))
    np.testing.assert_array_equal(theirs, in_ort(plain))
    assert len(np.unique(theirs)) > 5


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        (PrepareCustomConfig().set_non_traceable_module_names(["tail"]), "'tail', and no node of test lies below it"),
        (
            PrepareCustomConfig().set_standalone_module_name(
                "head", everywhere(default_qconfig).set_module_name("fc", None), (), None, None
            ),
            "speaks of module name 'fc', and module 'head' of test has no such node",
        ),
        (PrepareCustomConfig().set_standalone_module_name("tail", None, (), None, None), "'tail', and no node of test lies below it"),
        (PrepareCustomConfig().set_output_quantized_indexes([1]), "test has 1 outputs; there is none of number 1"),
        (PrepareCustomConfig().set_input_quantized_indexes([1]), "test has 1 inputs; there is none of number 1"),
    ],
    ids=["non-traceable", "mapping of a standalone", "standalone", "output", "input"],
)
def test_custom_configs_of_nothing(custom: PrepareCustomConfig, message: str) -> None:
    with pytest.raises(qrt.QuantizationError, match=message):
        convert_fx(taught(everywhere(default_qconfig), prepare_custom_config=custom))


def test_an_input_that_is_not_quantized_cannot_hold_codes() -> None:
    custom = PrepareCustomConfig().set_input_quantized_indexes([0])
    mapping = everywhere(default_qconfig).set_module_name("stem.conv", None)
    with pytest.raises(qrt.QuantizationError, match=r"input 'x' of test is not quantized"):
        convert_fx(taught(mapping, prepare_custom_config=custom))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"qconfig_mapping": default_qconfig}, "qconfig_mapping is a QConfig: give a qrt.quantization.QConfigMapping or its dict"),
        ({"_equalization_config": {}}, "qrt does not equalize; leave it None"),
        ({"prepare_custom_config": 5}, "prepare_custom_config is a int: give a qrt.quantization.PrepareCustomConfig or its dict"),
        ({"backend_config": "x86"}, "backend_config is a str: give a qrt.quantization.BackendConfig or its dict"),
        ({"model": "model.onnx"}, "the model is a str"),
        (
            {"prepare_custom_config": PrepareCustomConfig().set_non_traceable_module_classes([int])},
            "non_traceable_module_classes speaks of classes of modules, and a graph has none: use names",
        ),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else None,
)
def test_arguments_of_other_types(given: dict[str, Any], message: str) -> None:
    with pytest.raises(qrt.InvalidInput, match=message):
        prepare_fx(**({"model": cnn.cnn(), "qconfig_mapping": everywhere(default_qconfig), "example_inputs": (X,)} | given))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((X[:, :2],), r"example_inputs, input 'x' has shape \(4, 2, 8, 8\), which does not fit"),
        ((X, X), r"test takes 1 inputs \(x\); 2 were given"),
        ({"image": X}, r"example_inputs lacks \['x'\]"),
        (X.astype(np.float64), "has dtype float64: give float32"),
    ],
    ids=["shape", "two", "name", "dtype"],
)
def test_example_inputs_that_do_not_fit(inputs: Any, message: str) -> None:
    with pytest.raises(qrt.QrtError, match=message):
        prepare_fx(cnn.cnn(), everywhere(default_qconfig), inputs)


# -- backend configs ------------------------------------------------------------------------------------------------------------
def test_qrts_backend_config_changes_nothing() -> None:
    mapping = get_default_qconfig_mapping("onednn")
    mine, plain = convert_fx(taught(mapping, backend_config=get_qrt_backend_config())), convert_fx(taught(mapping))
    assert mine.to_proto().SerializeToString() == plain.to_proto().SerializeToString()


def _backend(*op_types: str, weight: Any = qrt.qint8) -> BackendConfig:
    choice = DTypeConfig(qrt.quint8, qrt.quint8, weight, np.float32)
    made = BackendConfig("small")
    for op_type in op_types:
        made.set_backend_pattern_config(BackendPatternConfig(op_type).add_dtype_config(choice))
    return made


def test_what_a_backend_does_not_list_stays_float() -> None:
    message = "these stay float, as the backend config 'small' does not list them: Add, Flatten, Gemm, GlobalAveragePool, MaxPool, Sigmoid"
    with pytest.warns(qrt.QrtWarning, match=message) as told:
        observed = taught(everywhere(default_qrt_qconfig), backend_config=_backend("Conv", "Relu"))
    assert told[0].filename == __file__
    int8 = convert_fx(observed)
    assert float_products(int8) == ["fc"]
    assert compute_sqnr(in_ort(int8), in_qrt(int8)) > 100


def test_a_dtype_that_a_backend_does_not_take_stays_float() -> None:
    backend = _backend("Conv").set_backend_pattern_config(
        BackendPatternConfig("Gemm").add_dtype_config(DTypeConfig(qrt.qint8, qrt.qint8, qrt.qint8, np.float32))
    )
    mapping = everywhere(None).set_object_type("Conv", default_qrt_qconfig).set_object_type("Gemm", default_qrt_qconfig)
    with pytest.warns(
        qrt.QrtWarning, match=r"Gemm 'fc' stays float: the backend config 'small': its activation is qrt.quint8, not qrt.qint8"
    ):
        observed = taught(mapping, backend_config=backend)
    int8 = convert_fx(observed)
    assert float_products(int8) == ["fc"]


# -- converting -----------------------------------------------------------------------------------------------------------------
def test_layers_may_be_left_float_when_converting() -> None:
    mapping = everywhere(default_qrt_qconfig)
    observed = taught(mapping)
    later = everywhere(default_qrt_qconfig).set_module_name("block.conv", None).set_module_name("head.conv", None)
    int8 = convert_fx(observed, qconfig_mapping=later)
    assert float_products(int8) == ["block.conv", "head.conv"]
    theirs = in_ort(int8)
    assert compute_sqnr(in_ort(cnn.proto()), theirs) > 38
    assert compute_sqnr(theirs, in_qrt(int8)) > 100
    # What is quantized learned what it learned.
    whole = convert_fx(observed)
    assert scales(int8).items() <= scales(whole).items()
    assert float_products(whole) == []


def test_a_standalone_module_keeps_its_own_mapping_when_converting() -> None:
    signed = everywhere(default_per_channel_symmetric_qnnpack_qconfig)
    custom = PrepareCustomConfig().set_standalone_module_name("head", signed, (X,), None, None)
    observed = taught(everywhere(default_qrt_qconfig), prepare_custom_config=custom)
    later = everywhere(default_qrt_qconfig).set_module_name("block.conv", None)
    int8 = convert_fx(observed, qconfig_mapping=later)
    assert float_products(int8) == ["block.conv"]
    assert scales(int8)["h"][1].dtype == np.int8


def test_a_mapping_that_disagrees_when_converting() -> None:
    observed = taught(everywhere(default_qrt_qconfig))
    message = r"node 'stem.conv' was prepared with .* and would be converted with .*: give that or None"
    with pytest.raises(qrt.QuantizationError, match=message):
        convert_fx(observed, qconfig_mapping=everywhere(default_qconfig))
    with pytest.raises(qrt.QuantizationError, match="speaks of module name 'tail', and test has no such node"):
        convert_fx(observed, qconfig_mapping=everywhere(default_qrt_qconfig).set_module_name("tail", None))
    assert "QuantizeLinear" not in ops(convert_fx(observed, qconfig_mapping=everywhere(None)))


def test_weights_may_stay_float_in_the_file() -> None:
    observed = taught(everywhere(default_qrt_qconfig))
    kept, folded = convert_fx(observed, keep_original_weights=True), convert_fx(observed)
    held = constant(kept.graph.initializers["w"])
    assert held is not None
    np.testing.assert_array_equal(held, cnn.WEIGHTS["w"])
    assert "w_quantized" not in kept.graph.initializers
    assert compute_sqnr(in_ort(folded), in_ort(kept)) > 60  # but for the biases, which stay float
    assert compute_sqnr(in_ort(kept), in_qrt(kept)) > 60


def test_converting_again_after_more_data() -> None:
    observed = prepare_fx(cnn.cnn(), everywhere(default_qconfig), (X,))
    observed(BATCHES[0])
    first = scales(convert_fx(observed))["x"]
    observed(3 * BATCHES[0])
    assert scales(convert_fx(observed))["x"][0] > 2 * first[0]


@pytest.mark.parametrize("fake", [False, True], ids=["observers", "fake-quantizes"])
def test_a_copy_goes_on_learning_by_itself(fake: bool) -> None:
    mapping = get_default_qat_qconfig_mapping() if fake else everywhere(default_qconfig)
    observed = prepare_fx(cnn.cnn(), mapping, None)
    observed(BATCHES[0])
    before = observed.qparams()
    copy = deepcopy(observed)
    copy(3 * BATCHES[0])
    assert copy.qparams()["x"].scale > before["x"].scale
    assert observed.qparams()["x"].scale == before["x"].scale
    assert {"x", "r"} <= set(scales(convert_fx(copy)))
    assert repr(copy).startswith("<qrt.quantization.PreparedModel 'test': ")


def test_what_convert_takes() -> None:
    observed = taught(everywhere(default_qconfig))
    with pytest.raises(qrt.InvalidInput, match="convert_fx takes what prepare_fx gives, not a Model"):
        convert_fx(cnn.cnn())  # type: ignore[arg-type]
    with pytest.raises(qrt.InvalidInput, match="backend_config is not the one that the model was prepared with"):
        convert_fx(observed, backend_config=get_qrt_backend_config())
    with pytest.raises(qrt.InvalidInput, match="leave observed_to_quantized_mapping empty"):
        convert_fx(observed, ConvertCustomConfig().set_observed_to_quantized_mapping(int, float))
    assert convert_fx(observed, ConvertCustomConfig().set_preserved_attributes(["version"]), _remove_qconfig=False) is not None


def test_the_model_given_is_not_changed() -> None:
    model = cnn.cnn()
    before = model.to_proto().SerializeToString()
    observed = taught(everywhere(default_qconfig), model)
    convert_fx(observed)
    fuse_fx(model)
    assert model.to_proto().SerializeToString() == before


def test_fuse_folds_batch_normalization() -> None:
    statistics = {"s": images(6, seed=1), "o": images(6, seed=2), "u": images(6, seed=3), "z": np.abs(images(6, seed=4)) + F32(0.5)}
    text = "(float[N,3,8,8] x) => (float[N,6,6,6] y) { a = Conv(x, w) n = BatchNormalization(a, s, o, u, z) d = Dropout(n) y = Relu(d) }"
    model = make(text, w=images(6, 3, 3, 3), **statistics)
    x = images(2, 3, 8, 8)
    fused = fuse_fx(load(model), FuseCustomConfig(), get_qrt_backend_config())
    assert ops(fused) == {"Conv": 1, "Relu": 1}
    np.testing.assert_allclose(in_ort(fused, x), in_ort(model, x), atol=1e-4)
    with pytest.raises(qrt.InvalidInput, match="fuse_custom_config is a int"):
        fuse_fx(load(model), 5)  # type: ignore[arg-type]


# -- embeddings -----------------------------------------------------------------------------------------------------------------
def test_an_embeddings_table_becomes_codes() -> None:
    table = images(50, 12) * np.linspace(0.1, 3, 50, dtype=F32)[:, None]
    model = make(
        "(int64[N,T] ids) => (float[N,T,5] y) { [embed] e = Gather(t, ids) [out] y = MatMul(e, m) }", t=table, m=images(12, 5, seed=1)
    )
    ids = np.random.default_rng(0).integers(0, 50, (3, 7))
    mapping = everywhere(None).set_object_type("Embedding", float_qparams_weight_only_qconfig)
    int8 = convert_fx(prepare_fx(load(model), mapping, (ids,)))
    codes = constant(int8.graph.initializers["t_quantized"])
    assert codes is not None
    assert (codes.dtype, codes.shape) == (np.uint8, table.shape)
    assert "t" not in int8.graph.initializers
    theirs = in_ort(int8, ids)
    # Each row has 255 steps over its own range.
    rows = table[ids] @ model_matrix(model)
    np.testing.assert_allclose(theirs, rows, atol=0.2)
    assert compute_sqnr(rows, theirs) > 38
    np.testing.assert_allclose(in_qrt(int8, ids), theirs, atol=1e-4)


def test_a_table_that_is_read_twice_is_written_once() -> None:
    text = "(int64[N] a, int64[N] b) => (float[N,12] y) { [one] e = Gather(t, a) [two] f = Gather(t, b) y = Mul(e, f) }"
    model = make(text, t=images(50, 12))
    int8 = convert_fx(prepare_fx(load(model), everywhere(None).set_object_type("Gather", float_qparams_weight_only_qconfig), None))
    assert sorted(int8.graph.initializers) == ["t_quantized", "t_scale", "t_zero_point"]
    a, b = np.array([3, 49]), np.array([0, 3])
    (y,) = qrt.InferenceSession(int8).run(None, {"a": a, "b": b})
    np.testing.assert_allclose(y, images(50, 12)[a] * images(50, 12)[b], atol=0.05)


def test_an_embedding_is_fake_quantized() -> None:
    text = "(int64[N,T] ids) => (float[N,T,5] y) { [embed] e = Gather(t, ids) [out] y = MatMul(e, m) }"
    model, ids = make(text, t=images(50, 12), m=images(12, 5, seed=1)), np.random.default_rng(0).integers(0, 50, (3, 7))
    observed = prepare_qat_fx(load(model), everywhere(None).set_object_type("Gather", default_embedding_qat_qconfig), None)
    np.testing.assert_allclose(observed(ids), in_ort(convert_fx(observed), ids), atol=1e-4)
    assert (observed(ids) != in_ort(model, ids)).any()


def model_matrix(model: onnx.ModelProto) -> np.ndarray:
    return onnx.numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == "m"))
