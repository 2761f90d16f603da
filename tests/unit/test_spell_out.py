"""Operators of ONNX Runtime's own domain, and standard ones that others define: what they give there, without a node in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from lowered import one_node, run_model
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qrt.core.errors import ModelError, QrtError, UnsupportedOp
from qrt.graph.passes import prepare
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower import Executable

VENDOR = "com.microsoft"
Inputs = Sequence[np.ndarray | None]


def vendor(
    op_type: str, inputs: Inputs, constants: Sequence[int] = (), outputs: Sequence[str] = ("o0",), free: bool = False, **attributes: Any
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node of ONNX Runtime's domain, and its feeds. `free`: the first axis of inputs, the batch, has a name."""
    names = [f"i{k}" if array is not None else "" for k, array in enumerate(inputs)]
    node = helper.make_node(op_type, names, outputs, name="node", domain=VENDOR, **attributes)
    given = [(name, a, k in constants) for k, (name, a) in enumerate(zip(names, inputs, strict=True)) if a is not None]
    graph = helper.make_graph(
        [node],
        op_type,
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(a.dtype), ["batch", *a.shape[1:]] if free and a.ndim else a.shape
            )
            for name, a, held in given
            if not held
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs if name],
        [numpy_helper.from_array(a, name) for name, a, held in given if held],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(VENDOR, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10), {name: a for name, a, held in given if not held}


def runtime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def check_vendor(op_type: str, inputs: Inputs, constants: Sequence[int] = (), rtol: float = 2e-5, atol: float = 2e-5, **more: Any) -> None:
    """The node gives what ONNX Runtime says, before and after the rules, and all of it runs in kernels."""
    model, feeds = vendor(op_type, inputs, constants, **more)
    wanted = runtime(model, feeds)
    for fused in (False, True):
        prepared = prepare(load(model))
        assert all(node.domain == "" for node in prepared.graph)
        if fused:
            fuse(prepared)
        executable = Executable(prepared, host_target(), 1)
        for got, expected in zip(executable.run(feeds), wanted, strict=True):
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(got, expected, rtol, atol)
        assert not executable.why


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return rng().normal(size=shape).astype(np.float32)


# ---- products and activations

PRODUCTS = {
    "plain": ((2, 3, 4), (4, 5), {}),
    "alpha": ((2, 3, 4), (2, 4, 5), {"alpha": 0.25}),
    "trans-b": ((2, 3, 4), (2, 5, 4), {"transB": 1, "alpha": 0.5}),
    "trans-a": ((2, 4, 3), (4, 5), {"transA": 1}),
    "trans-batch-a": ((3, 2, 6, 4), (2, 6, 4, 5), {"transBatchA": 1}),
    "trans-batch-b": ((2, 6, 3, 4), (4, 2, 6, 5), {"transBatchB": 1}),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_fused_matmul(name: str) -> None:
    a, b, attributes = PRODUCTS[name]
    check_vendor("FusedMatMul", [normal(*a), normal(*b)], **attributes)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Gelu", [normal(3, 70)], {}),
        ("BiasGelu", [normal(3, 70), normal(70)], {}),
        ("FastGelu", [normal(3, 70)], {}),
        ("FastGelu", [normal(3, 70), normal(70)], {}),
        ("QuickGelu", [normal(3, 70)], {}),
        ("QuickGelu", [normal(3, 70)], {"alpha": 1.0}),
        ("BiasSoftmax", [normal(2, 3, 4, 5), normal(2, 1, 1, 5)], {"axis": 3, "is_inner_broadcast": 0}),
    ],
)
def test_activation(op_type: str, inputs: Inputs, attributes: dict[str, Any]) -> None:
    if op_type == "BiasSoftmax":  # which has no kernel on ONNX Runtime's CPU
        model, feeds = vendor(op_type, inputs, **attributes)
        (found,), why = run_model(model, feeds)
        e = np.exp(feeds["i0"] + feeds["i1"])
        np.testing.assert_allclose(found, e / e.sum(-1, keepdims=True), rtol=1e-5)
        assert not why
        return
    check_vendor(op_type, inputs, atol=1e-4 if op_type == "FastGelu" else 2e-5, **attributes)


