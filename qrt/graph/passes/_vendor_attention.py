"""Attention in ONNX Runtime's own domain, spelled with products, masks and Softmax, as exporters of plain ONNX write it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qrt.graph.nodes import constant
from qrt.graph.passes._attention import LOWEST, attend, by_heads, causal, ints, joined, positions, scale_of
from qrt.graph.passes._spelling import Spell, Spelling

__all__ = ["ATTENTION_SPELLINGS"]

_INT64 = ir.DataType.INT64


# -- heads ----------------------------------------------------------------------------------------------------------------------
def _count(s: Spelling) -> int:
    heads = s.integer("num_heads")
    if heads < 1:
        raise s.refuse(f"{heads} heads")
    return heads


# -- masks ------------------------------------------------------------------------------------------------------------------------
def _lengths(s: Spelling, mask: ir.Value, k: ir.Value, masked: float) -> ir.Value:
    """A mask by positions: where the keys of each batch end and, in a second part that may lack, where they start."""
    batch = s.dim(k, 0)
    ends_starts = s.op("Concat", s.cast(mask, _INT64), s.op("Expand", ints(0), batch), axis=0)
    ends = s.op("Slice", ends_starts, ints(0), batch, ints(0))
    starts = s.op("Slice", ends_starts, batch, s.op("Add", batch, batch), ints(0))
    places = s.op("Unsqueeze", positions(s, s.dim(k, 2)), ints(0))
    column = [s.op("Unsqueeze", value, ints(1)) for value in (ends, starts)]
    inside = s.op("And", s.op("Less", places, column[0]), s.op("GreaterOrEqual", places, column[1]))
    return s.op("Unsqueeze", s.op("Where", inside, s.real(0), s.real(masked)), ints(1, 2))


def _padding(s: Spelling, mask: ir.Value, q: ir.Value, k: ir.Value, masked: float) -> ir.Value:
    """What is added to the scores for a mask of the keys: lengths, or a number for each key, 0 where it is padding."""
    rank = s.rank(mask)
    if rank == 1:
        return _lengths(s, mask, k, masked)
    if rank == 4:  # (batch, 1, most, most): the rows of the queries, and the columns of the keys
        sequence, total = s.dim(q, 2), s.dim(k, 2)
        begin = s.op("Concat", s.op("Sub", total, sequence), ints(0), axis=0)
        mask = s.op("Slice", mask, begin, s.op("Concat", total, total, axis=0), ints(2, 3))
    elif rank in (2, 3):
        mask = s.op("Unsqueeze", mask, ints(1, 2) if rank == 2 else ints(1))
    else:
        raise s.refuse(f"a mask of {rank} axes")
    return s.op("Where", s.op("Greater", s.cast(mask, _INT64), ints(0).reshape(())), s.real(0), s.real(masked))


def _mask(s: Spelling, padding: ir.Value | None, bias: ir.Value | None, q: ir.Value, k: ir.Value) -> ir.Value | None:
    """All that is added to the scores; None if nothing is."""
    masked = s.number("mask_filter_value", -10000.0)
    parts = [_padding(s, padding, q, k, masked)] if padding is not None else []
    if s.integer("unidirectional"):
        parts.append(causal(s, s.dim(q, 2), s.dim(k, 2), s.op("Sub", s.dim(k, 2), s.dim(q, 2)), LOWEST))
    if bias is not None:
        parts.append(bias)
    if len(parts) > 1 and s.integer("unidirectional"):  # the sum of two numbers that stand for −∞ is to stay finite
        return s.op("Max", s.sum(*parts), s.real(LOWEST))
    return s.sum(*parts) if parts else None


# -- projections --------------------------------------------------------------------------------------------------------------------
def _parts(s: Spelling, value: ir.Value | None, sizes: Sequence[int], axis: int) -> list[ir.Value | None]:
    """`value` cut along `axis`; a constant into constants. A value of one element, or none, goes to all parts."""
    if value is None:
        return [None] * len(sizes)
    held = constant(value)
    if held is None:
        return [*s.ops("Split", [value, ints(*sizes)], len(sizes), axis=axis)]
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
    q, k, v = (by_heads(s, x, heads) for x in projected)
    before = s.given(past)
    if before is not None:
        old_k, old_v = s.ops("Split", [before, ints(1, 1)], 2, axis=0)
        k, v = (s.op("Concat", s.op("Squeeze", old, ints(0)), new, axis=2) for old, new in ((old_k, k), (old_v, v)))
    added = _mask(s, s.given(mask), s.given(bias) if bias else None, q, k)
    s.results = [joined(s, attend(s, q, k, v, added, scale_of(s, sizes[0] // heads)))]
    if len(s.node.outputs) > 1:
        s.results.append(s.op("Concat", *(s.op("Unsqueeze", x, ints(0)) for x in (k, v)), axis=0))


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
    parts = s.ops("Split", [s.op("Transpose", x, perm=[3, 0, 2, 1, 4]), ints(*[1] * count)], count, axis=0)
    return [s.op("Squeeze", part, ints(0)) for part in parts]


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
        return [by_heads(s, apart[0] or query, heads), *_unpacked(s, key, 2)], hidden // heads
    heads_apart = s.rank(key) == 4
    q, *others = (x for x in apart if x is not None)
    return [by_heads(s, q, heads), *(x if heads_apart else by_heads(s, x, heads) for x in others)], hidden // heads


def _multi_head(s: Spelling) -> None:
    if s.given(9) is not None or s.wanted(3):
        raise s.refuse("a beam's cache, or reading the scores,")
    (q, k, v), size = _queries_keys_values(s)
    if s.given(6) is not None:
        if s.given(8) is not None:
            raise s.refuse("a cache that is written in place")
        k, v = s.op("Concat", s.needed(6), k, axis=2), s.op("Concat", s.needed(7), v, axis=2)
    y = attend(s, q, k, v, _mask(s, s.given(4), s.given(5), q, k), scale_of(s, size))
    s.results = [joined(s, y), k, v, None][: len(s.node.outputs)]


# -- rotary embedding -----------------------------------------------------------------------------------------------------------------
def _rotated(s: Spelling, x: ir.Value, cos: ir.Value, sin: ir.Value, interleaved: bool) -> ir.Value:
    """Pairs of the last axis turned by the angles whose cosines and sines are given, broadcast to (…, pairs)."""
    if interleaved:
        parts = s.ops("Split", [s.reshape(x, 0, 0, 0, -1, 2), ints(1, 1)], 2, axis=-1)
        a, b = (s.op("Squeeze", part, ints(-1)) for part in parts)
    else:
        a, b = s.ops("Split", [x], 2, axis=-1, num_outputs=2)
    real = s.op("Sub", s.op("Mul", a, cos), s.op("Mul", b, sin))
    imaginary = s.op("Add", s.op("Mul", a, sin), s.op("Mul", b, cos))
    if not interleaved:
        return s.op("Concat", real, imaginary, axis=-1)
    return s.reshape(s.op("Concat", *(s.op("Unsqueeze", y, ints(-1)) for y in (real, imaginary)), axis=-1), 0, 0, 0, -1)


def _rotary(s: Spelling) -> None:
    x, places, interleaved = s.needed(0), s.needed(1), bool(s.integer("interleaved"))
    rank, half = s.rank(x), s.extent(s.needed(2), 1, "the width of its table of cosines")
    heads_apart = rank == 4
    if rank not in (3, 4) or s.integer("is_packed_batching"):
        raise s.refuse("an input without batches")
    rotary, heads = s.integer("rotary_embedding_dim") or 2 * half, s.integer("num_heads")
    if rotary != 2 * half:
        raise s.refuse(f"turning {rotary} numbers by {half} angles")
    size = s.extent(x, 3, "the size of its heads") if heads_apart else s.extent(x, 2, "its width") // heads if heads else rotary
    if s.rank(places) == 1:  # the first position
        places = s.op("Unsqueeze", s.op("Add", positions(s, s.dim(x, 2 if heads_apart else 1)), places), ints(0))
    middle = ints(1 if heads_apart else 2)
    cos, sin = (s.op("Unsqueeze", s.op("Gather", s.needed(k), places), middle) for k in (2, 3))
    y = x if heads_apart else s.reshape(x, 0, 0, -1, size)
    if rotary < size:
        turned, rest = s.ops("Split", [y, ints(rotary, size - rotary)], 2, axis=-1)
        y = s.op("Concat", _rotated(s, turned, cos, sin, interleaved), rest, axis=-1)
    else:
        y = _rotated(s, y, cos, sin, interleaved)
    s.results = [y if heads_apart else s.reshape(y, 0, 0, -1)]


ATTENTION_SPELLINGS: dict[str, Spell] = {
    "Attention": _attention,
    "MultiHeadAttention": _multi_head,
    "QAttention": _quantized_attention,
    "RotaryEmbedding": _rotary,
}
