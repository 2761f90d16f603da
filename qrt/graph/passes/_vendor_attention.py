"""Attention in ONNX Runtime's own domain, spelled with products, masks and Softmax, as exporters of plain ONNX write it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qrt.graph.nodes import constant
from qrt.graph.passes._spelling import Spell, Spelling

__all__ = ["ATTENTION_SPELLINGS"]

_INT64 = ir.DataType.INT64
# What masks a score for good.
_LOWEST = float(np.finfo(np.float32).min)


def _ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


# -- heads ----------------------------------------------------------------------------------------------------------------------
def _heads(s: Spelling, x: ir.Value, heads: int) -> ir.Value:
    """(batch, sequence, hidden) as (batch, heads, sequence, hidden / heads)."""
    return s.op("Transpose", s.reshape(x, 0, 0, heads, -1), perm=[0, 2, 1, 3])


def _attend(s: Spelling, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, scale: float) -> ir.Value:
    """Softmax(q · kᵀ · scale + mask) · v of heads, brought together again: (batch, sequence, hidden)."""
    scores = s.scaled(s.op("MatMul", q, s.op("Transpose", k, perm=[0, 1, 3, 2])), scale)
    weights = s.op("Softmax", s.sum(scores, mask), axis=-1)
    return s.reshape(s.op("Transpose", s.op("MatMul", weights, v), perm=[0, 2, 1, 3]), 0, 0, -1)


def _count(s: Spelling) -> int:
    heads = s.integer("num_heads")
    if heads < 1:
        raise s.refuse(f"{heads} heads")
    return heads


def _scale(s: Spelling, head_size: int) -> float:
    return s.number("scale", 0.0) or 1.0 / math.sqrt(max(head_size, 1))


# -- masks ------------------------------------------------------------------------------------------------------------------------
def _positions(s: Spelling, count: ir.Value) -> ir.Value:
    """0 … count − 1, (count,) int64; `count` is (1,)."""
    scalar = s.op("Squeeze", count, _ints(0))
    return s.op("Range", _ints(0).reshape(()), scalar, _ints(1).reshape(()))


def _causal(s: Spelling, q: ir.Value, k: ir.Value, masked: float) -> ir.Value:
    """`masked` where a query would see what comes after it: (sequence, total). What was before the first query is seen by all."""
    sequence, total = s.dim(q, 2), s.dim(k, 2)
    rows = s.op("Add", _positions(s, sequence), s.op("Sub", total, sequence))
    later = s.op("Greater", s.op("Unsqueeze", _positions(s, total), _ints(0)), s.op("Unsqueeze", rows, _ints(1)))
    return s.op("Where", later, s.real(masked), s.real(0))


def _lengths(s: Spelling, mask: ir.Value, k: ir.Value, masked: float) -> ir.Value:
    """A mask by positions: where the keys of each batch end and, in a second part that may lack, where they start."""
    batch = s.dim(k, 0)
    ends_starts = s.op("Concat", s.cast(mask, _INT64), s.op("Expand", _ints(0), batch), axis=0)
    ends = s.op("Slice", ends_starts, _ints(0), batch, _ints(0))
    starts = s.op("Slice", ends_starts, batch, s.op("Add", batch, batch), _ints(0))
    places = s.op("Unsqueeze", _positions(s, s.dim(k, 2)), _ints(0))
    column = [s.op("Unsqueeze", value, _ints(1)) for value in (ends, starts)]
    inside = s.op("And", s.op("Less", places, column[0]), s.op("GreaterOrEqual", places, column[1]))
    return s.op("Unsqueeze", s.op("Where", inside, s.real(0), s.real(masked)), _ints(1, 2))


def _padding(s: Spelling, mask: ir.Value, q: ir.Value, k: ir.Value, masked: float) -> ir.Value:
    """What is added to the scores for a mask of the keys: lengths, or a number for each key, 0 where it is padding."""
    rank = s.rank(mask)
    if rank == 1:
        return _lengths(s, mask, k, masked)
    if rank == 4:  # (batch, 1, most, most): the rows of the queries, and the columns of the keys
        sequence, total = s.dim(q, 2), s.dim(k, 2)
        begin = s.op("Concat", s.op("Sub", total, sequence), _ints(0), axis=0)
        mask = s.op("Slice", mask, begin, s.op("Concat", total, total, axis=0), _ints(2, 3))
    elif rank in (2, 3):
        mask = s.op("Unsqueeze", mask, _ints(1, 2) if rank == 2 else _ints(1))
    else:
        raise s.refuse(f"a mask of {rank} axes")
    return s.op("Where", s.op("Greater", s.cast(mask, _INT64), _ints(0).reshape(())), s.real(0), s.real(masked))


def _mask(s: Spelling, padding: ir.Value | None, bias: ir.Value | None, q: ir.Value, k: ir.Value) -> ir.Value | None:
    """All that is added to the scores; None if nothing is."""
    masked = s.number("mask_filter_value", -10000.0)
    parts = [_padding(s, padding, q, k, masked)] if padding is not None else []
    if s.integer("unidirectional"):
        parts.append(_causal(s, q, k, _LOWEST))
    if bias is not None:
        parts.append(bias)
    if len(parts) > 1 and s.integer("unidirectional"):  # the sum of two numbers that stand for −∞ is to stay finite
        return s.op("Max", s.sum(*parts), s.real(_LOWEST))
    return s.sum(*parts) if parts else None


# -- projections --------------------------------------------------------------------------------------------------------------------
def _parts(s: Spelling, value: ir.Value | None, sizes: Sequence[int], axis: int) -> list[ir.Value | None]:
    """`value` cut along `axis`; a constant into constants. A value of one element, or none, goes to all parts."""
    if value is None:
        return [None] * len(sizes)
    held = constant(value)
    if held is None:
        return [*s.ops("Split", [value, _ints(*sizes)], len(sizes), axis=axis)]
    if held.size == 1:
        return [value] * len(sizes)
    if held.shape[axis] != sum(sizes):
        raise s.refuse(f"a weight or bias of shape {list(held.shape)} for parts of {list(sizes)}")
    return [s.hold(np.ascontiguousarray(part), f"{value.name}_part") for part in np.split(held, np.cumsum(sizes)[:-1], axis)]


def _sizes(s: Spelling) -> list[int]:
    """The hidden sizes of queries, keys and values."""
    given = s.node.attributes["qkv_hidden_sizes"].as_ints() if "qkv_hidden_sizes" in s.node.attributes else ()
    whole = s.extent(s.needed(1), 1, "the width of its weight")
    sizes = [int(n) for n in given] if given else [whole // 3] * 3
    heads = _count(s)
    if len(sizes) != 3 or sum(sizes) != whole or any(n % heads for n in sizes):
        raise s.refuse(f"{heads} heads in a weight of {whole} columns, parted as {sizes}")
    return sizes


def _of_projected(s: Spelling, projected: Sequence[ir.Value], sizes: Sequence[int], mask: int, past: int, bias: int) -> None:
    """The rest of Attention; `mask`, `past`, `bias`: which inputs these are."""
    if s.integer("do_rotary") or s.integer("past_present_share_buffer"):
        raise s.refuse("rotary embedding, or a cache that is written in place,")
    heads = _count(s)
    q, k, v = (_heads(s, x, heads) for x in projected)
    before = s.given(past)
    if before is not None:
        old_k, old_v = s.ops("Split", [before, _ints(1, 1)], 2, axis=0)
        k, v = (s.op("Concat", s.op("Squeeze", old, _ints(0)), new, axis=2) for old, new in ((old_k, k), (old_v, v)))
    added = _mask(s, s.given(mask), s.given(bias) if bias else None, q, k)
    s.results = [_attend(s, q, k, v, added, _scale(s, sizes[0] // heads))]
    if len(s.node.outputs) > 1:
        s.results.append(s.op("Concat", *(s.op("Unsqueeze", x, _ints(0)) for x in (k, v)), axis=0))


def _attention(s: Spelling) -> None:
    x, sizes = s.needed(0), _sizes(s)
    pairs = zip(_parts(s, s.needed(1), sizes, 1), _parts(s, s.given(2), sizes, 0), strict=True)
    _of_projected(s, [s.sum(s.op("MatMul", x, w), b) for w, b in pairs], sizes, 3, 4, 5)


def _quantized_attention(s: Spelling) -> None:
    sizes = _sizes(s)
    x = s.op("DequantizeLinear", s.needed(0), s.needed(3), s.given(6))
    pieces = zip(*(_parts(s, s.given(index), sizes, axis) for index, axis in ((1, 1), (4, 0), (7, 0), (2, 0))), strict=True)
    projected = []
    for weight, scale, zero_point, bias in pieces:
        real = s.op("DequantizeLinear", weight, scale, zero_point, axis=1)
        projected.append(s.sum(s.op("MatMul", x, real), bias))
    _of_projected(s, projected, sizes, 5, 8, 0)


# -- queries, keys and values given apart -----------------------------------------------------------------------------------------------
def _unpacked(s: Spelling, x: ir.Value, count: int) -> list[ir.Value]:
    """(batch, sequence, heads, count, size) as `count` values (batch, heads, sequence, size)."""
    parts = s.ops("Split", [s.op("Transpose", x, perm=[3, 0, 2, 1, 4]), _ints(*[1] * count)], count, axis=0)
    return [s.op("Squeeze", part, _ints(0)) for part in parts]


def _queries_keys_values(s: Spelling) -> tuple[list[ir.Value], int]:
    """The three by heads, and the size of a query's head."""
    heads, query, key, value = _count(s), s.needed(0), s.given(1), s.given(2)
    if s.rank(query) == 5:
        if s.given(3) is not None:
            raise s.refuse("a bias of packed queries, keys and values")
        return _unpacked(s, query, 3), s.extent(query, 4, "the size of its heads")
    if key is None:
        raise s.refuse("a query without a key")
    hidden = s.extent(query, -1, "the width of its query")
    apart: list[ir.Value | None] = [query, key, value]
    bias = s.given(3)
    if bias is not None:
        whole = s.extent(bias, 0, "the size of its bias")
        biases = _parts(s, bias, [hidden, hidden, whole - 2 * hidden], 0)
        if s.rank(key) != 3:
            apart[0], biases = s.sum(query, biases[0]), [None] * 3
        apart = [None if x is None else s.sum(x, b) for x, b in zip(apart, biases, strict=True)]
    if s.rank(key) == 5:
        return [_heads(s, apart[0] or query, heads), *_unpacked(s, key, 2)], hidden // heads
    by_heads = s.rank(key) == 4
    q, *others = (x for x in apart if x is not None)
    return [_heads(s, q, heads), *(x if by_heads else _heads(s, x, heads) for x in others)], hidden // heads


