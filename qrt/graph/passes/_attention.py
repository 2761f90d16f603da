"""Attention, spelled with products, masks and Softmax: what the standard's and ONNX Runtime's have in common, and the standard's own."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qrt.graph.passes._spelling import Spelling, Unsaid

__all__ = ["LOWEST", "attend", "attention", "by_heads", "causal", "ints", "joined", "positions", "scale_of"]

# What masks a score for good, and stays finite.
LOWEST = float(np.finfo(np.float32).min)
_SHORT_MASKS = 24
# The standard's attributes that are spelled here.
_KNOWN = frozenset({"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap"})


def ints(*numbers: int) -> np.ndarray:
    """An int64 vector."""
    return np.array(numbers, np.int64)


def by_heads(s: Spelling, x: ir.Value, heads: int) -> ir.Value:
    """(batch, sequence, hidden) as (batch, heads, sequence, hidden / heads)."""
    return s.op("Transpose", s.reshape(x, 0, 0, heads, -1), perm=[0, 2, 1, 3])


def joined(s: Spelling, y: ir.Value) -> ir.Value:
    """The reverse."""
    return s.reshape(s.op("Transpose", y, perm=[0, 2, 1, 3]), 0, 0, -1)


def attend(s: Spelling, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, scale: float) -> ir.Value:
    """Softmax(q · kᵀ · scale + mask) · v, by heads."""
    scores = s.scaled(s.op("MatMul", q, s.op("Transpose", k, perm=[0, 1, 3, 2])), scale)
    return s.op("MatMul", s.op("Softmax", s.sum(scores, mask), axis=-1), v)


def scale_of(s: Spelling, head_size: int) -> float:
    """The factor of the scores: the node's, or one over the root of the size of a head."""
    return s.number("scale", 0.0) or 1.0 / math.sqrt(max(head_size, 1))


def positions(s: Spelling, count: ir.Value) -> ir.Value:
    """0 … count − 1, (count,) int64; `count` is (1,)."""
    scalar = s.op("Squeeze", count, ints(0))
    return s.op("Range", ints(0).reshape(()), scalar, ints(1).reshape(()))


def causal(s: Spelling, sequence: ir.Value, total: ir.Value, past: ir.Value | np.ndarray, masked: float) -> ir.Value:
    """`masked` where a query would see what comes after it, else 0: (sequence, total). The first query stands behind `past` keys."""
    rows = s.op("Add", positions(s, sequence), past)
    later = s.op("Greater", s.op("Unsqueeze", positions(s, total), ints(0)), s.op("Unsqueeze", rows, ints(1)))
    return s.op("Where", later, s.real(masked), s.real(0))


def _repeated(s: Spelling, x: ir.Value, times: int) -> ir.Value:
    """Each head `times` times: (batch, heads, sequence, size) as (batch, heads · times, sequence, size)."""
    whole = s.op("Expand", s.op("Unsqueeze", x, ints(2)), ints(1, 1, times, 1, 1))
    batch, heads, sequence, size = (s.dim(x, axis) for axis in range(4))
    return s.op("Reshape", whole, s.op("Concat", batch, s.op("Mul", heads, ints(times)), sequence, size, axis=0), allowzero=1)


def _extended(s: Spelling, mask: ir.Value, k: ir.Value) -> ir.Value:
    """A mask, which may be for the first keys alone (from opset 24 on), with the others masked."""
    extents = mask.shape[-1] if mask.shape is not None else None, s.needed(1).shape
    whole = extents[0] == 1 or (s.given(4) is None and extents[1] is not None and extents[0] == extents[1][-2])
    if s.opset < _SHORT_MASKS or whole:
        return mask
    missing = s.op("Sub", s.dim(k, 2), s.dim(mask, s.rank(mask) - 1))
    widths = s.op("Concat", ints(*[0] * (2 * s.rank(mask) - 1)), missing, axis=0)
    return s.op("Pad", mask, widths, s.real(-np.inf))


def _mask(s: Spelling, q: ir.Value, k: ir.Value, past: ir.Value | None) -> ir.Value | None:
    """What is added to the scores: −∞ for what is masked."""
    given = s.given(3)
    parts = []
    if given is not None:
        if s.dtype(given) == ir.DataType.BOOL:
            given = s.op("Where", given, s.real(0), s.real(-np.inf))
        parts.append(_extended(s, given, k))
    if s.integer("is_causal"):
        parts.append(causal(s, s.dim(q, 2), s.dim(k, 2), ints(0) if past is None else s.dim(past, 2), -np.inf))
    return s.sum(*parts) if parts else None


def attention(s: Spelling) -> None:
    """The standard's. Raises Unsaid for what is left to its definition: capped scores, scores as a result, windows, other types."""
    query, key, value = (s.needed(k) for k in range(3))
    plain = s.node.attributes.keys() <= _KNOWN and not s.number("softcap", 0.0) and not s.wanted(3) and s.given(6) is None
    if not plain or s.dtype(query) != ir.DataType.FLOAT:
        raise Unsaid
    flat = s.rank(query) == 3
    heads, fewer = (s.integer(name) if flat else s.extent_or(x, 1) for name, x in (("q_num_heads", query), ("kv_num_heads", key)))
    width = s.extent_or(query, -1)
    if heads < 1 or fewer < 1 or heads % fewer or width < 1:
        raise Unsaid
    q, k, v = (by_heads(s, x, n) if flat else x for x, n in ((query, heads), (key, fewer), (value, fewer)))
    past = s.given(4)
    if past is not None:
        k, v = s.op("Concat", past, k, axis=2), s.op("Concat", s.needed(5), v, axis=2)
    mask = _mask(s, q, k, past)
    present: list[ir.Value | None] = [k, v]
    if heads != fewer:
        k, v = (_repeated(s, x, heads // fewer) for x in (k, v))
    y = attend(s, q, k, v, mask, scale_of(s, width // heads if flat else width))
    if s.given(3) is not None and mask is not None:
        # Where all keys are masked, Softmax is of nothing, and the result is 0.
        nothing = s.op("Equal", s.op("ReduceMax", mask, ints(-1)), s.real(-np.inf))
        y = s.op("Where", nothing, s.real(0), y)
    s.results = [joined(s, y) if flat else y, *present][: len(s.node.outputs)]
