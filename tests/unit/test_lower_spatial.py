"""Pooling and resizing through the lowering, beside ONNX Runtime and onnx.reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from data import ort_session
from fused import run as run_fused
from lowered import as_model, check_node, one_node, run_model
from onnx import TensorProto, helper

from qrt.api import fuse_model
from qrt.core.errors import ModelError, UnsupportedOp
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower.executable import Executable


def real(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def ort(op_type: str, inputs: list[np.ndarray | None], constants: tuple[int, ...], **attributes: Any) -> list[np.ndarray]:
    model, feeds = one_node(op_type, inputs, constants, **attributes)
    return ort_session(model.SerializeToString()).run(None, feeds)


POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 9), {"kernel_shape": [3]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((1, 2, 7, 7), {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ((1, 2, 5, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 5, 6), {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 5, 6), {"kernel_shape": [3, 3], "auto_pad": "VALID"}),
    ((1, 2, 5, 6, 7), {"kernel_shape": [2, 3, 2], "strides": [1, 2, 2], "pads": [0, 1, 1, 1, 1, 0]}),
    ((1, 2, 9, 9), {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [1, 1, 1, 1]}),
]


@pytest.mark.parametrize(("shape", "attributes"), POOLS)
def test_max_pool(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check_node("MaxPool", [real(*shape)], wanted=ort("MaxPool", [real(*shape)], (), **attributes), **attributes)
    for dtype in (np.uint8, np.int8):
        x = (real(*shape) * 50).astype(np.int8).view(dtype)
        check_node("MaxPool", [x], wanted=ort("MaxPool", [x], (), **attributes), **attributes)


@pytest.mark.parametrize("shape", [(1, 5, 4, 3), (5, 2, 3, 3), (2, 40, 2, 2), (0, 3, 2, 2)])
@pytest.mark.parametrize("size", [1, 3, 5, 15])
def test_local_response_normalization(shape: tuple[int, ...], size: int) -> None:
    attributes = {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5}
    wanted = ort("LRN", [real(*shape)], (), **attributes)
    check_node("LRN", [real(*shape)], wanted=wanted, rtol=1e-5, atol=1e-6, **attributes)


def test_a_response_over_an_even_number_of_channels_reaches_further_up() -> None:
    x = np.float32([[[1.0], [2.0], [3.0], [4.0]]])
    sums = np.float32([[[1 + 4 + 9], [1 + 4 + 9 + 16], [4 + 9 + 16], [9 + 16]]])
    check_node("LRN", [x], wanted=[x / (1 + sums / 4)], rtol=1e-6, size=4, alpha=1.0, beta=1.0)


DOUBLE = real(1, 3, 5, 6).astype(np.float64)
UNIT = {"kernel_shape": [3, 3]}
STEPS = {"kernel_shape": [3, 3], "strides": [2, 2]}


@pytest.mark.parametrize(
    ("op_type", "inputs", "outputs", "attributes"),
    [
        ("LRN", [DOUBLE], 1, {"size": 3}),
        ("LpNormalization", [DOUBLE], 1, {"p": 1}),
        ("MaxPool", [real(1, 1, 4, 4)], 2, UNIT),
        ("MaxPool", [real(1, 1, 4, 4)], 2, STEPS | {"auto_pad": "SAME_LOWER"}),
        ("MaxPool", [DOUBLE], 1, UNIT | {"pads": [1, 0, 1, 1]}),
        ("MaxPool", [DOUBLE], 1, UNIT | {"pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ],
)
def test_what_the_reference_computes_otherwise_is_refused(
    op_type: str, inputs: list[np.ndarray | None], outputs: int, attributes: dict[str, Any]
) -> None:
    model, feeds = one_node(op_type, inputs, (2,), outputs, **attributes)
    with pytest.raises(UnsupportedOp, match=f"nor onnx.reference can run {op_type} with"):
        run_model(model, feeds)


@pytest.mark.parametrize(
    ("outputs", "attributes"),
    [
        (1, UNIT | {"pads": [1, 1, 1, 1]}),
        (1, UNIT | {"auto_pad": "SAME_UPPER"}),
        (1, UNIT | {"ceil_mode": 1}),
        (2, STEPS | {"storage_order": 1}),
        (2, STEPS | {"pads": [1, 0, 1, 1], "ceil_mode": 1}),
        (2, UNIT | {"dilations": [1, 2], "pads": [1, 1, 1, 1]}),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_max_pools_that_the_reference_may_run(outputs: int, attributes: dict[str, Any], dtype: type) -> None:
    model, feeds = one_node("MaxPool", [DOUBLE.astype(dtype)], (), outputs, **attributes)
    found, _ = run_model(model, feeds)
    for got, wanted in zip(found, ort_session(model.SerializeToString()).run(None, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("shape", "attributes"), POOLS)
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool(shape: tuple[int, ...], attributes: dict[str, Any], include: int) -> None:
    attributes = attributes | {"count_include_pad": include}
    check_node(
        "AveragePool", [real(*shape)], wanted=ort("AveragePool", [real(*shape)], (), **attributes), rtol=1e-5, atol=1e-6, **attributes
    )


def test_the_indices_of_a_max_pool_come_from_python() -> None:
    model, feeds = one_node("MaxPool", [real(1, 1, 4, 4)], outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    _, why = run_model(model, feeds)
    assert "indices" in next(iter(why.values()))


@pytest.mark.parametrize("kernel", [[9, 9], [2], [2, 2, 2]])
def test_a_kernel_that_does_not_fit(kernel: list[int]) -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=kernel)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    with pytest.raises(ModelError):
        run_model(model, {"x": real(1, 2, 5, 5)})


def q_node(op_type: str, x: np.ndarray, extra: list[np.ndarray | None], **attributes: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A node of the fused form on codes with qparams (0.7, 120) and (0.31, 99)."""
    qparams = [np.array(0.7, np.float32), np.array(120, np.uint8), np.array(0.31, np.float32), np.array(99, np.uint8)]
    inputs = [x, *qparams, *extra]
    return one_node(op_type, inputs, range(1, len(inputs)), domain="ai.qrt", result=(np.uint8, x.ndim), **attributes)


