"""Folds, global pools and norms through the lowering, beside onnx.reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from fused import run as run_fused
from lowered import as_model, check_node, one_node, run_model
from onnx import TensorProto, helper

from qrt.core.errors import ModelError

RNG = np.random.default_rng(0)
QRT = "ai.qrt"


def real(*shape: int) -> np.ndarray:
    return RNG.uniform(0.2, 3, shape).astype(np.float32)


FOLDS = ["Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2", "LogSum", "LogSumExp"]
AXES = [None, (0,), (1,), (-1,), (0, 2), (1, 3), (0, 1, 2, 3), (3, 2)]


@pytest.mark.parametrize("op", FOLDS)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_folds(op: str, axes: tuple[int, ...] | None, keepdims: int) -> None:
    x = real(2, 3, 4, 5)
    given = [x] if axes is None else [x, np.array(axes, np.int64)]
    check_node(f"Reduce{op}", given, (1,), rtol=1e-5, keepdims=keepdims)


@pytest.mark.parametrize("op", ["Sum", "Max", "Min", "Prod", "SumSquare", "L1"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_folds_of_integers(op: str, dtype: type) -> None:
    x = RNG.integers(-4, 5, (3, 4, 5)).astype(dtype)
    # onnx.reference widens the sum of int32 squares, which ONNX does not.
    wanted = [np.square(x).sum((0, 2), dtype, keepdims=True)] if op == "SumSquare" else None
    check_node(f"Reduce{op}", [x, np.array([0, 2])], (1,), wanted=wanted)


def test_no_axes_may_mean_nothing() -> None:
    x, none = real(2, 3), np.zeros(0, np.int64)
    np.testing.assert_array_equal(check_node("ReduceSum", [x, none], (1,), noop_with_empty_axes=1)[0], x)
    check_node("ReduceSum", [x, none], (1,), rtol=1e-6)


def test_computed_axes_are_read_before_the_plan() -> None:
    check_node("ReduceSum", [real(2, 3, 4), np.array([1, 2])], rtol=1e-6)


def test_log_sum_exp_of_far_numbers() -> None:
    x = np.array([[1000, 1001, -1000], [-np.inf, -np.inf, -np.inf], [np.inf, 0, 1]], np.float32)
    model, feeds = one_node("ReduceLogSumExp", [x, np.array([1])], (1,), keepdims=0)
    (y,), why = run_model(model, feeds)
    assert not why
    np.testing.assert_allclose(y, np.array([1001.3132617, -np.inf, np.inf], np.float32), 1e-6)


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg(op_type: str, axis: int, keepdims: int) -> None:
    for x in (real(3, 4, 35), RNG.integers(0, 5, (3, 4, 35))):
        for last in (0, 1):
            check_node(op_type, [x], axis=axis, keepdims=keepdims, select_last_index=last)


@pytest.mark.parametrize(("exclusive", "reverse"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_cumsum(exclusive: int, reverse: int) -> None:
    for axis in (0, 1, -1):
        check_node("CumSum", [real(3, 4, 5), np.int64(axis)], (1,), rtol=1e-6, exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize(("op_type", "fold"), [("GlobalAveragePool", np.mean), ("GlobalMaxPool", np.max)])
@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 70, 5, 7), (1, 3, 4, 5, 6)])
def test_global_pools(op_type: str, fold: Callable[..., np.ndarray], shape: tuple[int, ...]) -> None:
    x = real(*shape)
    check_node(op_type, [x], wanted=[fold(x, axis=tuple(range(2, x.ndim)), keepdims=True)], rtol=1e-5)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax(op_type: str, axis: int) -> None:
    check_node(op_type, [real(3, 5, 40)], rtol=1e-5, atol=1e-6, axis=axis)


def test_layer_normalization() -> None:
    x = real(2, 5, 40)
    for axis in (-1, 1, 2):
        row = x.shape[axis % 3 :]
        check_node("LayerNormalization", [x, real(*row), real(*row)], (1, 2), rtol=1e-4, atol=1e-5, axis=axis)
        check_node("LayerNormalization", [x, real(*row)], (1,), rtol=1e-4, atol=1e-5, axis=axis, epsilon=1e-3)
    check_node("LayerNormalization", [x, real(40)], (1,), rtol=1e-4, atol=1e-5, axis=1)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 40), (5, 40), (5, 1), (2, 5, 40), (2, 1, 1)])
@pytest.mark.parametrize("known", [(), (1,), (2,), (1, 2)])
def test_scale_and_bias_of_a_norm_of_rows_are_broadcast(shape: tuple[int, ...], known: tuple[int, ...]) -> None:
    x, scale, bias = real(2, 5, 40), np.asarray(real(*shape)), real(40)
    for given in ((scale, bias), (bias, scale)):
        check_node("LayerNormalization", [x, *given], known, rtol=1e-4, atol=1e-5, wanted=[_normalized(x, *given)])
    check_node("RMSNormalization", [x, scale], [k for k in known if k < 2], rtol=1e-4, atol=1e-5, opset=23)


def _normalized(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + np.float32(1e-5)) * scale + bias


def test_scales_that_do_not_fit_rows_are_refused() -> None:
    for shape in ((2, 2, 5, 40), (4, 40), (1, 1, 1, 40)):
        for known in ((), (1,)):
            model, feeds = one_node("LayerNormalization", [real(2, 5, 40), real(*shape)], known)
            with pytest.raises(ModelError, match="does not fit"):
                run_model(model, feeds)


def test_other_norms() -> None:
    x = real(2, 6, 5, 7)
    check_node("InstanceNormalization", [x, real(6), real(6)], (1, 2), rtol=1e-4, atol=1e-5)
    check_node("GroupNormalization", [x, real(6), real(6)], (1, 2), rtol=1e-4, atol=1e-5, num_groups=3)
    for attributes in ({}, {"axis": 1, "p": 1}, {"axis": 2}):
        check_node("LpNormalization", [x], rtol=1e-5, **attributes)
    check_node("RMSNormalization", [x, real(7)], (1,), rtol=1e-5, atol=1e-6, opset=23)


def test_mean_variance_normalization() -> None:
    x = real(2, 3, 5, 7)
    for axes in ((0, 2, 3), (1,)):
        wanted = (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-9)
        check_node("MeanVarianceNormalization", [x], wanted=[wanted.astype(np.float32)], rtol=1e-4, atol=1e-5, axes=list(axes))


def test_statistics_that_are_read_run_in_python() -> None:
    model, feeds = one_node("LayerNormalization", [real(2, 5), real(5)], (1,), outputs=3)
    found, why = run_model(model, feeds)
    assert list(why.values()) == ["statistics are read beside the result"]
    assert len(found) == 3


def test_an_image_is_folded_where_it_lies() -> None:
    """Conv → ReduceMean over space → ArgMax over channels and Softmax over channels: no image is moved."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[3, 3]),
        helper.make_node("Softmax", ["a"], ["b"], axis=1),
        helper.make_node("ReduceMean", ["b", "axes"], ["c"], keepdims=0),
        helper.make_node("ArgMax", ["a"], ["d"], axis=1, keepdims=0),
    ]
    w = RNG.normal(size=(8, 3, 3, 3)).astype(np.float32)
    initializers = [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(np.array([2, 3]), "axes")]
    outputs = [
        helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 8]),
        helper.make_tensor_value_info("d", TensorProto.INT64, [2, 7, 7]),
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 9, 9])], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = real(2, 3, 9, 9)
    found, why = run_model(model, {"x": x})
    assert not why
    c, d = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(found[0], c, 1e-4, 1e-5)
    np.testing.assert_array_equal(found[1], d)


