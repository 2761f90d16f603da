"""Float operators of ONNX Runtime's own domain, as its optimizers write them, spelled with standard ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.graph.passes._spelling import Spell, Spelling

__all__ = ["FLOAT_SPELLINGS"]

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
# RMSNormalization came with it.
_RMS_OPSET = 23


# -- products -----------------------------------------------------------------------------------------------------------------
def _turned(s: Spelling, index: int, name: str) -> ir.Value:
    """An operand of FusedMatMul. `transBatch`: its first axis is that of its rows; `trans`: its last two axes change places."""
    x = s.needed(index)
    rank = s.rank(x)
    axes = list(range(rank))
    if s.integer(f"transBatch{name}") and rank > 2:
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if s.integer(f"trans{name}") and rank > 1:
        axes[-2:] = axes[-1], axes[-2]
    return x if axes == sorted(axes) else s.op("Transpose", x, perm=axes)


def _fused_matmul(s: Spelling) -> None:
    s.results = [s.scaled(s.op("MatMul", _turned(s, 0, "A"), _turned(s, 1, "B")), s.number("alpha", 1.0))]


def _activated(s: Spelling, x: ir.Value, params: tuple[float, ...]) -> ir.Value:
    """x after the node's `activation`, which takes `params`."""
    match s.text("activation"):
        case "":
            return x
        case "Clip":
            low, high = (s.real(p) for p in (*params, 6.0)[:2])
            return s.op("Clip", x, low, high)
        case "LeakyRelu":
            return s.op("LeakyRelu", x, alpha=float((*params, 0.01)[0]))
        case "HardSigmoid":
            alpha, beta = (float(p) for p in (params if len(params) > 1 else (0.2, 0.5)))
            return s.op("HardSigmoid", x, alpha=alpha, beta=beta)
        case "Relu" | "Sigmoid" | "Tanh" as name:
            return s.op(name, x)
        case other:
            raise s.refuse(f"the activation {other!r}")


def _fused_conv(s: Spelling) -> None:
    y = s.op("Conv", s.needed(0), s.needed(1), s.given(2), **s.kept(*_CONV))
    params = s.node.attributes["activation_params"].as_floats() if "activation_params" in s.node.attributes else ()
    s.results = [_activated(s, s.sum(y, s.given(3)), tuple(params))]


def _fused_gemm(s: Spelling) -> None:
    y = s.op("Gemm", s.needed(0), s.needed(1), s.given(2), **s.kept("alpha", "beta", "transA", "transB"))
    names = [name for name in ("activation_alpha", "activation_beta") if name in s.node.attributes]
    s.results = [_activated(s, y, tuple(s.number(name, 0.0) for name in names))]


# -- activations ------------------------------------------------------------------------------------------------------------------
def _gelu(approximate: str) -> Spell:
    """Gelu of the first input, and of a bias added to it."""

    def spell(s: Spelling) -> None:
        s.results = [s.op("Gelu", s.sum(s.needed(0), s.given(1)), approximate=approximate)]

    return spell


def _quick_gelu(s: Spelling) -> None:
    x = s.needed(0)
    s.results = [s.op("Mul", x, s.op("Sigmoid", s.scaled(x, s.number("alpha", 1.702))))]


def _bias_softmax(s: Spelling) -> None:
    """Softmax(data + bias) of all axes from `axis` on. Where the bias has fewer axes, they are inner or outer ones."""
    x, bias = s.needed(0), s.needed(1)
    rank, axis = s.rank(x), s.integer("axis", 1)
    if axis not in (-1, rank - 1) or (not s.integer("is_inner_broadcast", 1) and s.rank(bias) != rank):
        raise s.refuse("another axis than the last one, or a bias of the outer axes,")
    s.results = [s.op("Softmax", s.op("Add", x, bias), axis=-1)]


# -- norms ------------------------------------------------------------------------------------------------------------------------
def _norm(s: Spelling, x: ir.Value, scale: ir.Value, bias: ir.Value | None, epsilon: float, axis: int = -1) -> ir.Value:
    return s.op("LayerNormalization", x, scale, bias, axis=axis, epsilon=epsilon)


def _rms(s: Spelling, x: ir.Value, scale: ir.Value, epsilon: float, axis: int = -1) -> ir.Value:
    s.opset = max(s.opset, _RMS_OPSET)
    return s.op("RMSNormalization", x, scale, axis=axis, epsilon=epsilon)


def _no_statistics(s: Spelling, *indices: int) -> None:
    if any(s.wanted(index) for index in indices):
        raise s.refuse("reading the mean or deviation beside the result")


def _skip_norm(simplified: bool) -> Spell:
    """The norm of input + skip + bias; the sum is the fourth output."""

    def spell(s: Spelling) -> None:
        _no_statistics(s, 1, 2)
        scale, rest = s.needed(2), 3 if simplified else 4
        x = s.sum(s.needed(0), s.given(rest))
        total = s.op("Add", x, s.needed(1))
        epsilon = s.number("epsilon", 1e-12)
        y = _rms(s, total, scale, epsilon) if simplified else _norm(s, total, scale, s.given(3), epsilon)
        s.results = [y, None, None, total][: len(s.node.outputs)]

    return spell


def _layer_norm(s: Spelling) -> None:
    """LayerNormalization before opset 17, where ONNX Runtime's optimizer writes it nevertheless."""
    _no_statistics(s, 1, 2)
    s.results = [_norm(s, s.needed(0), s.needed(1), s.given(2), s.number("epsilon", 1e-5), s.integer("axis", -1)), None, None]


def _simplified_norm(s: Spelling) -> None:
    _no_statistics(s, 1)
    s.results = [_rms(s, s.needed(0), s.needed(1), s.number("epsilon", 1e-5), s.integer("axis", -1)), None]


def _embed_norm(s: Spelling) -> None:
    """The norm of the sum of the embeddings of words, positions and segments; the mask's lengths; the sum."""
    ids, segments, mask, positions = s.needed(0), s.given(1), s.given(7), s.given(8)
    words = s.op("Gather", s.needed(2), ids)
    if positions is None:
        zero = np.zeros(1, np.int64)
        places = s.op("Slice", s.needed(3), zero, s.dim(ids, 1), zero)
    else:
        places = s.op("Gather", s.needed(3), positions)
    total = s.op("Add", words, places)
    if segments is not None and s.given(4) is not None:
        total = s.op("Add", total, s.op("Gather", s.needed(4), segments))
    y = _norm(s, total, s.needed(5), s.given(6), s.number("epsilon", 1e-12))
    lengths = None
    if s.wanted(1):
        int32 = ir.DataType.INT32
        counted = s.cast(mask, int32) if mask is not None else s.op("Mul", s.cast(ids, int32), np.zeros((), np.int32))
        lengths = s.op("ReduceSum", counted, np.ones(1, np.int64), keepdims=0)
    s.results = [y, lengths, total][: len(s.node.outputs)]


FLOAT_SPELLINGS: dict[str, Spell] = {
    "BiasGelu": _gelu("none"),
    "BiasSoftmax": _bias_softmax,
    "EmbedLayerNormalization": _embed_norm,
    "FastGelu": _gelu("tanh"),
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu("none"),
    "LayerNormalization": _layer_norm,
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _simplified_norm,
    "SkipLayerNormalization": _skip_norm(simplified=False),
    "SkipSimplifiedLayerNormalization": _skip_norm(simplified=True),
    "TransposeMatMul": _fused_matmul,
}
