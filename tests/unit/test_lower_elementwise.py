"""Element-wise nodes through the lowering, beside onnx.reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from lowered import check_node, one_node, run_model
from onnx import TensorProto, helper, numpy_helper

from qrt.core.errors import ModelError

RNG = np.random.default_rng(0)


def real(*shape: int, low: float = -4, high: float = 4) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


def flags(*shape: int) -> np.ndarray:
    return RNG.integers(0, 2, shape).astype(np.bool_)


UNARY = "Abs Atan Ceil Cos Cosh Elu Erf Exp Floor HardSwish Identity IsInf IsNaN Mish Neg Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh "
UNARY += "Softplus Softsign Tanh Celu LeakyRelu HardSigmoid ThresholdedRelu Gelu Asinh"


@pytest.mark.parametrize("op_type", UNARY.split())
def test_unary(op_type: str) -> None:
    check_node(op_type, [real(3, 37)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op_type", "low", "high"), [("Log", 0.1, 9), ("Sqrt", 0, 9), ("Acosh", 1, 9), ("Acos", -1, 1), ("Atanh", -0.9, 0.9)]
)
def test_unary_with_a_domain(op_type: str, low: float, high: float) -> None:
    check_node(op_type, [real(3, 37, low=low, high=high)], rtol=1e-5, atol=1e-6)


ATTRIBUTES: list[tuple[str, dict[str, Any]]] = [
    ("LeakyRelu", {"alpha": 0.3}),
    ("Elu", {"alpha": 2.0}),
    ("Celu", {"alpha": 2.0}),
    ("Selu", {"alpha": 2.0, "gamma": 3.0}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    ("ThresholdedRelu", {"alpha": 0.5}),
    ("Gelu", {"approximate": "tanh"}),
    ("IsInf", {"detect_negative": 0}),
]


@pytest.mark.parametrize(("op_type", "attributes"), ATTRIBUTES)
def test_attributes(op_type: str, attributes: dict[str, Any]) -> None:
    x = real(2, 33)
    if op_type == "IsInf":
        x[0, :3] = [np.inf, -np.inf, 0]
    check_node(op_type, [x], rtol=1e-5, atol=1e-6, **attributes)


SHAPES = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (4,)), ((3, 1), (2, 1, 5)), ((), (2, 3)), ((1,), (1, 1)), ((2, 1, 3, 1), (5, 1, 7))]


COMPARISONS = ["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"]


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", *COMPARISONS])
@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_binary(op_type: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = real(*a, low=0.5), real(*b, low=0.5)
    check_node(op_type, [x, y], rtol=1e-5)
    check_node(op_type, [x, y], (1,), rtol=1e-5)


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logic(op_type: str) -> None:
    check_node(op_type, [flags(3, 5), flags(5)])
    check_node("Not", [flags(3, 5)])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_integers(dtype: type) -> None:
    x, y = (RNG.integers(1, 100, (3, 35)).astype(dtype) for _ in range(2))
    for op_type in ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Less"):
        check_node(op_type, [x, y])
    check_node("Mod", [x, y], fmod=1)


def test_mod_takes_the_sign_of_the_divisor_and_fmod_that_of_the_dividend() -> None:
    x, y = np.array([-7, 7, -7, 7], np.int64), np.array([3, -3, -3, 3], np.int64)
    np.testing.assert_array_equal(check_node("Mod", [x, y])[0], [2, -2, -1, 1])
    np.testing.assert_array_equal(check_node("Mod", [x, y], fmod=1)[0], [-1, 1, -1, 1])
    check_node("Mod", [real(5), real(5, low=1)], fmod=1, rtol=1e-6)


def test_integer_division_by_zero_is_survived() -> None:
    x, by = np.arange(40, dtype=np.int32), np.arange(40, dtype=np.int32) % 5
    sound = by != 0
    for op_type, wanted in (("Div", x[sound] // by[sound]), ("Mod", x[sound] % by[sound])):
        model, feeds = one_node(op_type, [x, by])
        (found,), _ = run_model(model, feeds)
        np.testing.assert_array_equal(found[sound], wanted)  # the others are nobody's to say


@pytest.mark.parametrize("op_type", ["Sum", "Max", "Min", "Mean"])
def test_many_operands(op_type: str) -> None:
    check_node(op_type, [real(3, 4)])
    check_node(op_type, [real(3, 4), real(4), real(1, 1)], rtol=1e-6, atol=1e-6)


def test_clip() -> None:
    x, low, high = real(5, 9), np.float32(-1), np.float32(2)
    for bounds in ([low, high], [None, high], [low], []):
        for constants in ((), (1, 2)):
            check_node("Clip", [x, *bounds], constants)
    check_node("Clip", [RNG.integers(-9, 9, 40), np.int64(-3), np.int64(3)], (1, 2))
    check_node("Clip", [RNG.integers(-9, 9, 40).astype(np.int8), np.int8(-3)], (1,))


def test_pow() -> None:
    x = real(3, 20)
    for exponent in (np.float32(2), np.float32(3), np.int64(2)):
        check_node("Pow", [x, exponent], (1,), rtol=1e-5)
    check_node("Pow", [np.abs(x), np.float32(0.5)], (1,), rtol=1e-5)
    check_node("Pow", [x, np.array([2], np.int64)], rtol=1e-5)


def test_where() -> None:
    check_node("Where", [flags(3, 1), real(3, 4), real(4)])
    check_node("Where", [flags(4), np.arange(12).reshape(3, 4), np.zeros((), np.int64)], (2,))


def test_prelu() -> None:
    check_node("PRelu", [real(2, 3, 4, 5), real(3, 1, 1)], (1,))


@pytest.mark.parametrize("to", ["FLOAT", "DOUBLE", "INT8", "UINT8", "INT32", "INT64", "BOOL"])
def test_cast(to: str) -> None:
    check_node("Cast", [real(3, 40, low=0, high=99)], to=getattr(TensorProto, to))
    check_node("Cast", [np.arange(-50, 50)], to=getattr(TensorProto, to))


def test_cast_of_float64_to_half_runs_in_python() -> None:
    model, feeds = one_node("Cast", [np.arange(3.0)], to=TensorProto.FLOAT16)
    found, why = run_model(model, feeds)
    assert "no kernel casts float64 to float16" in why.values()
    np.testing.assert_array_equal(found[0], np.arange(3, dtype=np.float16))


def test_dropout_does_nothing() -> None:
    x = real(3, 4)
    check_node("Dropout", [x, np.float32(0.5)], (1,))
    model, feeds = one_node("Dropout", [x], outputs=2)
    (y, mask), why = run_model(model, feeds)
    assert not why
    np.testing.assert_array_equal(y, x)
    assert mask.dtype == np.bool_
    assert mask.all()


def test_dtypes_without_a_kernel_run_in_python() -> None:
    model, feeds = one_node("Add", [np.ones(3, np.uint16), np.ones(3, np.uint16)])
    found, why = run_model(model, feeds)
    assert "no kernel for uint16" in next(iter(why.values()))
    np.testing.assert_array_equal(found[0], np.full(3, 2, np.uint16))


def test_shapes_that_do_not_broadcast_name_the_node() -> None:
    model, feeds = one_node("Add", [real(3, 4), real(3, 4)])
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "n"
    del model.graph.value_info[:]
    with pytest.raises(ModelError, match="do not broadcast"):
        run_model(model, {**feeds, "i1": real(3, 5)})


def test_a_bias_of_an_image_moves_no_image() -> None:
    """Conv → Add of (C, 1, 1) → PRelu: the image stays channels-last throughout."""
    w, bias, slope = real(8, 3, 3, 3), real(8, 1, 1), real(8, 1, 1)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[3, 3]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("PRelu", ["c", "s"], ["d"]),
        helper.make_node("Conv", ["d", "v"], ["y"], kernel_shape=[1, 1]),
    ]
    weights = {"w": w, "b": bias, "s": slope, "v": real(4, 8, 1, 1)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 7, 7])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = real(1, 3, 9, 9)
    found, why = run_model(model, {"x": x})
    assert not why
    np.testing.assert_allclose(found[0], onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0], 1e-4, 1e-4)