def check_codes(model: onnx.ModelProto, feeds: dict[str, np.ndarray], share: float) -> np.ndarray:
    """Our codes beside dequantize → op → quantize in float: at most one apart, and `share` of them equal."""
    (found,), why = run_model(model, feeds)
    assert not why
    (wanted,) = run_fused(as_model(model), feeds)
    assert found.dtype == wanted.dtype
    apart = np.abs(found.astype(int) - wanted.astype(int))
    assert apart.max(initial=0) <= 1
    assert (apart == 0).mean() >= share
    return found


@pytest.mark.parametrize(("shape", "attributes"), [p for p in POOLS if "ceil_mode" not in p[1]])
@pytest.mark.parametrize("include", [0, 1])
def test_average_of_codes(shape: tuple[int, ...], attributes: dict[str, Any], include: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    check_codes(*q_node("QAveragePool", x, [], **attributes, count_include_pad=include), share=0.98)


def test_averages_of_codes_beside_onnx_runtime() -> None:
    """Never more than one apart from QLinearAveragePool and QLinearGlobalAveragePool, which multiply in another order."""
    x = np.random.default_rng(0).integers(0, 256, (2, 24, 14, 14), np.uint8)
    for ours, theirs, attributes in [
        ("QAveragePool", "QLinearAveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("QAveragePool", "QLinearAveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("QGlobalAveragePool", "QLinearGlobalAveragePool", {}),
    ]:
        model, feeds = q_node(ours, x, [], **attributes)
        (found,), _ = run_model(model, feeds)
        model.graph.node[0].op_type, model.graph.node[0].domain = theirs, "com.microsoft"
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        (wanted,) = ort_session(model.SerializeToString()).run(None, feeds)
        apart = np.abs(found.astype(int) - wanted.astype(int))
        assert apart.max() <= 1
        assert (apart == 0).mean() > 0.98


COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
ROUNDING = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
SCALES = [(2.0, 3.0), (0.65, 0.8), (1.0, 2.5)]


@pytest.mark.parametrize(("coordinates", "rounding", "scales"), list(product(COORDINATES, ROUNDING, SCALES)))
def test_nearest(coordinates: str, rounding: str, scales: tuple[float, float]) -> None:
    x = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
    inputs = [x, None, np.array([1, 1, *scales], np.float32)]
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    wanted = ort("Resize", inputs, (2,), **attributes)
    check_node("Resize", inputs, [2], wanted=wanted, **attributes)
    # Codes are copied.
    check_node("Resize", [x.astype(np.uint8), *inputs[1:]], [2], wanted=[wanted[0].astype(np.uint8)], **attributes)


@pytest.mark.parametrize(("coordinates", "scales"), list(product(COORDINATES, SCALES)))
def test_linear(coordinates: str, scales: tuple[float, float]) -> None:
    inputs = [real(2, 3, 5, 7), None, np.array([1, 1, *scales], np.float32)]
    attributes = {"coordinate_transformation_mode": coordinates, "mode": "linear"}
    check_node("Resize", inputs, [2], wanted=ort("Resize", inputs, (2,), **attributes), rtol=1e-4, atol=1e-5, **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("shape", "sizes", "axes"),
    [
        ((2, 3, 7), [13], [2]),
        ((1, 2, 3, 4, 5), [6, 3, 7], [2, 3, 4]),
        ((3, 5), [4, 9], [0, 1]),
        ((2, 3, 4, 5), [7, 9], [-2, -1]),
        ((2, 3, 4), [3, 2], [0, 2]),
    ],
)
def test_sizes_and_axes(shape: tuple[int, ...], sizes: list[int], axes: list[int], mode: str) -> None:
    inputs = [real(*shape), None, None, np.array(sizes)]
    # onnx.reference does not count axes from the end.
    wanted = ort("Resize", inputs, (3,), mode=mode, axes=axes) if min(axes) < 0 else None
    check_node("Resize", inputs, [3], mode=mode, axes=axes, wanted=wanted, rtol=1e-4, atol=1e-5)


def test_sizes_may_be_fed_and_fit_the_input() -> None:
    check_node("Resize", [real(1, 2, 4, 5), None, None, np.array([1, 2, 8, 10])], mode="linear", rtol=1e-5, atol=1e-6)
    check_node("Resize", [real(1, 2, 4, 5), None, np.ones(4, np.float32)], [2])


@pytest.mark.parametrize("attributes", [{"mode": "cubic"}, {"mode": "linear", "antialias": 1}])
def test_what_has_no_kernel_runs_in_python(attributes: dict[str, Any]) -> None:
    model, feeds = one_node("Resize", [real(1, 1, 4, 4), None, np.array([1, 1, 0.5, 0.5], np.float32)], [2], **attributes)
    (found,), why = run_model(model, feeds)
    assert len(why) == 1
    np.testing.assert_allclose(found, ort_session(model.SerializeToString()).run(None, feeds)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", SCALES)
def test_resize_of_codes(mode: str, scales: tuple[float, float]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7), np.uint8)
    check_codes(*q_node("QResize", x, [None, np.array([1, 1, *scales], np.float32)], mode=mode), share=0.98)


def test_joined_codes_of_other_scales() -> None:
    rng = np.random.default_rng(0)
    f, u = (lambda v: np.array(v, np.float32)), (lambda v: np.array(v, np.uint8))
    inputs = [
        f(0.5),
        u(10),
        rng.integers(0, 256, (1, 4, 5, 5), np.uint8),
        f(0.5),
        u(10),
        rng.integers(0, 256, (1, 7, 5, 5), np.uint8),
        f(0.8),
        u(100),
    ]
    model, feeds = one_node("QConcat", inputs, [0, 1, 3, 4, 6, 7], domain="ai.qrt", result=(np.uint8, 4), axis=1)
    found = check_codes(model, feeds, share=1)
    np.testing.assert_array_equal(found[:, :4], inputs[2])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize(("shape", "attributes"), POOLS)
def test_max_pools_of_codes_of_16_bits(dtype: type, shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    scale, zero, codes = np.float32(0.25), np.asarray(7, dtype), np.random.default_rng(0).integers(0, 30000, shape)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["real"]),
        helper.make_node("MaxPool", ["real"], ["largest"], **attributes),
        helper.make_node("QuantizeLinear", ["largest", "scale", "zero"], ["again"]),
        helper.make_node("DequantizeLinear", ["again", "scale", "zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shape)) for name in "xy")
    held = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (("scale", scale), ("zero", zero))]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], held), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    real_codes = ((codes - 7) * scale).astype(np.float32)
    fused, _ = fuse_model(load(model))
    executable = Executable(fused, host_target(), 1)
    np.testing.assert_array_equal(executable.run({"x": real_codes}), ort("MaxPool", [real_codes], (), **attributes))
    assert "MaxPool" in [node.op_type for node in fused.graph if node.inputs[0].dtype.numpy() == dtype]  # codes are pooled
    assert not executable.why