ACTIVATIONS = [
    {"activation": "Relu"},
    {"activation": "Tanh"},
    {"activation": "Sigmoid"},
    {"activation": "LeakyRelu", "activation_params": [0.2]},
    {"activation": "Clip", "activation_params": [-0.5, 0.75]},
    {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
]


@pytest.mark.parametrize("attributes", ACTIVATIONS, ids=lambda a: a["activation"])
@pytest.mark.parametrize("residual", [False, True])
def test_fused_conv(attributes: dict[str, Any], residual: bool) -> None:
    inputs = [normal(2, 3, 8, 9), normal(4, 3, 3, 3), normal(4), normal(2, 4, 8, 9) if residual else None]
    check_vendor("FusedConv", inputs, constants=(1, 2), pads=[1, 1, 1, 1], **attributes)


@pytest.mark.parametrize("attributes", ACTIVATIONS, ids=lambda a: a["activation"])
def test_fused_gemm(attributes: dict[str, Any]) -> None:
    names = dict(zip(("activation_alpha", "activation_beta"), attributes.get("activation_params", ()), strict=False))
    given = {"activation": attributes["activation"], **names}
    if attributes["activation"] == "Clip":
        pytest.skip("ONNX Runtime's FusedGemm knows no Clip")
    check_vendor("FusedGemm", [normal(5, 6), normal(7, 6), normal(7)], constants=(1, 2), transB=1, alpha=0.5, **given)


# ---- norms and embeddings


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("skip", [(2, 5, 24), (1, 5, 24), (5, 24)])
def test_skip_norm(bias: bool, beta: bool, total: bool, skip: tuple[int, ...]) -> None:
    inputs = [normal(2, 5, 24), normal(*skip), normal(24), normal(24) if beta else None, normal(24) if bias else None]
    check_vendor("SkipLayerNormalization", inputs, (2, 3, 4), outputs=("o0", "", "", "o3") if total else ("o0",), epsilon=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_skip_simplified_norm(bias: bool) -> None:
    inputs = [normal(2, 5, 24), normal(2, 5, 24), normal(24), normal(24) if bias else None]
    check_vendor("SkipSimplifiedLayerNormalization", inputs, (2, 3), outputs=("o0", "", "", "o3"), epsilon=1e-6)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_embed_norm(segments: bool, places: bool, mask: bool) -> None:
    ids = rng().integers(0, 30, (2, 7)).astype(np.int32)
    inputs = [
        ids,
        (ids % 2).astype(np.int32) if segments else None,
        normal(30, 16),
        normal(12, 16),
        normal(2, 16) if segments else None,
        normal(16),
        normal(16),
        np.array([[1] * 5 + [0] * 2, [1] * 7], np.int32) if mask else None,
        rng().integers(0, 12, (2, 7)).astype(np.int32) if places else None,
    ]
    check_vendor("EmbedLayerNormalization", inputs, (2, 3, 4, 5, 6), outputs=("o0", "o1", "o2"), free=True)


@pytest.mark.parametrize("op_type", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_norms_that_claim_to_be_standard(op_type: str) -> None:
    """ONNX Runtime's optimizer writes them in the standard domain, whatever its opset."""
    inputs = ["x", "scale", "bias"] if op_type == "LayerNormalization" else ["x", "scale"]
    node = helper.make_node(op_type, inputs, ["y"], epsilon=1e-6, axis=-1)
    graph = helper.make_graph(
        [node],
        "norm",
        [helper.make_tensor_value_info("x", 1, [2, 24])],
        [helper.make_tensor_value_info("y", 1, [2, 24])],
        [numpy_helper.from_array(normal(24), name) for name in inputs[1:]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    feeds = {"x": normal(2, 24)}
    (found,), why = run_model(model, feeds)
    np.testing.assert_allclose(found, runtime(model, feeds)[0], rtol=1e-4, atol=1e-5)
    assert not why


# ---- attention

LENGTHS = np.array([3, 5], np.int32)
RAW = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
MASKS: dict[str, np.ndarray | None] = {
    "none": None,
    "raw": RAW,
    "rows": np.tril(np.ones((2, 5, 5), np.int32)) * RAW[:, None],
    "lengths": LENGTHS,
    "ends and starts": np.array([4, 5, 1, 0], np.int32),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [0, 1])
def test_attention(mask: str, causal: int) -> None:
    inputs = [normal(2, 5, 24), normal(24, 72), normal(72), MASKS[mask]]
    check_vendor("Attention", inputs, (1, 2), num_heads=4, unidirectional=causal, free=mask in ("none", "raw"))


def test_attention_without_a_bias() -> None:
    """ONNX Runtime's CPU wants one."""
    found = []
    for bias in (None, np.zeros(72, np.float32)):
        model, feeds = vendor("Attention", [normal(2, 5, 24), normal(24, 72), bias], (1, 2), num_heads=4)
        found.append(run_model(model, feeds)[0][0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("mask", ["none", "raw"])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_with_a_past(mask: str, causal: int) -> None:
    given = np.concatenate([np.ones((2, 3), np.int32), RAW], axis=1) if mask == "raw" else None
    inputs = [normal(2, 5, 24), normal(24, 72), normal(72), given, normal(2, 2, 4, 3, 6)]
    check_vendor("Attention", inputs, (1, 2), outputs=("o0", "o1"), num_heads=4, unidirectional=causal)


def test_attention_of_sizes_of_its_own() -> None:
    inputs = [normal(2, 5, 20), normal(20, 24 + 24 + 32), normal(80), None, None, normal(2, 4, 5, 5)]
    check_vendor("Attention", inputs, (1, 2), num_heads=4, qkv_hidden_sizes=[24, 24, 32], scale=0.3)
    check_vendor("Attention", inputs, (), num_heads=4, qkv_hidden_sizes=[24, 24, 32])  # weights that are computed


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("channels", [False, True])
def test_quantized_attention(signed: bool, channels: bool) -> None:
    x = rng().integers(0, 256, (2, 5, 24)).astype(np.uint8)
    weight = rng().integers(0, 256, (24, 72)).astype(np.uint8)
    weight = weight.view(np.int8) if signed else weight
    scale = np.full(72, 0.004, np.float32) * np.linspace(0.5, 1, 72, dtype=np.float32) if channels else np.float32(0.004).reshape(())
    zero = np.zeros(scale.shape, weight.dtype) if signed else np.full(scale.shape, 120, np.uint8)
    inputs = [x, weight, normal(72), np.float32(0.01).reshape(()), scale, RAW, np.uint8(128).reshape(()), zero]
    check_vendor("QAttention", inputs, (1, 2, 3, 4, 6, 7), num_heads=4, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mask", ["none", "lengths", "raw", "rows"])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(mask: str, causal: int, bias: bool) -> None:
    inputs = [normal(2, 5, 24), normal(2, 5, 24), normal(2, 5, 32), normal(80) if bias else None, MASKS[mask], normal(1, 4, 5, 5)]
    check_vendor("MultiHeadAttention", inputs, (3,), num_heads=4, unidirectional=causal)


def test_multi_head_attention_to_others() -> None:
    """Keys of another sequence, by heads; keys and values of the past."""
    check_vendor("MultiHeadAttention", [normal(2, 5, 24), normal(2, 4, 7, 6), normal(2, 4, 7, 6)], num_heads=4)
    past = [None, None, None, normal(2, 4, 3, 6), normal(2, 4, 3, 6)]
    inputs = [normal(2, 5, 24), normal(2, 5, 24), normal(2, 5, 24), *past]
    check_vendor("MultiHeadAttention", inputs, num_heads=4, outputs=("o0", "o1", "o2"))
    check_vendor("MultiHeadAttention", inputs, num_heads=4, outputs=("o0", "o1", "o2"), unidirectional=1)


def test_multi_head_attention_of_packed_values() -> None:
    """Which ONNX Runtime's CPU does not take."""
    q, k, v = (normal(2, 5, 24) * n for n in (1.0, 0.5, 2.0))
    apart = [np.ascontiguousarray(x, np.float32).reshape(2, 5, 4, 6) for x in (q, k, v)]
    given: list[Inputs] = [[q, k, v], [q, np.stack(apart[1:], axis=3)], [np.stack(apart, axis=3)]]
    models = [vendor("MultiHeadAttention", [None if x is None else x.astype(np.float32) for x in inputs], num_heads=4) for inputs in given]
    results = [run_model(model, feeds)[0][0] for model, feeds in models]
    for found in results:
        np.testing.assert_allclose(found, runtime(*models[0])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_rotary_embedding(interleaved: int, first: bool, heads: bool, part: bool) -> None:
    angles = rng().uniform(0, 6, (20, 2 if part else 4)).astype(np.float32)
    places = np.array([3], np.int64) if first else rng().integers(0, 20, (2, 5))
    x = normal(2, 3, 5, 8) if heads else normal(2, 5, 24)
    more = {"rotary_embedding_dim": 4, "num_heads": 3} if part else {}
    check_vendor("RotaryEmbedding", [x, places, np.cos(angles), np.sin(angles)], (2, 3), interleaved=interleaved, **more)


# ---- codes


@pytest.mark.parametrize("points", ["none", "a", "both"])
@pytest.mark.parametrize("bias", [False, True])
def test_integers_to_float(points: str, bias: bool) -> None:
    a, b = rng().integers(0, 256, (5, 16)).astype(np.uint8), rng().integers(-128, 128, (16, 7)).astype(np.int8)
    scale = rng().uniform(0.01, 0.02, 7).astype(np.float32)
    zeros = [None if points == "none" else np.array(120, np.uint8), rng().integers(-5, 5, 7).astype(np.int8) if points == "both" else None]
    inputs = [a, b, np.array(0.01, np.float32), scale, *zeros, normal(7) if bias else None]
    check_vendor("MatMulIntegerToFloat", inputs, (1, 3, 4, 5, 6))


@pytest.mark.parametrize(("bits", "k"), [(4, 64), (4, 40), (8, 64), (2, 64)])
@pytest.mark.parametrize("points", ["none", "codes", "floats"])
def test_matmul_of_few_bits(bits: int, k: int, points: str) -> None:
    n, block = 6, 16
    blocks = -(-k // block)
    packed = rng().integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8)
    scales = rng().uniform(0.01, 0.1, n * blocks).astype(np.float32)
    zero = None
    if points == "codes":
        zero = rng().integers(0, 256, n * -(-blocks * bits // 8)).astype(np.uint8)
    elif points == "floats":
        zero = rng().uniform(0, 15, (n, blocks)).astype(np.float32)
    inputs = [normal(3, 5, k), packed, scales, zero, None, normal(n)]
    if bits != 4 and points == "floats":
        pytest.skip("ONNX Runtime takes zero points that are no codes with four bits only")
    check_vendor("MatMulNBits", inputs, (1, 2, 3, 5), K=k, N=n, bits=bits, block_size=block, rtol=1e-4, atol=1e-4)


# ---- what does not fit


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "error", "message"),
    [
        ("FusedConv", [normal(1, 3, 4, 4), normal(2, 3, 1, 1)], {"activation": "Softsign"}, UnsupportedOp, "activation 'Softsign'"),
        ("FusedMatMul", [normal(3, 4), None], {}, ModelError, "lacks its input 1"),
        ("Attention", [normal(2, 5, 24), normal(24, 72)], {"num_heads": 0}, UnsupportedOp, "0 heads"),
        ("Attention", [normal(2, 5, 24), normal(24, 72)], {"num_heads": 5}, UnsupportedOp, "5 heads in a weight of 72 columns"),
        ("Attention", [normal(2, 5, 24), normal(24, 72)], {"num_heads": 4, "do_rotary": 1}, UnsupportedOp, "rotary"),
        (
            "MatMulNBits",
            [normal(3, 64), np.zeros((6, 4, 8), np.uint8), normal(24)],
            {"K": 64, "N": 6, "bits": 4},
            UnsupportedOp,
            "blocks of 0",
        ),
        (
            "MatMulNBits",
            [normal(3, 64), np.zeros((6, 4, 9), np.uint8), normal(24)],
            {"K": 64, "N": 6, "bits": 4, "block_size": 16},
            ModelError,
            "malformed",
        ),
        ("SkipLayerNormalization", [normal(2, 5, 8), normal(2, 5, 8), None], {}, ModelError, "lacks its input 2"),
        ("MultiHeadAttention", [normal(2, 5, 24)], {"num_heads": 4}, UnsupportedOp, "a query without a key"),
    ],
)
def test_refused(op_type: str, inputs: Inputs, attributes: dict[str, Any], error: type[QrtError], message: str) -> None:
    model, _ = vendor(op_type, inputs, constants=range(1, len(inputs)), **attributes)
    with pytest.raises(error, match=message):
        prepare(load(model))


def test_statistics_are_refused() -> None:
    model, _ = vendor("SkipLayerNormalization", [normal(2, 5, 8), normal(2, 5, 8), normal(8)], outputs=("o0", "o1"))
    with pytest.raises(UnsupportedOp, match="mean or deviation"):
        prepare(load(model))


# ---- standard operators that others define


def check_standard(op_type: str, inputs: Inputs, **attributes: Any) -> None:
    """The node gives what ONNX Runtime says, in kernels alone, with extents known and not."""
    model, feeds = one_node(op_type, inputs, **attributes)
    (found, *others), why = run_model(model, feeds)
    wanted = runtime(model, feeds)
    for got, expected in zip((found, *others), wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert not why


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("mask", ["none", "floats", "flags", "rows"])
def test_attention_of_the_standard(causal: int, heads: int, mask: str) -> None:
    flags = rng().random((2, 1, 5, 7)) < 0.7
    given = {"none": None, "floats": normal(5, 7), "flags": flags, "rows": normal(2, 6, 5, 7)}[mask]
    inputs = [normal(2, 6, 5, 8), normal(2, heads, 7, 8), normal(2, heads, 7, 4), given]
    check_standard("Attention", inputs if given is not None else inputs[:3], opset=23, is_causal=causal)


def test_attention_of_the_standard_in_three_axes_with_a_past() -> None:
    inputs = [normal(2, 5, 48), normal(2, 5, 16), normal(2, 5, 16), normal(5, 8), normal(2, 2, 3, 8), normal(2, 2, 3, 8)]
    attributes = {"q_num_heads": 6, "kv_num_heads": 2, "opset": 23, "outputs": 3}
    for causal in (0, 1):
        check_standard("Attention", inputs, is_causal=causal, **attributes)
    check_standard("Attention", inputs, scale=0.5, **attributes)


def test_attention_to_nothing_is_zero() -> None:
    """Of a row whose keys are all masked, onnx.reference and we make 0."""
    flags = np.ones((5, 7), bool)
    flags[2] = False
    model, feeds = one_node("Attention", [normal(2, 6, 5, 8), normal(2, 6, 7, 8), normal(2, 6, 7, 8), flags], opset=23)
    (found,), why = run_model(model, feeds)
    assert not why
    assert not found[:, :, 2].any()
    np.testing.assert_allclose(found, ReferenceEvaluator(model).run(None, feeds)[0], rtol=1e-4, atol=1e-5)


def test_attention_of_16_bits() -> None:
    half = normal(2, 6, 5, 8).astype(np.float16)
    model, feeds = one_node("Attention", [half] * 3, opset=23)
    (found,), why = run_model(model, feeds)
    assert not why
    np.testing.assert_allclose(found, ReferenceEvaluator(model).run(None, feeds)[0], rtol=1e-2, atol=1e-3)


def test_attention_with_a_softcap() -> None:
    model, feeds = one_node("Attention", [normal(2, 6, 5, 8)] * 3, opset=23, softcap=2.0)
    (found,), why = run_model(model, feeds)
    assert not why
    np.testing.assert_allclose(found, ReferenceEvaluator(model).run(None, feeds)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op_type", "opset"), [("RotaryEmbedding", 23), ("CastLike", 21)])
def test_other_standard_operators(op_type: str, opset: int) -> None:
    angles = rng().uniform(0, 6, (20, 4)).astype(np.float32)
    inputs: dict[str, Inputs] = {
        "RotaryEmbedding": [normal(2, 3, 5, 8), np.cos(angles), np.sin(angles), rng().integers(0, 20, (2, 5))],
        "CastLike": [normal(3, 40) * 50, np.zeros(1, np.int32)],
    }
    check_standard(op_type, inputs[op_type], opset=opset)
