"""Graphs that nearly are what a rule looks for, and mean something else: results stay those of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import F32, I8, U8, codes, images, make
from onnx.reference import ReferenceEvaluator
from passes import runtime

import qrt
from qrt.core.errors import UnsupportedOp

QDQ = {"s": 0.02, "t": 0.05, "z": U8(128)}
STEP = 0.05  # what one code of a result is worth
BEFORE = "aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z)"
AFTER = "yq = QuantizeLinear(p, t, z) y = DequantizeLinear(yq, t, z)"
DYNAMIC = "q, qs, qz = DynamicQuantizeLinear(a)"


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """All outputs by our kernels."""
    return qrt.InferenceSession(model, num_threads=1).run(None, feeds)


def check(model: onnx.ModelProto, atol: float = 1e-4, **feeds: np.ndarray) -> None:
    found, expected = run(model, **feeds), runtime(model, feeds)
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_scalar_added_to_columns_of_unknown_number(shape: tuple[int, ...]) -> None:
    model = make(
        f"(float[2,3,4] a, float[2,4,N] b) => (float[2,3,N] y) {{ {BEFORE} bq = QuantizeLinear(b, s, z) bd = DequantizeLinear(bq, s, z)"
        f" m = MatMul(ad, bd) p = Add(m, c) {AFTER} }}",
        **QDQ,
        c=np.full(shape, 0.5, F32),
    )
    check(model, STEP * 1.01, a=images(2, 3, 4), b=images(2, 4, 5, seed=1))


@pytest.mark.parametrize("end", [AFTER, "y = Identity(p)"])
@pytest.mark.parametrize("channels", [1, 5])
def test_a_batch_of_constant_matrices(channels: int, end: str) -> None:
    scale = np.linspace(0.01, 0.02, channels).astype(F32)
    axis = "" if channels == 1 else "<axis = 2>"
    model = make(
        f"(float[2,3,4] a) => (float[2,3,5] y) {{ {BEFORE} w = DequantizeLinear {axis} (wq, ws, wz) p = MatMul(ad, w) {end} }}",
        **QDQ,
        wq=codes(2, 4, 5),
        ws=scale.reshape(() if channels == 1 else -1),
        wz=np.zeros(() if channels == 1 else channels, I8),
    )
    check(model, STEP * 1.01, a=images(2, 3, 4))


def test_a_vector_added_to_a_matrix_times_a_vector() -> None:
    model = make("(float[2,3,4] a, float[4] v) => (float[2,3] y) { p = MatMul(a, v) y = Add(p, b) }", b=images(3))
    check(model, a=images(2, 3, 4), v=images(4, seed=1))


@pytest.mark.parametrize("shape", [(4, 1), (1, 1, 1), (1, 4)])
def test_scales_of_an_integer_product_along_another_axis(shape: tuple[int, ...]) -> None:
    rank = max(2, len(shape))
    text = f"(float[4,4] a) => (float[{','.join('4' if k >= rank - 2 else '1' for k in range(rank))}] y)"
    model = make(
        f"{text} {{ {DYNAMIC} i = MatMulInteger(q, w, qz, wz) c = Cast <to = 1> (i) y = Mul(c, f) }}",
        w=codes(4, 4),
        wz=I8(0),
        f=np.abs(images(*shape)),
    )
    check(model, a=images(4, 4))


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1), (1, 4, 1, 1)])
def test_scales_of_an_integer_convolution_along_another_axis(shape: tuple[int, ...]) -> None:
    model = make(
        f"(float[1,3,4,4] a) => (float[1,4,4,4] y) {{ {DYNAMIC} i = ConvInteger(q, w, qz, wz) c = Cast <to = 1> (i) y = Mul(c, f) }}",
        w=codes(4, 3, 1, 1),
        wz=I8(0),
        f=np.abs(images(*shape)),
    )
    check(model, a=images(1, 3, 4, 4))


def integer_product(*w: int, point: np.ndarray) -> onnx.ModelProto:
    text = f"(uint8[4,4] q) => (float[{','.join(map(str, w))}] y) {{ i = MatMulInteger(q, w, qz) c = Cast <to = 1> (i) y = Mul(c, f) }}"
    return make(text, w=codes(*w), qz=point, f=0.1)


def test_integer_products_of_a_batch_of_constant_matrices() -> None:
    q = codes(4, 4, dtype=U8, limit=255)
    expected = ((q.astype(np.int64) - 3) @ codes(2, 4, 4).astype(np.int64)).astype(F32) * F32(0.1)
    np.testing.assert_array_equal(run(integer_product(2, 4, 4, point=np.asarray(3, U8)), q=q)[0], expected)


def test_integer_products_of_rows_with_zero_points_of_their_own_are_refused() -> None:
    """onnx.reference would take them for those of columns."""
    with pytest.raises(UnsupportedOp, match="a zero point for each row"):
        run(integer_product(4, 4, point=np.array([1, 20, 3, 100], U8)), q=codes(4, 4, dtype=U8))


def test_rows_of_a_quantized_product_with_scales_of_their_own() -> None:
    """ONNX: a scale for each row of the first operand and of the result, and for each column of the second."""
    rows, columns = np.array([0.5, 1, 2, 0.25], F32), np.array([1, 0.5, 0.25, 2], F32)
    points = np.array([3, 100, 200, 50], U8)
    model = make(
        "(uint8[4,4] q) => (uint8[4,4] y) { y = QLinearMatMul(q, rows, points, w, columns, wz, ys, points) }",
        rows=rows,
        points=points,
        w=codes(4, 4, dtype=U8, limit=255),
        columns=columns,
        wz=np.array([120, 130, 140, 127], U8),
        ys=rows * F32(300),
    )
    q, w = codes(4, 4, dtype=U8, limit=255, seed=1), codes(4, 4, dtype=U8, limit=255)
    a = (q.astype(F32) - points.astype(F32)[:, None]) * rows[:, None]
    b = (w.astype(F32) - np.array([120, 130, 140, 127], F32)) * columns
    expected = np.clip(np.rint(a @ b / (rows * F32(300))[:, None]) + points[:, None].astype(F32), 0, 255)
    np.testing.assert_array_equal(run(model, q=q)[0], expected)


@pytest.mark.parametrize(
    "node",
    [
        'Resize <mode = "cubic"> (ad, , scales)',
        "ReduceMean <noop_with_empty_axes = 1> (ad)",
        'Resize <mode = "linear", antialias = 1> (ad, , scales)',
    ],
)
def test_what_codes_have_no_kernel_for_stays_float(node: str) -> None:
    constants = {"scales": np.array([1, 1, 2, 2], F32)} if "scales" in node else {}
    size = 8 if constants else 4
    model = make(f"(float[1,3,4,4] a) => (float[1,3,{size},{size}] y) {{ {BEFORE} p = {node} {AFTER} }}", **QDQ, **constants)
    check(model, STEP * 1.01, a=images(1, 3, 4, 4))


def test_a_mean_of_an_empty_batch_of_codes() -> None:
    model = make(f"(float[N,3,4] a) => (float[N,3,1] y) {{ {BEFORE} p = ReduceMean(ad, axes) {AFTER} }}", **QDQ, axes=np.array([2]))
    check(model, a=images(0, 3, 4))
    check(model, STEP * 1.01, a=images(2, 3, 4))


def test_codes_padded_without_a_value() -> None:
    model = make(
        "(float[1,3,4,4] a) => (float[1,3,6,6] y) { q = QuantizeLinear(a, s, z) p = Pad(q, pads) y = DequantizeLinear(p, s, z) }",
        s=0.02,
        z=I8(5),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    )
    check(model, a=images(1, 3, 4, 4))


def test_codes_that_become_float16() -> None:
    model = make("(uint8[4] q) => (float16[4] y) { y = DequantizeLinear <output_dtype = 10> (q, s, z) }", opset=23, s=0.02, z=U8(5))
    q = codes(4, dtype=U8)
    found = run(model, q=q)
    expected = ReferenceEvaluator(model).run(None, {"q": q})[0]
    assert found[0].dtype == expected.dtype == np.float16
    np.testing.assert_array_equal(found[0], expected)


def test_a_gelu_whose_numbers_add_an_axis() -> None:
    model = make(
        "(float[2,3] a) => (float[1,2,3] y) { u = Mul(a, c) v = Erf(u) w = Add(v, one) p = Mul(a, w) y = Mul(p, half) }",
        c=float(np.sqrt(0.5)),
        one=np.ones((1, 1, 1), F32),
        half=0.5,
    )
    check(model, a=images(2, 3))


@pytest.mark.parametrize(("start", "end"), [(-7, -10), (-6, -100), (10, -7), (-5, -6)])
def test_a_slice_backwards_begins_at_the_first_element_at_the_earliest(start: int, end: int) -> None:
    step, axes = np.array([-1]), np.array([0])
    model = make(
        "(float[5] a) => (float[N] y) { y = Slice(a, s, e, axes, step) }", s=np.array([start]), e=np.array([end]), axes=axes, step=step
    )
    check(model, a=images(5))
    text = "(float[5] a) => (float[5] y) { p = Slice(c, s, e, axes, step) q = ReduceSum(p) y = Add(a, q) }"
    check(make(text, s=np.array([start]), e=np.array([end]), axes=axes, step=step, c=images(5, seed=1)), a=images(5))
    text = "(float[N,2,3,4,5] a) => (int64[M] y) { h = Shape <start = 1> (a) p = Slice(h, s, e, axes, step) y = Add(p, p) }"
    check(make(text, s=np.array([start + 1]), e=np.array([end + 1]), axes=axes, step=step), a=images(1, 2, 3, 4, 5))


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5])
def test_sums_of_int8_codes_are_rounded_as_int8(factor: float) -> None:
    """Where ties are common, it decides whether 128 is added before or after rounding."""
    text = "(int8[256,256] a, int8[256,256] b) => (int8[256,256] y) { ad = DequantizeLinear(a, sa, za) bd = DequantizeLinear(b, sb, zb) "
    scales = {"sa": 0.03, "sb": 0.03 * factor / 2, "sy": 0.05 * factor, "za": I8(7), "zb": I8(95), "zy": I8(-11)}
    model = make(text + "p = Add(ad, bd) y = QuantizeLinear(p, sy, zy) }", **scales)
    a = np.repeat(np.arange(-128, 128).astype(I8)[:, None], 256, 1)
    feeds = {"a": a, "b": np.ascontiguousarray(a.T)}
    expected = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    np.testing.assert_array_equal(run(model, **feeds)[0], expected[0])
