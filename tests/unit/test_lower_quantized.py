"""Quantizing, dequantizing and element-wise nodes on codes through the lowering."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data import ort_session
from fused import run as run_fused
from lowered import as_model, check_node, one_node, run_model
from onnx import TensorProto

RNG = np.random.default_rng(0)
QRT = "ai.qrt"


def real(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) * 3).astype(np.float32)


def codes(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def f32(number: float) -> np.ndarray:
    return np.asarray(number, np.float32)


def check_fused(op_type: str, inputs: list[np.ndarray | None], fed: int, dtype: type = np.uint8, **attributes: Any) -> None:
    """The node, whose first input and input `fed` are fed, equals its definition."""
    constants = tuple(k for k in range(len(inputs)) if k not in (0, fed))
    assert inputs[0] is not None
    model, feeds = one_node(op_type, inputs, constants, domain=QRT, result=(dtype, inputs[0].ndim), **attributes)
    found, why = run_model(model, feeds)
    assert not why
    np.testing.assert_array_equal(found[0], run_fused(as_model(model), feeds)[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_quantize_and_dequantize(dtype: type, axis: int | None) -> None:
    x, shape = real(3, 5, 7), () if axis is None else ((3, 5, 7)[axis],)
    scale = RNG.uniform(0.01, 0.1, shape).astype(np.float32)
    zero = RNG.integers(10, 100, shape).astype(dtype)
    attributes = {} if axis is None else {"axis": axis}
    y = check_node("QuantizeLinear", [x, scale, zero], (1, 2), **attributes)[0]
    check_node("DequantizeLinear", [y, scale, zero], (1, 2), **attributes)


def test_quantize_without_a_zero_point() -> None:
    check_node("QuantizeLinear", [real(4, 5), f32(0.05)], (1,))
    check_node("QuantizeLinear", [real(4, 5), f32(0.05)], (1,), output_dtype=TensorProto.INT8)
    check_node("DequantizeLinear", [RNG.integers(-999, 999, (4, 5)).astype(np.int32), f32(0.05)], (1,))


def test_blocks_and_four_bits_run_in_python() -> None:
    x, scale = real(4, 6), np.full((4, 3), 0.1, np.float32)
    model, feeds = one_node("QuantizeLinear", [x, scale, np.zeros((4, 3), np.uint8)], (1, 2), axis=1, block_size=2)
    found, why = run_model(model, feeds)
    assert list(why.values()) == ["scales of blocks"]
    np.testing.assert_array_equal(found[0], np.clip(np.rint(x / np.repeat(scale, 2, 1)), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("shape", [(), (1,), (3, 700), (2, 3, 50, 60)])
def test_dynamic_quantize_equals_onnx_runtime(shape: tuple[int, ...]) -> None:
    x = real(*shape) + np.float32(0.5)
    model, feeds = one_node("DynamicQuantizeLinear", [x], outputs=3)
    wanted = ort_session(model.SerializeToString()).run(None, feeds)
    for threads in (1, 2):
        found, why = run_model(model, feeds, threads)
        assert not why
        for mine, theirs in zip(found, wanted, strict=True):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("op_type", ["QAdd", "QMul"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (3, 1, 1), (1,), ()])
def test_sums_and_products_of_codes(op_type: str, shape: tuple[int, ...]) -> None:
    qparams = [(f32(0.02), np.uint8(3)), (f32(0.05), np.uint8(128)), (f32(0.06), np.uint8(120))]
    (sa, za), (sb, zb), (sy, zy) = [(s, np.asarray(z)) for s, z in qparams]
    check_fused(op_type, [codes(2, 3, 5, 6), sa, za, codes(*shape), sb, zb, sy, zy], 3, qmin=20, qmax=240)


def test_tables() -> None:
    check_fused("QLut", [codes(3, 90), RNG.permutation(256).astype(np.uint8)], 0)
    check_fused("FlipSign", [codes(3, 90)], 0, np.int8)
    check_fused("FlipSign", [codes(3, 90).view(np.int8)], 0)
