"""Sums that rules take into a product although dimensions that nobody knows may differ, and products whose weight is computed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import F32, I8, U8, codes, images, make
from passes import runtime

import qrt
from qrt.api import fuse_model
from qrt.loaders import load


def nameless(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with dimensions that have no name, so that none is known to be another."""
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.ClearField("dim_param")
    return model


def check_fused(model: onnx.ModelProto, fused: str, **feeds: np.ndarray) -> None:
    """One node `fused` is in the fused form, and results are ONNX Runtime's."""
    assert [node.op_type for node in fuse_model(load(model))[0].graph].count(fused) == 1
    found, expected = qrt.InferenceSession(model, num_threads=1).run(None, feeds)[0], runtime(model, feeds)[0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["Relu(p)", "LeakyRelu(p)", "Clip(p, low, high)"])
@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (1, 4, 1, 1), (2, 4, 1, 5)])
def test_residuals_of_convolutions(shape: tuple[int, ...], activation: str) -> None:
    bounds = {"low": 0.1, "high": 0.5} if "Clip" in activation else {}
    text = f"(float[B,3,H,W] a, float[C,4,D,E] r) => (float[K,L,M,O] y) {{ c = Conv(a, w) p = Add(c, r) y = {activation} }}"
    model = nameless(make(text, w=images(4, 3, 1, 1), **bounds))
    check_fused(model, "FusedConv", a=images(2, 3, 5, 5), r=images(*shape, seed=1))
    check_fused(model, "FusedConv", a=images(1, 3, 1, 1), r=images(*shape, seed=1))  # here the sum is the larger one


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("shape", [(2, 4), (1, 4), (5, 4)])
def test_residuals_of_gemms(shape: tuple[int, ...], bias: str) -> None:
    constants = {"b": images(4, seed=2)} if bias else {}
    text = f"(float[B,3] a, float[C,4] r) => (float[K,4] y) {{ c = Gemm(a, w{bias}) p = Add(c, r) y = Clip(p, low, high) }}"
    model = nameless(make(text, w=images(3, 4), low=0.1, high=0.5, **constants))
    check_fused(model, "FusedGemm", a=images(1 if shape[0] == 5 else 2, 3), r=images(*shape, seed=1))


@pytest.mark.parametrize("order", ["cd, rd", "rd, cd"])
@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (1, 4, 1, 1)])
@pytest.mark.parametrize("point", [U8(128), I8(5)])
def test_residuals_of_codes(point: np.generic, shape: tuple[int, ...], order: str) -> None:
    model = make(
        "(float[B,3,H,W] a, float[C,4,D,E] r) => (float[K,L,M,O] y) { aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)"
        " rq = QuantizeLinear(r, s, z) rd = DequantizeLinear(rq, s, z) wd = DequantizeLinear(w, s, wz) c = Conv(ad, wd)"
        f" cq = QuantizeLinear(c, t, z) cd = DequantizeLinear(cq, t, z) p = Add({order})"
        " yq = QuantizeLinear(p, t, z) y = DequantizeLinear(yq, t, z) }",
        w=codes(4, 3, 1, 1),
        s=0.02,
        t=0.05,
        z=point,
        wz=I8(0),
    )
    check_fused(nameless(model), "QConvAdd", a=images(2, 3, 5, 5), r=images(*shape, seed=1))


@pytest.mark.parametrize(
    ("node", "w", "y"),
    [
        ("Conv(a, w)", (4, 3, 3, 3), (1, 4, 3, 3)),
        ("ConvTranspose(a, w)", (3, 4, 3, 3), (1, 4, 7, 7)),
        ("Gemm(a, w, b)", (3, 4), (1, 4)),
    ],
)
def test_products_whose_weight_is_computed_stay_as_they_are(node: str, w: tuple[int, ...], y: tuple[int, ...]) -> None:
    a = images(1, 3, *(5,) * (len(w) - 2))
    dims = [",".join(map(str, shape)) for shape in (a.shape, w, y)]
    constants = {"b": images(4).astype(F32)} if ", b" in node else {}
    model = make(f"(float[{dims[0]}] a, float[{dims[1]}] w) => (float[{dims[2]}] y) {{ c = {node} y = Relu(c) }}", **constants)
    check_fused(model, "Relu", a=a, w=images(*w, seed=1))
