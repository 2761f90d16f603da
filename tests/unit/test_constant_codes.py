"""Weights of few bits, weights behind nodes that run in Python, statistics that were quantized: constants, none of them slow."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import qrt
from qrt.api import fuse_model
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower.executable import Executable

RNG = np.random.default_rng(0)
CODES = {
    np.dtype(ml_dtypes.int4): (-8, 8),
    np.dtype(ml_dtypes.uint4): (0, 16),
    np.dtype(np.int8): (-128, 128),
    np.dtype(np.uint8): (0, 256),
}


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], rank: int = 2) -> onnx.ModelProto:
    """From x to y, both float and of the given rank."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in "xy")
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], held), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def ran(model: onnx.ModelProto, x: np.ndarray, atol: float = 1e-4) -> Executable:
    """What ran `model`, to the result of onnx's reference."""
    executable = Executable(fuse_model(load(model))[0], host_target(), 1)
    for _ in range(2):
        found = executable.run({"x": x})
        for got, wanted in zip(found, ReferenceEvaluator(model).run(None, {"x": x}), strict=True):
            assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=atol)
    return executable


@pytest.mark.parametrize("zero", [True, False], ids=["zero points", "none"])
@pytest.mark.parametrize("scales", ["one", "channels", "blocks"])
@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_weights_of_any_bits_and_scales_cost_no_run_anything(dtype: np.dtype, scales: str, zero: bool, tmp_path: Path) -> None:
    shape, attributes = {"one": ((), {}), "channels": ((16,), {"axis": 1}), "blocks": ((2, 16), {"axis": 0, "block_size": 32})}[scales]
    constants = {"w": RNG.integers(*CODES[dtype], (64, 16)).astype(dtype), "s": np.abs(np.asarray(real(*shape), np.float32)) / 100}
    if zero:
        constants["z"] = RNG.integers(0, 4, shape).astype(dtype)
    nodes = [
        helper.make_node("DequantizeLinear", list(constants), ["real"], **attributes),
        helper.make_node("MatMul", ["x", "real"], ["y"]),
    ]
    model = model_of(nodes, constants)
    assert not ran(model, real(3, 64)).why
    qrt.compile(model, tmp_path / "m.qrt", {"x": (3, 64)})  # which takes no node that runs in Python


def test_products_of_codes_take_weights_of_four_bits() -> None:
    constants = {
        "w": RNG.integers(-8, 8, (4, 3, 3, 3)).astype(ml_dtypes.int4),
        "ws": np.abs(real(4)) / 10,
        "s": np.float32(0.05),
        "z": np.uint8(120),
        "t": np.float32(0.1),
    }
    constants = {name: np.asarray(array) for name, array in constants.items()}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["b"], axis=0),
        helper.make_node("Conv", ["a", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "t", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["d", "t", "z"], ["y"]),
    ]
    model = model_of(nodes, constants, 4)
    fused, _ = fuse_model(load(model))
    assert "QConv" in [node.op_type for node in fused.graph]
    assert not ran(model, real(2, 3, 8, 8), atol=0.101).why  # a tie may fall to either side


def test_a_weight_stays_a_constant_behind_a_node_that_runs_in_python() -> None:
    constants = {"w": RNG.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8), "s": np.abs(real(4)) / 100}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["b"], axis=0),
        helper.make_node("Conv", ["x", "b"], ["c"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Sigmoid", ["c"], ["p"]),
        helper.make_node("Bernoulli", ["p"], ["noise"], name="random"),
        helper.make_node("Mul", ["noise", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "one"], ["sum"]),
        helper.make_node("Conv", ["sum", "b"], ["d"], pads=[1, 1, 1, 1], name="second"),
        helper.make_node("Add", ["nothing", "d"], ["y"]),
    ]
    constants |= {"zero": np.zeros((), np.float32), "one": np.ones((), np.float32)}
    assert list(ran(model_of(nodes, constants, 4), real(2, 3, 8, 8)).why) == ["random"]


def test_statistics_that_were_quantized_are_statistics() -> None:
    constants = {"mean": real(4), "var": np.abs(real(4)) + 1}
    nodes = []
    for name in ("gamma", "beta"):
        constants |= {name: RNG.integers(1, 100, 4).astype(np.uint8), f"{name}_s": np.float32(0.02), f"{name}_z": np.uint8(7)}
        nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"real_{name}"]))
    nodes += [
        helper.make_node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2]),
        helper.make_node("BatchNormalization", ["a", "real_gamma", "real_beta", "mean", "var"], ["y"]),
    ]
    model = model_of(nodes, {name: np.asarray(array) for name, array in constants.items()}, 4)
    assert not ran(model, real(2, 4, 8, 8)).why
