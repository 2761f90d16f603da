"""Products and convolutions through the lowering: every spelling runs natively and gives what ONNX Runtime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data import ort_session
from fused import run as run_fused
from lowered import as_model, check_node, one_node, run_model
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from qrt.core.errors import ModelError
from qrt.graph.passes import prepare
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower.executable import Executable

RNG = np.random.default_rng(0)
QRT = "ai.qrt"
NEAR: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def codes(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max + 1, shape).astype(dtype)


def check_against_onnx_runtime(
    op_type: str, inputs: list[np.ndarray | None], constants: tuple[int, ...], exact: bool = False, **attributes: Any
) -> None:
    """The node runs natively and gives what ONNX Runtime gives, on 1 and 2 threads."""
    model, feeds = one_node(op_type, inputs, constants, **attributes)
    (wanted,) = ort_session(model.SerializeToString()).run(None, feeds)
    for threads in (1, 2):
        (found,), why = run_model(model, feeds, threads)
        assert not why
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        if exact:
            np.testing.assert_array_equal(found, wanted)
        else:
            np.testing.assert_allclose(found, wanted, **NEAR)


# -- MatMul and Gemm ------------------------------------------------------------------------------------------------------
SHAPES = [
    ((5, 8), (8, 3)),
    ((8,), (8, 3)),
    ((5, 8), (8,)),
    ((8,), (8,)),
    ((2, 5, 8), (8, 3)),
    ((2, 5, 8), (2, 8, 3)),
    ((5, 8), (4, 8, 3)),
    ((2, 1, 5, 8), (1, 4, 8, 3)),
    ((8,), (4, 8, 3)),
    ((2, 4, 5, 8), (8,)),
    ((1, 8), (8, 1)),
    ((0, 8), (8, 3)),
    ((2, 0, 8), (2, 8, 3)),
]


@pytest.mark.parametrize(("a", "b"), SHAPES)
@pytest.mark.parametrize("constants", [(), (1,), (0,)])
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], constants: tuple[int, ...]) -> None:
    x, w = real(*a), real(*b)
    check_node("MatMul", [x, w], constants, **NEAR, wanted=[np.matmul(x, w)])


@pytest.mark.parametrize("c", [None, (), (1,), (3,), (1, 3), (5, 1), (5, 3)])
@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm(c: tuple[int, ...] | None, fed: bool, trans_a: int, trans_b: int) -> None:
    a, b = real(8, 5) if trans_a else real(5, 8), real(3, 8) if trans_b else real(8, 3)
    inputs: list[np.ndarray | None] = [a, b] if c is None else [a, b, np.asarray(real(*c))]
    constants = (1,) if fed else (1, 2)
    check_node("Gemm", inputs, constants, **NEAR, transA=trans_a, transB=trans_b)
    if not fed:
        check_node("Gemm", inputs, constants, **NEAR, transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)


def test_a_column_of_c_is_not_a_row() -> None:
    check_node("Gemm", [real(5, 8), real(8, 5), real(5, 1)], (1, 2), **NEAR)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint32])
@pytest.mark.parametrize("constants", [(), (1,)])
def test_products_of_other_numbers_run_in_python(dtype: type, constants: tuple[int, ...]) -> None:
    a, b = (RNG.integers(0, 9, shape).astype(dtype) for shape in ((5, 8), (8, 3)))
    for op_type in ("MatMul", "Gemm"):
        model, feeds = one_node(op_type, [a, b], constants)
        (found,), why = run_model(model, feeds)
        assert list(why.values()) == [f"operands of {np.dtype(dtype)}"]
        np.testing.assert_array_equal(found, a @ b)


def test_gemm_with_a_computed_matrix_still_runs() -> None:
    model, feeds = one_node("Gemm", [real(5, 8), real(3, 8), real(3)], (2,), transB=1, alpha=0.5)
    (found,), _ = run_model(model, feeds)
    np.testing.assert_allclose(found, ort_session(model.SerializeToString()).run(None, feeds)[0], **NEAR)


@pytest.mark.parametrize(("a", "b"), SHAPES[:8])
@pytest.mark.parametrize("constants", [(2, 3), (1, 2, 3)])
@pytest.mark.parametrize("signed", [False, True])
def test_matmul_integer(a: tuple[int, ...], b: tuple[int, ...], constants: tuple[int, ...], signed: bool) -> None:
    dtype = np.int8 if signed else np.uint8
    x, w, x_point, w_point = codes(*a, dtype=dtype), codes(*b, dtype=dtype), dtype(7), dtype(-3 if signed else 200)
    wanted = np.matmul(x.astype(np.int32) - 7, w.astype(np.int32) - int(w_point))
    check_node("MatMulInteger", [x, w, np.asarray(x_point), np.asarray(w_point)], constants, wanted=[wanted])


def test_matmul_integer_with_a_zero_point_for_each_column() -> None:
    x, w, points = codes(5, 8), codes(8, 3), np.uint8([0, 128, 255])
    wanted = x.astype(np.int32) @ (w.astype(np.int32) - points)
    check_node("MatMulInteger", [x, w, None, points], (1, 3), wanted=[wanted])
    check_node("MatMulInteger", [x, w], (1,), wanted=[x.astype(np.int32) @ w.astype(np.int32)])


# -- convolutions ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 3, 9, 8), (4, 3, 3, 3), {}),
        ((2, 3, 9, 8), (4, 3, 3, 3), {"pads": [1, 2, 0, 1], "strides": [2, 1]}),
        ((2, 4, 9, 8), (6, 2, 3, 2), {"group": 2, "dilations": [2, 3]}),
        ((2, 4, 9, 8), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
        ((2, 4, 9, 8), (8, 1, 3, 3), {"group": 4}),  # two channels out of each
        ((1, 3, 9, 8), (4, 3, 1, 1), {}),
        ((1, 3, 9, 8), (4, 3, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((1, 3, 9, 8), (4, 3, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
        ((1, 3, 9, 8), (4, 3, 2, 4), {"auto_pad": "SAME_UPPER"}),
        ((1, 3, 9, 8), (4, 3, 3, 4), {"auto_pad": "VALID"}),
        ((2, 3, 20), (4, 3, 5), {"strides": [3], "pads": [2, 1]}),
        ((1, 2, 5, 6, 4), (3, 2, 2, 3, 2), {"pads": [0, 1, 0, 1, 0, 1]}),
        ((0, 3, 9, 8), (4, 3, 3, 3), {}),
    ],
)
def test_conv(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    if 0 not in x:
        for bias in (None, real(w[0])):
            check_against_onnx_runtime("Conv", [real(*x), real(*w), bias], (1, 2), **attributes)
    else:
        check_node("Conv", [real(*x), real(*w)], (1,), wanted=[np.zeros((0, 4, 7, 6), np.float32)])


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 3, 5, 4), (3, 4, 3, 3), {}),
        ((2, 3, 5, 4), (3, 4, 3, 3), {"strides": [2, 3], "pads": [1, 0, 0, 2]}),
        ((2, 3, 5, 4), (3, 4, 3, 3), {"strides": [2, 3], "output_padding": [1, 2]}),
        ((2, 4, 5, 4), (4, 3, 2, 3), {"group": 2, "dilations": [2, 1]}),
        ((2, 4, 5, 4), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
        ((1, 3, 5, 4), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [10, 9]}),
        ((1, 3, 5, 4), (3, 4, 3, 3), {"strides": [3, 2], "auto_pad": "SAME_UPPER"}),
        ((1, 3, 5, 4), (3, 4, 3, 3), {"strides": [3, 2], "auto_pad": "SAME_LOWER"}),
        ((1, 3, 5, 4), (3, 4, 3, 3), {"auto_pad": "VALID"}),
        ((2, 3, 7), (3, 4, 4), {"strides": [3]}),
        ((1, 2, 3, 4, 2), (2, 3, 2, 2, 2), {"strides": [2, 1, 2]}),
    ],
)
def test_conv_transpose(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    group = attributes.get("group", 1)
    for bias in (None, real(w[1] * group)):
        check_against_onnx_runtime("ConvTranspose", [real(*x), real(*w), bias], (1, 2), **attributes)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 3, 9, 8), (4, 3, 3, 3), {"pads": [1, 2, 0, 1], "strides": [2, 1]}),
        ((2, 4, 9, 8), (6, 2, 3, 2), {"group": 2, "dilations": [2, 3]}),
        ((2, 4, 9, 8), (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER"}),
        ((2, 3, 20), (4, 3, 5), {}),
    ],
)
def test_conv_integer(dtype: type, x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    points = [np.asarray(np.uint8(11)), np.asarray(dtype(-5 if dtype is np.int8 else 130))]
    check_against_onnx_runtime("ConvInteger", [codes(*x), codes(*w, dtype=dtype), *points], (1, 2, 3), exact=True, **attributes)
    check_against_onnx_runtime("ConvInteger", [codes(*x), codes(*w, dtype=dtype)], (1,), exact=True, **attributes)


# -- codes ----------------------------------------------------------------------------------------------------------------
def run_fused_model(proto: Any, feeds: dict[str, np.ndarray]) -> tuple[list[np.ndarray], Executable]:
    model = prepare(load(proto))
    fuse(model)
    executable = Executable(model, host_target(), 2)
    return executable.run(feeds), executable


def scale(*shape: int) -> np.ndarray:
    return np.asarray(RNG.uniform(0.01, 0.03, shape).astype(np.float32))


def point(value: int, dtype: type = np.uint8) -> np.ndarray:
    return np.asarray(dtype(value))


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_qlinear_conv_gives_the_codes_of_onnx_runtime(group: int, per_channel: bool, dtype: type) -> None:
    x, w = codes(2, 4, 9, 8), codes(8 if group < 4 else 4, 4 // group, 3, 3, dtype=dtype)
    outs = w.shape[0]
    w_point = point(0, dtype) if dtype is np.int8 else point(131)
    w_scale = scale(outs) if per_channel else scale()
    if per_channel:
        w_point = np.full(outs, w_point)
    bias = RNG.integers(-3000, 3000, outs).astype(np.int32)
    y_scale = np.asarray(np.float32(0.2))
    inputs: list[np.ndarray | None] = [x, scale(), point(120), w, w_scale, w_point, y_scale, point(100), bias]
    model, feeds = one_node("QLinearConv", inputs, tuple(range(1, 9)), group=group, pads=[1, 1, 1, 1])
    (found,), executable = run_fused_model(model, feeds)
    assert not executable.why
    assert any(node.op_type == "QConv" for node in executable.model.graph)
    np.testing.assert_array_equal(found, ort_session(model.SerializeToString()).run(None, feeds)[0])
    assert len(np.unique(found)) > 50


@pytest.mark.parametrize("computed", [False, True])
def test_qlinear_matmul_gives_the_codes_of_onnx_runtime(computed: bool) -> None:
    a, b = codes(3, 7, 20), codes(3, 20, 9) if computed else codes(20, 9)
    inputs: list[np.ndarray | None] = [a, scale(), point(120), b, scale(), point(128), np.asarray(np.float32(0.2)), point(100)]
    constants = (1, 2, 4, 5, 6, 7) if computed else (1, 2, 3, 4, 5, 6, 7)
    model, feeds = one_node("QLinearMatMul", inputs, constants)
    (found,), executable = run_fused_model(model, feeds)
    assert not executable.why
    np.testing.assert_array_equal(found, ort_session(model.SerializeToString()).run(None, feeds)[0])
    assert len(np.unique(found)) > 50


def check_fused(
    op_type: str, inputs: list[np.ndarray | None], fed: tuple[int, ...], rank: int, dtype: type, exact: bool = True, **attributes: Any
) -> None:
    """The node of the fused form equals its definition."""
    params = attributes.pop("activation_params", None)
    constants = tuple(k for k in range(len(inputs)) if k not in fed)
    model, feeds = one_node(op_type, inputs, constants, domain=QRT, result=(dtype, rank), **attributes)
    if params is not None:  # maybe empty, which one_node cannot tell the type of
        model.graph.node[0].attribute.append(helper.make_attribute("activation_params", params, attr_type=AttributeProto.FLOATS))
    (found,), why = run_model(model, feeds, 2)
    assert not why
    (wanted,) = run_fused(as_model(model), feeds)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    if exact:
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, **NEAR)


def conv_inputs(transposed: bool = False, group: int = 1) -> list[np.ndarray | None]:
    """x, w and y with their qparams, and a bias, of a QConv from 4 to 6 channels (4 to 4 in 4 groups)."""
    outs = 4 if group == 4 else 6
    shape = (4, outs // group, 3, 3) if transposed else (outs, 4 // group, 3, 3)
    w = codes(*shape, dtype=np.int8)
    bias = RNG.integers(-3000, 3000, outs).astype(np.int32)
    return [codes(2, 4, 7, 8), scale(), point(120), w, scale(outs), np.zeros(outs, np.int8), np.asarray(np.float32(0.9)), point(100), bias]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_qconv_with_bounds_and_without_a_bias(group: int) -> None:
    inputs = conv_inputs(group=group)
    check_fused("QConv", inputs, (0,), 4, np.uint8, group=group, pads=[1, 1, 1, 1], qmin=100, qmax=180)
    check_fused("QConv", inputs[:8], (0,), 4, np.uint8, group=group, strides=[2, 2])


def test_qconv_transpose() -> None:
    inputs = conv_inputs(transposed=True)
    check_fused("QConvTranspose", inputs, (0,), 4, np.uint8, strides=[2, 2], qmin=90)
    check_fused("QConvTranspose", inputs[:8], (0,), 4, np.uint8, pads=[1, 0, 0, 1])


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 0.7371])
def test_qconv_add_rounds_as_the_fused_form_says(group: int, signed: int, ratio: float) -> None:
    inputs = conv_inputs(group=group)
    channels = 4 if group == 4 else 6
    inputs[6] = np.asarray(np.float32(1.0))
    c_scale, r_scale = np.asarray(np.float32(ratio)), np.asarray(np.float32(ratio / 2))
    inputs += [c_scale, point(90), codes(2, channels, 7, 8), r_scale, point(77)]
    for bounds in ({}, {"qmin": 100, "qmax": 200}):
        check_fused("QConvAdd", inputs, (0, 11), 4, np.uint8, group=group, pads=[1, 1, 1, 1], signed=signed, **bounds)
    inputs[8] = None
    check_fused("QConvAdd", inputs, (0, 11), 4, np.uint8, group=group, pads=[1, 1, 1, 1], signed=signed)


@pytest.mark.parametrize("times", [2, 3, 4, 5])
@pytest.mark.parametrize("size", [1, 3])
def test_several_channels_out_of_each(times: int, size: int) -> None:
    """Depthwise with a multiplier, as every node that convolves has it."""
    shape, outs = (4 * times, 1, size, size), 4 * times
    more: dict[str, Any] = {"group": 4, "strides": [1, 2], "pads": [size // 2] * 4}
    check_against_onnx_runtime("Conv", [real(2, 4, 7, 8), real(*shape), real(outs)], (1, 2), **more)
    check_against_onnx_runtime("ConvTranspose", [real(2, 4, 7, 8), real(4, times, size, size), real(outs)], (1, 2), **more)
    w = codes(*shape, dtype=np.int8)
    check_against_onnx_runtime("ConvInteger", [codes(2, 4, 7, 8), w, point(7), point(-3, np.int8)], (1, 2, 3), exact=True, **more)
    bias = RNG.integers(-3000, 3000, outs).astype(np.int32)
    inputs = [codes(2, 4, 7, 8), scale(), point(120), w, scale(outs), np.arange(outs).astype(np.int8), scale() * 9, point(100), bias]
    check_fused("QConv", inputs, (0,), 4, np.uint8, **more)
    check_fused("QConvFloat", [*inputs[:6], real(outs)], (0, 1, 2), 4, np.float32, exact=False, **more)
    inputs += [scale(), point(90), codes(2, outs, 7, 4), scale(), point(77)]
    check_fused("QConvAdd", inputs, (0, 11), 4, np.uint8, signed=1, **more)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_qconv_float_with_qparams_of_the_run(group: int) -> None:
    inputs = [*conv_inputs(group=group)[:6], real(4 if group == 4 else 6)]
    for some in (inputs, inputs[:6]):
        check_fused("QConvFloat", some, (0, 1, 2), 4, np.float32, exact=False, group=group, pads=[1, 1, 1, 1])


@pytest.mark.parametrize("trans_b", [0, 1])
def test_qmatmul_float_with_qparams_of_the_run(trans_b: int) -> None:
    w = codes(5, 12, dtype=np.int8) if trans_b else codes(12, 5, dtype=np.int8)
    inputs: list[np.ndarray | None] = [codes(3, 4, 12), scale(), point(99), w, scale(5), np.zeros(5, np.int8), real(5)]
    check_fused("QMatMulFloat", inputs, (0, 1, 2), 3, np.float32, exact=False, transB=trans_b)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("computed", [False, True])
def test_qmatmul(trans_b: int, computed: bool) -> None:
    b = (codes(2, 5, 12) if trans_b else codes(2, 12, 5)) if computed else (codes(5, 12) if trans_b else codes(12, 5))
    bias = RNG.integers(-3000, 3000, 5).astype(np.int32)
    inputs: list[np.ndarray | None] = [
        codes(2, 4, 12),
        scale(),
        point(99),
        b,
        scale(),
        point(130),
        np.asarray(np.float32(0.1)),
        point(60),
        bias,
    ]
    fed = (0, 3) if computed else (0,)
    check_fused("QMatMul", inputs, fed, 3, np.uint8, transB=trans_b, qmin=5, qmax=240)


ACTIVATIONS: list[tuple[str, list[float]]] = [
    ("", []),
    ("Relu", []),
    ("Clip", [-0.5, 1.5]),
    ("LeakyRelu", [0.1]),
    ("HardSwish", []),
    ("Sigmoid", []),
    ("SiLU", []),
]


@pytest.mark.parametrize(("activation", "params"), ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_float_products_with_activations(activation: str, params: list[float], residual: bool) -> None:
    more: dict[str, Any] = {"activation": activation, "activation_params": params}
    added = [real(2, 6, 5, 6)] if residual else []
    inputs: list[np.ndarray | None] = [real(2, 4, 7, 8), real(6, 4, 3, 3), real(6), *added]
    check_fused("FusedConv", inputs, (0, 3) if residual else (0,), 4, np.float32, exact=False, **more)
    added = [real(5, 3)] if residual else []
    check_fused("FusedGemm", [real(5, 8), real(8, 3), real(3), *added], (0, 3) if residual else (0,), 2, np.float32, exact=False, **more)
    if not residual:
        check_fused("FusedConvTranspose", [real(2, 4, 7, 8), real(4, 6, 3, 3), real(6)], (0,), 4, np.float32, exact=False, **more)
        check_fused("FusedMatMul", [real(2, 5, 8), real(8, 3), real(3)], (0,), 3, np.float32, exact=False, **more)
        check_fused("FusedMatMul", [real(2, 5, 8), real(2, 8, 3), real(3)], (0, 1), 3, np.float32, exact=False, **more)


# -- hostile --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Conv", [real(1, 3, 4, 4), real(4, 2, 3, 3)], {}),  # channels
        ("Conv", [real(1, 3, 2, 2), real(4, 3, 3, 3)], {}),  # a window larger than the image
        ("Conv", [real(1, 3, 4, 4), real(4, 3, 3, 3)], {"strides": [0, 1]}),
        ("Conv", [real(1, 3, 4, 4), real(4, 3, 3, 3)], {"strides": [1]}),
        ("Conv", [real(1, 3, 4, 4), real(4, 3, 3, 3)], {"pads": [1, 1]}),
        ("Conv", [real(1, 3, 4, 4), real(4, 3, 3, 3)], {"group": 3}),
        ("MatMul", [real(2, 3), real(4, 5)], {}),
        ("MatMul", [real(2, 3, 4), real(3, 4, 5)], {}),
        ("Gemm", [real(2, 3), real(4, 5)], {}),
    ],
)
def test_shapes_that_do_not_fit_are_model_errors(op_type: str, inputs: list[np.ndarray | None], attributes: dict[str, Any]) -> None:
    node = helper.make_node(op_type, ["x", "w"], ["y"], **attributes)
    x, w = inputs
    assert x is not None
    assert w is not None
    graph = helper.make_graph(
        [node],
        "hostile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * x.ndim)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * x.ndim)],
        [numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(ModelError):
        run_model(proto, {"x": x})