def check_codes(op_type: str, extra: tuple[np.ndarray, ...] = (), **attributes: Any) -> None:
    """The node on codes equals its definition, or is one code away where a real number lies beside a tie."""
    x = RNG.integers(0, 256, (2, 6, 5, 7)).astype(np.uint8)
    scale, zero = np.float32(0.05), np.uint8(100)
    y_scale, y_zero = (np.float32(1 / 256), np.uint8(0)) if op_type == "QSoftmax" else (np.float32(0.0217), np.uint8(128))
    inputs = [x, *(np.asarray(v) for v in (scale, zero, y_scale, y_zero)), *extra]
    rank = 4 if attributes.get("keepdims", 1) else 4 - extra[0].size
    model, feeds = one_node(op_type, inputs, tuple(range(1, len(inputs))), domain=QRT, result=(np.uint8, rank), **attributes)
    (found,), why = run_model(model, feeds)
    assert not why
    away = np.abs(found.astype(int) - run_fused(as_model(model), feeds)[0])
    assert away.max() <= 1
    assert (away > 0).mean() < 0.01


@pytest.mark.parametrize("axis", [1, -1])
def test_softmax_of_codes(axis: int) -> None:
    check_codes("QSoftmax", axis=axis)
    check_codes("QSoftmax", axis=axis, qmin=3, qmax=20)


@pytest.mark.parametrize("axes", [(2, 3), (1,), (0, 2), (3,)])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_of_codes(axes: tuple[int, ...], keepdims: int) -> None:
    check_codes("QReduceMean", (np.array(axes),), keepdims=keepdims)