def _multi_head(s: Spelling) -> None:
    if s.given(9) is not None or s.wanted(3):
        raise s.refuse("a beam's cache, or reading the scores,")
    (q, k, v), size = _queries_keys_values(s)
    if s.given(6) is not None:
        if s.given(8) is not None:
            raise s.refuse("a cache that is written in place")
        k, v = s.op("Concat", s.needed(6), k, axis=2), s.op("Concat", s.needed(7), v, axis=2)
    y = _attend(s, q, k, v, _mask(s, s.given(4), s.given(5), q, k), _scale(s, size))
    s.results = [y, k, v, None][: len(s.node.outputs)]


# -- rotary embedding -----------------------------------------------------------------------------------------------------------------
def _rotated(s: Spelling, x: ir.Value, cos: ir.Value, sin: ir.Value, interleaved: bool) -> ir.Value:
    """Pairs of the last axis turned by the angles whose cosines and sines are given, broadcast to (…, pairs)."""
    if interleaved:
        parts = s.ops("Split", [s.reshape(x, 0, 0, 0, -1, 2), _ints(1, 1)], 2, axis=-1)
        a, b = (s.op("Squeeze", part, _ints(-1)) for part in parts)
    else:
        a, b = s.ops("Split", [x], 2, axis=-1, num_outputs=2)
    real = s.op("Sub", s.op("Mul", a, cos), s.op("Mul", b, sin))
    imaginary = s.op("Add", s.op("Mul", a, sin), s.op("Mul", b, cos))
    if not interleaved:
        return s.op("Concat", real, imaginary, axis=-1)
    return s.reshape(s.op("Concat", *(s.op("Unsqueeze", y, _ints(-1)) for y in (real, imaginary)), axis=-1), 0, 0, 0, -1)


