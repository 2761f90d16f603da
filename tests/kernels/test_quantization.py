"""Kernels between real numbers and codes against core.numerics, bit for bit."""

import numpy as np
import onnxruntime
import pytest
from kernels.check import check
from onnx import TensorProto, helper

from qrt.core.dtypes import QDType, qint8, qint16, qint32, quint8, quint16
from qrt.core.errors import QuantizationError, UnsupportedOp
from qrt.core.qparams import QParams
from qrt.ops.op import Spec
from qrt.ops.quantization import Dequantize, DynamicQuantize, Lut, QBinary, Quantize

RNG = np.random.default_rng(0)
SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38, -3e38, 0.5, 1.5, 2.5, -0.5], np.float32)
DTYPES = [quint8, qint8, quint16, qint16]


def qparams_of(dtype: QDType, channels: int | None, axis: int | None) -> QParams:
    shape = () if channels is None else (channels,)
    zero = RNG.integers(dtype.qmin, dtype.qmax, shape, endpoint=True)
    return QParams(RNG.uniform(0.01, 0.2, shape).astype(np.float32), np.asarray(zero, np.int32), dtype, axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=repr)
@pytest.mark.parametrize(("shape", "axis"), [((), None), ((3, 67), None), ((5, 7, 33), 2), ((2, 33, 35), 1), ((3, 5), 0), ((40, 1), -1)])
def test_quantize_and_back(dtype: QDType, shape: tuple[int, ...], axis: int | None) -> None:
    qparams = qparams_of(dtype, None if axis is None else shape[axis], axis)
    x = (RNG.normal(size=shape) * (qparams.scale.max() * (dtype.qmax - dtype.qmin))).astype(np.float32)
    codes = check(Quantize(qparams), [x])[0]
    check(Dequantize(qparams), [codes])


@pytest.mark.parametrize("dtype", DTYPES, ids=repr)
def test_quantize_special_numbers_and_ties(dtype: QDType) -> None:
    qparams = QParams(np.float32(0.5), np.int32(3), dtype)
    x = np.concatenate([SPECIAL, np.arange(-70, 70, 0.25, dtype=np.float32)])
    check(Quantize(qparams), [x])
    check(Quantize(qparams, 5, 90), [x])


@pytest.mark.parametrize("dtype", [quint8, qint16], ids=repr)
@pytest.mark.parametrize("scale", [0.1, 2 - 2.0**-23, 1 + 2.0**-23, 3e-5, 1e30, 7e-20, 1e-44, 1e37])
def test_codes_change_where_a_division_says(dtype: QDType, scale: float) -> None:
    """Numbers around the ties between codes, whose quotients are rounded to a tie or beside it."""
    ties = np.arange(-300, 300) + 0.5
    with np.errstate(over="ignore", invalid="ignore"):
        x = (ties * np.float32(scale)).astype(np.float32)
        up, down = np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))
    check(Quantize(QParams(np.float32(scale), np.int32(7), dtype)), [np.concatenate([x, up, down, SPECIAL])])


def test_dequantize_int32() -> None:
    codes = RNG.integers(-(2**31), 2**31 - 1, (4, 35), dtype=np.int32)
    check(Dequantize(QParams(np.float32(1e-4), np.int32(7), qint32)), [codes])
    check(Dequantize(QParams(RNG.uniform(1e-5, 1, 35).astype(np.float32), np.zeros(35, np.int32), qint32, 1)), [codes])


def test_large_tensors_are_shared_by_threads() -> None:
    x = RNG.normal(size=(3, 50, 61, 32)).astype(np.float32)
    for axis in (None, 3, 1):
        check(Quantize(qparams_of(quint8, None if axis is None else x.shape[axis], axis)), [x])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(QuantizationError, match="3 scales along axis 1"):
        Quantize(qparams_of(quint8, 3, 1)).infer([Spec((2, 4), np.dtype(np.float32))])
    with pytest.raises(UnsupportedOp, match="no kernel quantizes"):
        Quantize(qparams_of(qint32, None, None)).infer([Spec((2, 4), np.dtype(np.float32))])
    with pytest.raises(UnsupportedOp, match="no kernel dequantizes"):
        Dequantize(qparams_of(qint8, None, None)).infer([Spec((2, 4), np.dtype(np.uint8))])
    with pytest.raises(UnsupportedOp, match="no table"):
        Lut().infer([Spec((2, 4), np.dtype(np.uint8)), Spec((255,), np.dtype(np.uint8))])


@pytest.mark.parametrize("n", [1, 31, 64, 100, 256, 70001])
def test_lut(n: int) -> None:
    x = np.resize(RNG.permutation(256), n).astype(np.uint8)
    for table in (RNG.permutation(256).astype(np.uint8), RNG.integers(-128, 128, 256).astype(np.int8)):
        check(Lut(), [x, table], constants=(1,))
        check(Lut(), [x.view(np.int8), table])


@pytest.mark.parametrize("name", ["add", "mul"])
@pytest.mark.parametrize(("a", "b"), [((4, 67), (4, 67)), ((4, 67), (1, 67)), ((1, 1), (4, 67)), ((3, 50, 40, 24), (3, 1, 1, 24))])
def test_qbinary(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = (RNG.integers(0, 256, shape).astype(np.uint8) for shape in (a, b))
    check(QBinary(name, 0.021, 130, 0.033, 7, 0.05, 100), [x, y])
    check(QBinary(name, 0.021, 0, 0.033, 255, 0.0005, 0, 10, 200), [x, y])
    check(QBinary(name, 0.02, 200, 0.01, 3, 0.05, 77, 10, 200, signed=name == "add"), [x, y])


def test_qadd_rounds_ties_to_even() -> None:
    x = np.arange(256, dtype=np.uint8)
    y = check(QBinary("add", 0.5, 0, 0.5, 0, 1.0, 0), [x, np.zeros(256, np.uint8)])[0]
    np.testing.assert_array_equal(y, np.rint(x / 2).astype(np.uint8))


def ort_dynamic(x: np.ndarray) -> list[np.ndarray]:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    types = (("y", TensorProto.UINT8), ("s", TensorProto.FLOAT), ("z", TensorProto.UINT8))
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in types]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    model = helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    results: list[np.ndarray] = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    return results


@pytest.mark.parametrize("n", [0, 1, 5, 16, 100, 40000])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_dynamic_quantize_equals_onnx_runtime(n: int, shift: float) -> None:
    for scale in (1e-3, 1.0, 77.0):
        x = (RNG.normal(size=(n, 3)) * scale + shift).astype(np.float32)
        for mine, theirs in zip(check(DynamicQuantize(), [x]), ort_dynamic(x), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_dynamic_quantize_of_zeros_and_special_numbers() -> None:
    zeros = np.zeros(20, np.float32)
    for mine, theirs in zip(check(DynamicQuantize(), [zeros]), ort_dynamic(zeros), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for odd in (np.nan, np.inf, -np.inf, 1e-45, 3e38):
        x = np.ones(50, np.float32)
        x[33] = odd
        check(DynamicQuantize(), [x])
