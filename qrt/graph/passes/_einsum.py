"""Einsum, spelled with MatMul: operands are contracted pairwise, from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from qrt.core.errors import ModelError
from qrt.core.record import record
from qrt.graph.passes._spelling import Spelling, Unsaid

__all__ = ["einsum"]

# A letter, or an axis of the ellipsis, counted from its end.
_Label = str | int
_Groups = Sequence[Sequence[_Label]]


@record(eq=False)
class _Term:
    """A value, the label of each of its axes, and their extents as far as they are known."""

    value: ir.Value
    labels: tuple[_Label, ...]
    dims: dict[_Label, int | None]


# -- the equation -------------------------------------------------------------------------------------------------------------
def _labels(s: Spelling, term: str, rank: int) -> tuple[_Label, ...]:
    """The labels of an operand of `rank` axes."""
    before, dots, after = term.partition("...")
    letters = before + after
    hidden = rank - len(letters)
    if not all(c.isascii() and c.isalpha() for c in letters) or hidden < 0 or (hidden and not dots):
        raise _wrong(s, f"{term!r} does not name the {rank} axes of its operand")
    if len(set(letters)) < len(letters):
        raise Unsaid  # a diagonal
    return (*before, *range(-hidden, 0), *after)


def _wrong(s: Spelling, reason: str) -> ModelError:
    return ModelError(f"node {s.node.name!r} (Einsum): in {s.text('equation')!r}, {reason}; export the model again")


def _result(s: Spelling, given: str | None, terms: Sequence[_Term]) -> tuple[_Label, ...]:
    """The labels of the result: those given, or the ellipsis and, in order, the letters that stand once."""
    every = [label for term in terms for label in term.labels]
    hidden = sorted({label for label in every if isinstance(label, int)})
    if given is None:
        return (*hidden, *sorted(label for label in every if isinstance(label, str) and every.count(label) == 1))
    before, dots, after = given.partition("...")
    letters = before + after
    if len(set(letters)) < len(letters) or not set(letters) <= set(every):
        raise _wrong(s, f"the result {given!r} repeats a letter or has one of no operand")
    if hidden and not dots:
        raise Unsaid  # numpy refuses to sum along the ellipsis, ONNX does not say
    return (*before, *hidden, *after)


# -- moving axes ----------------------------------------------------------------------------------------------------------------
def _summed(s: Spelling, term: _Term, kept: set[_Label]) -> _Term:
    """`term` summed along all axes but those of `kept`."""
    axes = [k for k, label in enumerate(term.labels) if label not in kept]
    if not axes:
        return term
    value = s.op("ReduceSum", term.value, np.array(axes, np.int64), keepdims=0)
    return _Term(value, tuple(label for label in term.labels if label in kept), term.dims)


def _ordered(s: Spelling, term: _Term, labels: Sequence[_Label]) -> _Term:
    """`term` with its axes in the order of `labels`, which are all of its labels."""
    perm = [term.labels.index(label) for label in labels]
    value = term.value if perm == sorted(perm) else s.op("Transpose", term.value, perm=perm)
    return _Term(value, tuple(labels), term.dims)


def _spread(s: Spelling, term: _Term, labels: Sequence[_Label]) -> ir.Value:
    """`term` with the axes `labels`; those that it lacks have extent 1."""
    value = _ordered(s, term, [label for label in labels if label in term.labels]).value
    missing = [k for k, label in enumerate(labels) if label not in term.labels]
    return s.op("Unsqueeze", value, np.array(missing, np.int64)) if missing else value


def _merged(s: Spelling, term: _Term, groups: _Groups) -> ir.Value:
    """`term` with the axes of each group as one axis, of extent 1 for a group of none."""
    value = _ordered(s, term, [label for group in groups for label in group]).value
    if all(len(group) == 1 for group in groups):
        return value
    shape = [[term.dims[label] for label in group] for group in groups]
    return _reshaped(s, value, shape, [(value, _places(groups, k)) for k in range(len(groups))])


def _places(groups: _Groups, k: int) -> list[int]:
    first = sum(len(group) for group in groups[:k])
    return list(range(first, first + len(groups[k])))


def _reshaped(
    s: Spelling, value: ir.Value, shape: Sequence[Sequence[int | None]], sources: Sequence[tuple[ir.Value, Sequence[int]]]
) -> ir.Value:
    """`value` with an axis for each product of extents of `shape`; where they are not known, `sources` say whose axes have them."""
    known = [prod(n for n in dims if n is not None) if None not in dims else -1 for dims in shape]
    if known.count(-1) <= 1 and 0 not in known:
        return s.reshape(value, *known)
    parts: list[ir.Value | np.ndarray] = []
    for extent, (source, axes) in zip(known, sources, strict=True):
        if extent != -1:
            parts.append(np.array([extent], np.int64))
            continue
        part = s.dim(source, axes[0])
        for axis in axes[1:]:
            part = s.op("Mul", part, s.dim(source, axis))
        parts.append(part)
    return s.op("Reshape", value, s.op("Concat", *parts, axis=0), allowzero=1)


# -- contracting ------------------------------------------------------------------------------------------------------------------
def _contracted(s: Spelling, a: _Term, b: _Term, kept: set[_Label]) -> _Term:
    """The product of two operands, summed along what they share and `kept` has not."""
    a, b = _summed(s, a, kept | set(b.labels)), _summed(s, b, kept | set(a.labels))
    shared = [label for label in a.labels if label in b.labels]
    batch, summed = [x for x in shared if x in kept], [x for x in shared if x not in kept]
    rows, columns = [x for x in a.labels if x not in shared], [x for x in b.labels if x not in shared]
    _check_shared(s, a, b, summed)
    dims = {**b.dims, **a.dims, **{label: _common(a.dims[label], b.dims[label]) for label in shared}}
    if not summed:
        labels = [*batch, *rows, *columns]
        return _Term(s.op("Mul", _spread(s, a, labels), _spread(s, b, labels)), tuple(labels), dims)
    # A matrix on the right takes rows as they are.
    row_groups: _Groups = [[label] for label in rows] if not batch and rows else [rows]
    batches: _Groups = [[label] for label in batch]
    left, right = _merged(s, a, [*batches, *row_groups, summed]), _merged(s, b, [*batches, summed, columns])
    y = s.op("MatMul", left, right)
    parted = [*batch, *rows, *columns]
    if len(columns) == 1 and (len(rows) == 1 or (not batch and rows)):
        return _Term(y, tuple(parted), dims)
    ordered_a, ordered_b = _ordered(s, a, [*batch, *rows, *summed]), _ordered(s, b, [*batch, *summed, *columns])
    sources = [(y, [k]) for k in range(len(batch))]
    sources += [(ordered_a.value, [len(batch) + k]) for k in range(len(rows))]
    sources += [(ordered_b.value, [len(batch) + len(summed) + k]) for k in range(len(columns))]
    return _Term(_reshaped(s, y, [[dims[label]] for label in parted], sources), tuple(parted), dims)


def _check_shared(s: Spelling, a: _Term, b: _Term, summed: Sequence[_Label]) -> None:
    for label in summed:
        n, m = a.dims[label], b.dims[label]
        if n is not None and m is not None and n != m:
            if 1 in (n, m):
                raise Unsaid  # repeated for the sum: rare
            raise _wrong(s, f"the axis {label!r} has extents {n} and {m}")


def _common(n: int | None, m: int | None) -> int | None:
    """The extent of an axis that has extents n and m, one of which may be 1 and repeated."""
    return m if n == 1 else n if m == 1 else n if n is not None else m


def einsum(s: Spelling) -> None:
    """Raises Unsaid for diagonals, and for sums along the ellipsis."""
    left, arrow, right = s.text("equation").replace(" ", "").partition("->")
    written = left.split(",")
    if len(written) != len(s.node.inputs):
        raise _wrong(s, f"there are {len(written)} terms for {len(s.node.inputs)} operands")
    terms = []
    for k, text in enumerate(written):
        value = s.needed(k)
        labels = _labels(s, text, s.rank(value))
        extents = [d if isinstance(d, int) else None for d in value.shape or ()]
        terms.append(_Term(value, labels, dict(zip(labels, extents, strict=True))))
    result = _result(s, right if arrow else None, terms)
    total = terms[0]
    for k, term in enumerate(terms[1:], 2):
        total = _contracted(s, total, term, set(result).union(*(later.labels for later in terms[k:])))
    s.results = [_ordered(s, _summed(s, total, set(result)), result).value]