def _rotary(s: Spelling) -> None:
    x, positions, interleaved = s.needed(0), s.needed(1), bool(s.integer("interleaved"))
    rank, half = s.rank(x), s.extent(s.needed(2), 1, "the width of its table of cosines")
    by_heads = rank == 4
    if rank not in (3, 4) or s.integer("is_packed_batching"):
        raise s.refuse("an input without batches")
    rotary, heads = s.integer("rotary_embedding_dim") or 2 * half, s.integer("num_heads")
    if rotary != 2 * half:
        raise s.refuse(f"turning {rotary} numbers by {half} angles")
    size = s.extent(x, 3, "the size of its heads") if by_heads else s.extent(x, 2, "its width") // heads if heads else rotary
    if s.rank(positions) == 1:  # the first position
        positions = s.op("Unsqueeze", s.op("Add", _positions(s, s.dim(x, 2 if by_heads else 1)), positions), _ints(0))
    middle = _ints(1 if by_heads else 2)
    cos, sin = (s.op("Unsqueeze", s.op("Gather", s.needed(k), positions), middle) for k in (2, 3))
    y = x if by_heads else s.reshape(x, 0, 0, -1, size)
    if rotary < size:
        turned, rest = s.ops("Split", [y, _ints(rotary, size - rotary)], 2, axis=-1)
        y = s.op("Concat", _rotated(s, turned, cos, sin, interleaved), rest, axis=-1)
    else:
        y = _rotated(s, y, cos, sin, interleaved)
    s.results = [y if by_heads else s.reshape(y, 0, 0, -1)]


ATTENTION_SPELLINGS: dict[str, Spell] = {
    "Attention": _attention,
    "MultiHeadAttention": _multi_head,
    "QAttention": _quantized_attention,
    "RotaryEmbedding": _rotary,
}
