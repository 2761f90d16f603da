"""qrt.core.numerics against onnx.reference, exact rational arithmetic, and at the edges of float32."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qrt.core.dtypes import QDType, qint8, qint16, qint32, quint4x2, quint8, quint16
from qrt.core.errors import QuantizationError
from qrt.core.numerics import dequantize, fake_quantize, quantize, requantize, round_clamp
from qrt.core.qparams import QParams

F32 = np.float32
NARROW = [quint8, qint8, quint16, qint16]
ELEMENT = {"quint8": TensorProto.UINT8, "qint8": TensorProto.INT8, "quint16": TensorProto.UINT16, "qint16": TensorProto.INT16}
floats = st.floats(-(2.0**30), 2.0**30, width=32)
scales = st.floats(2.0**-20, 2.0**20, width=32)


def onnx_op(op: str, dtype: QDType, axis: int | None, x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    codes, real = ELEMENT[dtype.name], TensorProto.FLOAT
    source, target = (real, codes) if op == "QuantizeLinear" else (codes, real)
    node = helper.make_node(op, ["x", "s", "z"], ["y"], **({} if axis is None else {"axis": axis}))
    inputs = [helper.make_tensor_value_info(n, t, None) for n, t in (("x", source), ("s", real), ("z", codes))]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", target, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return ReferenceEvaluator(model).run(None, {"x": x, "s": scale, "z": zero_point.astype(dtype.storage)})[0]


def exact_code(x: float, scale: float, zero_point: int, dtype: QDType) -> int:
    """The definition with one rounding to float32 for the quotient and exact arithmetic elsewhere."""
    quotient = Fraction(float(F32(x) / F32(scale)))
    return min(max(round(quotient) + zero_point, dtype.qmin), dtype.qmax)  # round() of a Fraction: half to even


@pytest.mark.parametrize("dtype", NARROW, ids=repr)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_quantize_and_dequantize_equal_onnx(dtype: QDType, axis: int | None) -> None:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(3, 4, 5)) * 300).astype(F32)
    x[0] = np.arange(20).reshape(4, 5) / 2  # ties for a scale of 1
    n = () if axis is None else x.shape[axis]
    scale = np.where(rng.random(n) < 0.5, 1, rng.uniform(0.01, 3, n)).astype(F32)
    zero_point = rng.integers(dtype.qmin, dtype.qmax, n, endpoint=True).astype(np.int32)
    qparams = QParams(scale, zero_point, dtype, axis)
    codes = quantize(x, qparams)
    assert codes.dtype == dtype.storage
    np.testing.assert_array_equal(codes, onnx_op("QuantizeLinear", dtype, axis, x, scale, zero_point))
    real = dequantize(codes, qparams)
    assert real.dtype == F32
    np.testing.assert_array_equal(real, onnx_op("DequantizeLinear", dtype, axis, codes, scale, zero_point))
    np.testing.assert_array_equal(fake_quantize(x, qparams), real)


@given(x=hnp.arrays(F32, st.integers(0, 8), elements=floats), scale=scales, data=st.data())
def test_quantize_is_the_definition(x: np.ndarray, scale: float, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([*NARROW, qint32, quint4x2]))
    zero_point = data.draw(st.integers(dtype.qmin, dtype.qmax))
    codes = quantize(x, QParams(F32(scale), np.int32(zero_point), dtype))
    assert codes.tolist() == [exact_code(v, scale, zero_point, dtype) for v in x]


@given(x=hnp.arrays(F32, 5, elements=floats), scale=scales, data=st.data())
def test_quantization_is_monotone_idempotent_and_close(x: np.ndarray, scale: float, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(NARROW))
    qparams = QParams(F32(scale), np.int32(data.draw(st.integers(dtype.qmin, dtype.qmax))), dtype)
    x = np.sort(x)
    once = fake_quantize(x, qparams)
    assert (np.diff(once) >= 0).all()
    np.testing.assert_array_equal(fake_quantize(once, qparams), once)
    codes = quantize(x, qparams)
    inside = (codes > dtype.qmin) & (codes < dtype.qmax)
    assert (np.abs(once - x)[inside] <= scale * 0.5 * (1 + 1e-2)).all()


@pytest.mark.parametrize("dtype", [*NARROW, qint32, quint4x2], ids=repr)
@pytest.mark.parametrize("zero_point", [0, 1, 7])
def test_special_values(dtype: QDType, zero_point: int) -> None:
    qparams = QParams(F32(0.5), np.int32(zero_point), dtype)
    x = np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 0.0, -0.0, 1e-45, -1e-45], F32)
    lo, hi = dtype.qmin, dtype.qmax
    assert quantize(x, qparams).tolist() == [lo, hi, lo, hi, lo, *[zero_point] * 4]


def test_zero_is_exact() -> None:
    for zero_point in range(256):
        assert fake_quantize(np.zeros(1, F32), QParams(F32(0.1), np.int32(zero_point), quint8)) == 0


def test_ties_go_to_even_before_the_zero_point() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], F32)
    assert quantize(x, QParams(F32(1), np.int32(1), qint8)).tolist() == [-1, -1, 1, 1, 3, 3]


@given(acc=hnp.arrays(np.int32, 6), multiplier=st.floats(2.0**-30, 2.0, width=32), zero_point=st.integers(0, 255))
def test_requantize_is_the_definition(acc: np.ndarray, multiplier: float, zero_point: int) -> None:
    codes = requantize(acc, F32(multiplier), np.int32(zero_point), quint8)
    assert codes.dtype == np.uint8
    products = [Fraction(float(F32(a) * F32(multiplier))) for a in acc]
    assert codes.tolist() == [min(max(round(p) + zero_point, 0), 255) for p in products]


def test_requantize_per_channel() -> None:
    acc = np.array([[100, 101], [-100, 2**31 - 1]], np.int32)
    codes = requantize(acc, np.array([0.5, 0.25], F32), np.array([3, 4]), qint8)
    np.testing.assert_array_equal(codes, np.array([[53, 29], [-47, 127]], np.int8))


def test_huge_multiplier_saturates_without_a_warning() -> None:
    assert requantize(np.array([2**31 - 1, -(2**31), 0], np.int32), F32(3e38), np.int32(5), quint8).tolist() == [255, 0, 5]


@given(x=st.floats(width=32), zero_point=st.integers(-(2**31), 2**31 - 1))
def test_round_clamp_never_leaves_its_bounds(x: float, zero_point: int) -> None:
    codes = round_clamp(np.array([x], F32), np.int32(zero_point), -128, 127)
    assert codes.dtype == np.int32
    assert -128 <= codes[0] <= 127


def test_dequantize_of_wide_codes_wraps_as_kernels_do() -> None:
    qparams = QParams(F32(1), np.int32(1), qint32)
    assert dequantize(np.array([-(2**31)], np.int32), qparams)[0] == F32(2**31 - 1)


def test_inputs_are_not_written_to() -> None:
    x = np.linspace(-3, 3, 7, dtype=F32)
    x.flags.writeable = False
    codes = quantize(x, QParams(F32(0.1), np.int32(3), quint8))
    codes.flags.writeable = False
    assert dequantize(codes, QParams(F32(0.1), np.int32(3), quint8)).shape == x.shape


@pytest.mark.parametrize(("shape", "axis"), [((3, 4), 0), ((1,), 0), ((), 0), ((3, 5), 2), ((5, 3), -3)])
def test_channels_must_fit(shape: tuple[int, ...], axis: int) -> None:
    qparams = QParams(np.ones(5, F32), np.zeros(5, np.int32), quint8, axis)
    with pytest.raises(QuantizationError, match="do not fit"):
        quantize(np.zeros(shape, F32), qparams)
    with pytest.raises(QuantizationError, match="do not fit"):
        dequantize(np.zeros(shape, np.uint8), qparams)
