"""The numeric debugger: handles that last, loggers, and where an int8 model leaves its float one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from data import ASSETS, RESNET20, cifar10, digits, needs_data, normalised
from graphs import images, make, reference

import qrt
from qrt.core.errors import CalibrationError, InvalidInput, ModelError
from qrt.graph.passes import prepare
from qrt.quantization import (
    QrtQuantizer,
    convert_fx,
    convert_jit,
    convert_pt2e,
    get_default_qconfig,
    get_default_qconfig_mapping,
    prepare_fx,
    prepare_jit,
    prepare_pt2e,
)
from qrt.quantization.numeric_debugger import (
    CUSTOM_KEY,
    NUMERIC_DEBUG_HANDLE_KEY,
    LoggedModel,
    NodeAccuracySummary,
    NodeSourceDebugInfo,
    OutputLogger,
    QuantizationComparisonResult,
    compare_results,
    compute_sqnr,
    extract_results_from_loggers,
    generate_numeric_debug_handle,
    prepare_for_propagation_comparison,
)

F32 = np.float32
Summaries = dict[NodeSourceDebugInfo, NodeAccuracySummary]


def mlp() -> onnx.ModelProto:
    """Two layers whose biases quantization absorbs: MatMul, Add, Relu, MatMul, Add."""
    random = np.random.default_rng(1)
    return make(
        "(float[n, 8] x) => (float[n, 4] y) { a = MatMul(x, w1) b = Add(a, c1) r = Relu(b) d = MatMul(r, w2) y = Add(d, c2) }",
        w1=random.standard_normal((8, 16)).astype(F32),
        c1=(4 * random.standard_normal(16)).astype(F32),
        w2=random.standard_normal((16, 4)).astype(F32),
        c2=(9 * random.standard_normal(4)).astype(F32),
    )


def branches() -> onnx.ModelProto:
    """A model with two bodies, one of them with a body of its own."""
    return make(
        """(float[2] x, bool c) => (float[2] y) {
            a = Relu(x)
            b = If(c) <
                then_branch = t () => (float[2] t2) { t1 = Neg(a) t2 = If(c) <
                    then_branch = tt () => (float[2] u) { u = Abs(t1) }, else_branch = te () => (float[2] v) { v = Sqrt(a) }
                > },
                else_branch = e () => (float[2] e1) { e1 = Exp(a) }
            >
            y = Floor(b)
        }"""
    )


def handles(model: qrt.Model) -> dict[str, int]:
    """Operator → handle, over all graphs."""
    return {node.op_type: node.meta[CUSTOM_KEY][NUMERIC_DEBUG_HANDLE_KEY] for node in model.graph.all_nodes() if CUSTOM_KEY in node.meta}


def compared(model: qrt.Model, quantized: qrt.Model, samples: list[np.ndarray]) -> Summaries:
    real, int8 = prepare_for_propagation_comparison(model), prepare_for_propagation_comparison(quantized)
    for x in samples:
        real(x), int8(x)
    return compare_results(extract_results_from_loggers(real), extract_results_from_loggers(int8))


def sqnrs(summaries: Summaries) -> dict[str, float]:
    """Value → its least SQNR."""
    return {key.name: min(float(result.sqnr) for result in summary.results) for key, summary in summaries.items()}  # type: ignore[arg-type]


def test_handles_are_breadth_first_and_stay() -> None:
    model = qrt.load(branches())
    generate_numeric_debug_handle(model)
    found = handles(model)
    assert found.pop("If") in (2, 5)  # one in the top graph, one in a body
    assert found == {"Relu": 1, "Floor": 3, "Neg": 4, "Exp": 6, "Abs": 7, "Sqrt": 8}
    numbers = [node.meta[CUSTOM_KEY][NUMERIC_DEBUG_HANDLE_KEY] for node in model.graph.all_nodes()]
    assert sorted(numbers) == list(range(1, 9))
    generate_numeric_debug_handle(model)
    assert [node.meta[CUSTOM_KEY][NUMERIC_DEBUG_HANDLE_KEY] for node in model.graph.all_nodes()] == numbers


def test_existing_handles_and_notes_are_kept() -> None:
    model = qrt.load(mlp())
    add, relu = (next(node for node in model.graph if node.op_type == kind) for kind in ("Add", "Relu"))
    add.meta[CUSTOM_KEY] = {NUMERIC_DEBUG_HANDLE_KEY: 40, "mine": "yes"}
    relu.metadata_props[NUMERIC_DEBUG_HANDLE_KEY] = "7"
    clone = model.clone()
    generate_numeric_debug_handle(clone)
    assert [node.meta[CUSTOM_KEY][NUMERIC_DEBUG_HANDLE_KEY] for node in clone.graph] == [41, 40, 7, 42, 43]
    assert next(node for node in clone.graph if node.op_type == "Add").meta[CUSTOM_KEY]["mine"] == "yes"
    assert add.meta[CUSTOM_KEY] == {NUMERIC_DEBUG_HANDLE_KEY: 40, "mine": "yes"}
    assert CUSTOM_KEY not in relu.meta


def test_handles_are_saved(tmp_path: Path) -> None:
    model = qrt.load(mlp())
    generate_numeric_debug_handle(model)
    quantized = qrt.quantize(model, [{"x": images(64, 8)}], progress=False)
    quantized.save(tmp_path / "int8.onnx")
    loaded = qrt.load(tmp_path / "int8.onnx")
    generate_numeric_debug_handle(quantized)
    generate_numeric_debug_handle(loaded)
    found = [[node.meta[CUSTOM_KEY][NUMERIC_DEBUG_HANDLE_KEY] for node in m.graph if node.op_type == "Gemm"] for m in (quantized, loaded)]
    assert found == [[2, 5], [2, 5]]  # those of the Adds, for their sums are what the products compute now


@pytest.mark.parametrize("opset", [11, 13, 21])
def test_handles_outlast_conversion_of_the_opset(opset: int) -> None:
    model = qrt.load(make("(float[2, 3] x) => (float[2, 3] y) { a = Relu(x) y = Softmax<axis = 1>(a) }", opset=opset))
    generate_numeric_debug_handle(model)
    assert [node.metadata_props[NUMERIC_DEBUG_HANDLE_KEY] for node in prepare(model).graph] == ["1", "2"]


def test_a_broken_handle() -> None:
    model = qrt.load(mlp())
    model.graph[0].name = "first"
    model.graph[0].metadata_props[NUMERIC_DEBUG_HANDLE_KEY] = "one"
    for function in (generate_numeric_debug_handle, prepare_for_propagation_comparison):
        with pytest.raises(ModelError, match="'first' has the numeric_debug_handle 'one'"):
            function(model)


@pytest.mark.parametrize("with_handles", [True, False])
def test_absorbed_biases_are_compared_with_their_sums(with_handles: bool) -> None:
    model = qrt.load(mlp())
    if with_handles:
        generate_numeric_debug_handle(model)
    x = images(64, 8)
    found = sqnrs(compared(model, qrt.quantize(model, [{"x": x}], progress=False), [x]))
    assert set(found) == {"b", "r", "y"}
    assert min(found.values()) > 30


def test_what_loggers_record_is_what_nodes_compute() -> None:
    proto = mlp()
    prepared = prepare_for_propagation_comparison(qrt.load(proto))
    runs = [images(n, 8, seed=n) for n in (3, 5)]
    for x in runs:
        np.testing.assert_array_equal(prepared(x)[0], extract_results_from_loggers(prepared)[NodeSourceDebugInfo("y")][2][-1])
    recorded = extract_results_from_loggers(prepared)
    assert [key.name for key in recorded] == ["a", "b", "r", "d", "y"]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in "abrd")
    for i, x in enumerate(runs):
        for name, wanted in zip("yabrd", reference(proto, x=x), strict=True):
            np.testing.assert_allclose(recorded[NodeSourceDebugInfo(name)][2][i], wanted, rtol=1e-4, atol=1e-5)


def test_several_outputs_and_those_computed_beforehand() -> None:
    model = qrt.load(make("(float[2, 4] x) => (float[2, 2] y) { s = Shape(x) a, b = Split<axis = 1, num_outputs = 2>(x) y = Mul(a, b) }"))
    one, other = prepare_for_propagation_comparison(model), prepare_for_propagation_comparison(model)
    x = images(2, 4)
    one(x), other({"x": x * F32(1.5)})
    results = extract_results_from_loggers(one)
    split = results[NodeSourceDebugInfo("a")][2][0]
    assert isinstance(split, tuple)
    np.testing.assert_array_equal(np.concatenate(split, axis=1), x)
    (result,) = compare_results(results, extract_results_from_loggers(other))[NodeSourceDebugInfo("a")].results
    assert result.sqnr == pytest.approx((20 * math.log10(3),) * 2, rel=1e-5)
    assert isinstance(result.mse_loss, tuple)
    np.testing.assert_allclose(result.mse_loss, [np.mean((x[:, s] / 2) ** 2) for s in (slice(2), slice(2, 4))], rtol=1e-5)


def test_nodes_that_run_in_python_are_logged() -> None:
    prepared = prepare_for_propagation_comparison(qrt.load(branches()))
    x = np.array([1.5, -2.0], F32)
    outputs = prepared({"x": x, "c": np.array(False)})
    recorded = extract_results_from_loggers(prepared)
    assert [key.name for key in recorded] == ["a", "b", "y"]
    np.testing.assert_allclose(recorded[NodeSourceDebugInfo("b")][2][0], np.exp(np.maximum(x, 0)), rtol=1e-6)
    np.testing.assert_array_equal(outputs[0], [4, 1])


def test_dynamic_quantization_node_by_node() -> None:
    """Its integer products run in Python here, for unfused they have no kernel, and hand on views: kernels after them take copies."""
    model = qrt.load(ASSETS / "digits.onnx")
    generate_numeric_debug_handle(model)
    quantized, x = qrt.quantize_dynamic(model), digits()["test"][0][:4]
    prepared = prepare_for_propagation_comparison(quantized)
    prepared(x)
    recorded = extract_results_from_loggers(prepared)
    proto = prepared.model.to_proto()
    names = [name for node in proto.graph.node for name in node.output]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    wanted = dict(zip(names, reference(proto, image=x), strict=True))
    for key, (_, _, stats) in recorded.items():
        first = stats[0][0] if isinstance(stats[0], tuple) else stats[0]
        np.testing.assert_allclose(first, wanted[key.name], rtol=1e-4, atol=1e-4, err_msg=key.name)
    assert "ConvInteger" in {node.op_type for node in quantized.graph}
    assert min(sqnrs(compared(model, quantized, [x])).values()) > 30


@pytest.mark.parametrize("door", ["fx", "pt2e", "jit"])
def test_handles_pass_every_door(door: str) -> None:
    model = qrt.load(ASSETS / "digits.onnx")
    generate_numeric_debug_handle(model)
    x = digits()["calibration"][0][:64]
    if door == "fx":
        prepared = prepare_fx(model, get_default_qconfig_mapping("onednn"), (x[:1],))
    else:
        prepared = prepare_pt2e(model, QrtQuantizer()) if door == "pt2e" else prepare_jit(model, {"": get_default_qconfig("onednn")})
    prepared(x)
    convert: dict[str, Callable[..., qrt.Model]] = {"fx": convert_fx, "pt2e": convert_pt2e, "jit": convert_jit}
    summaries = compared(model, convert[door](prepared), [x[:8]])
    check_all_nodes(model, prepare_and_run(model, [x[:8]]), summaries)
    assert min(sqnrs(summaries).values()) > 20


def test_module_paths_are_those_of_names() -> None:
    model = qrt.load(mlp())
    model.graph[0].name = "/encoder/layer.0/dense/MatMul"
    prepared = prepare_for_propagation_comparison(model)
    prepared(images(1, 8))
    results = extract_results_from_loggers(prepared)
    assert [stack for _, stack, _ in results.values()] == ["/encoder/layer.0/dense", "", "", "", ""]
    summary = compare_results(results, results)[NodeSourceDebugInfo("a")]
    assert (summary.ref_node_name, summary.actual_module_stack) == ("/encoder/layer.0/dense/MatMul", "/encoder/layer.0/dense")
    assert summary.results[0].sqnr == math.inf
    assert summary.results[0].mse_loss == 0


def test_models_that_cannot_be_compared() -> None:
    model, other = qrt.load(mlp()), qrt.load(make("(float[n, 8] x) => (float[n, 8] z) { z = Neg(x) }"))
    left, right = prepare_for_propagation_comparison(model), prepare_for_propagation_comparison(other)
    with pytest.raises(InvalidInput, match="the loggers saw nothing"):
        extract_results_from_loggers(left)
    left(images(2, 8)), right(images(2, 8))
    real = extract_results_from_loggers(left)
    with pytest.raises(InvalidInput, match="no node in common"):
        compare_results(real, extract_results_from_loggers(right))
    again = prepare_for_propagation_comparison(model)
    again(images(3, 8))
    with pytest.raises(InvalidInput, match=r"'a', node .* cannot compare shapes \[\(3, 16\)\] and \[\(2, 16\)\]"):
        compare_results(real, extract_results_from_loggers(again))
    left(images(2, 8))
    with pytest.raises(InvalidInput, match="recorded 2 and 1 times"):
        compare_results(real, extract_results_from_loggers(again))
    with pytest.raises(CalibrationError, match=r"run 2 of .*, input 'x' has shape"):
        left(images(2, 7))
    for function in (generate_numeric_debug_handle, prepare_for_propagation_comparison):
        with pytest.raises(InvalidInput, match=r"give a qrt\.Model"):
            function(mlp())  # type: ignore[arg-type]


def test_handles_come_before_names() -> None:
    def results(*keys: NodeSourceDebugInfo) -> dict[NodeSourceDebugInfo, tuple[str, str, list[np.ndarray | tuple[np.ndarray, ...]]]]:
        return {key: (key.name, "", [np.full(2, key.handle or 0, F32)]) for key in keys}

    ref = results(NodeSourceDebugInfo("a", 1), NodeSourceDebugInfo("b", 2), NodeSourceDebugInfo("c", 3), NodeSourceDebugInfo("d"))
    actual = results(NodeSourceDebugInfo("b", 1), NodeSourceDebugInfo("c"), NodeSourceDebugInfo("d", 9), NodeSourceDebugInfo("e", 5))
    found = compare_results(ref, actual)
    assert {key.name: summary.actual_node_name for key, summary in found.items()} == {"a": "b", "b": "b", "c": "c", "d": "d"}


def test_sqnr_is_of_the_actual_array() -> None:
    actual, ref = np.array([3.0, 4.0], F32), np.array([3.0, 3.5], F32)
    result = QuantizationComparisonResult(actual, ref)
    assert result.sqnr == compute_sqnr(actual, ref) == pytest.approx(20)
    assert compute_sqnr(ref, actual) != result.sqnr
    assert result.mse_loss == pytest.approx(0.125)
    assert compute_sqnr(np.zeros(3), np.ones(3)) == -math.inf
    assert compute_sqnr(np.array([1e-200]), np.array([1e200])) == -math.inf
    masks = np.array([-np.inf, 1.0], F32)
    assert QuantizationComparisonResult(masks, masks.copy()).sqnr == math.inf
    assert QuantizationComparisonResult(np.zeros((0, 2)), np.zeros((0, 2))).mse_loss == 0
    assert repr(result) == f"QuantizationComparisonResult(mse_loss=0.125, sqnr={result.sqnr})"
    logger = OutputLogger(NodeSourceDebugInfo("v", 3), "node")
    assert logger(actual) is actual
    actual[:] = 0
    assert logger.stats[0].tolist() == [3, 4]  # type: ignore[union-attr]
    assert "num_stats=1" in repr(logger)


def worst(summaries: Summaries) -> tuple[str, float]:
    return min(sqnrs(summaries).items(), key=lambda item: item[1])


def check_all_nodes(model: qrt.Model, prepared: LoggedModel, summaries: Summaries) -> None:
    """Every node of the float model that ran is compared, and each is found by its handle."""
    assert list(extract_results_from_loggers(prepared)) == list(summaries)
    assert all(key.handle is not None for key in summaries)
    assert len(summaries) == len(prepared.loggers)


def test_the_embedded_model_worst_node_first() -> None:
    model = qrt.load(ASSETS / "digits.onnx")
    generate_numeric_debug_handle(model)
    quantized = qrt.quantize(model, [{"image": digits()["calibration"][0][:256]}], progress=False)
    samples = [digits()["test"][0][start : start + 16] for start in (0, 16)]
    summaries = compared(model, quantized, samples)
    check_all_nodes(model, prepare_and_run(model, samples), summaries)
    name, least = worst(summaries)
    assert 20 < least < 45
    assert name == "conv_16.output"
    for summary in summaries.values():
        assert len(summary.results) == 2


def prepare_and_run(model: qrt.Model, samples: list[np.ndarray]) -> LoggedModel:
    prepared = prepare_for_propagation_comparison(model)
    for x in samples:
        prepared(x)
    return prepared


@needs_data("cifar10-resnets", "cifar10-data")
def test_a_real_network_with_one_bad_layer() -> None:
    """ResNet-20 in int8, and again with one weight's scale spoilt: the debugger says where."""
    model = qrt.load(RESNET20)
    generate_numeric_debug_handle(model)
    name = model.inputs[0].name
    x = normalised(cifar10(1)[0][:64])
    quantized = qrt.quantize(model, [{name: x}], progress=False)
    good = compared(model, quantized, [x[:8]])
    check_all_nodes(model, prepare_and_run(model, [x[:8]]), good)
    assert min(sqnrs(good).values()) > 15
    convs = [node for node in quantized.graph if node.op_type == "Conv"]
    spoilt = convs[10]
    weight = spoilt.inputs[1].producer()
    scale = weight.inputs[1]
    scale.const_value = qrt.graph.ir.tensor(scale.const_value.numpy() * F32(8), name=scale.name)
    bad = compared(model, quantized, [x[:8]])
    drops = {summary.actual_node_name: float(good[key].results[0].sqnr) - float(bad[key].results[0].sqnr) for key, summary in bad.items()}
    first = next(name for name, drop in drops.items() if drop > 6)
    assert first == spoilt.name
