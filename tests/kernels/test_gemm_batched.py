"""Products of two computed operands, in any order of axes, equal NumPy's, bit for bit where the result is an integer."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels.check import TARGETS_HERE, check
from kernels.products import NEAR, codes, floats

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.ops.gemm import BatchedMatMul, Codes, Float, Int32
from qrt.ops.gemm.batched import _merge
from qrt.ops.op import Spec

LAYOUTS = [
    ((2, 3, 5, 8), (2, 3, 8, 7), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),
    ((2, 5, 3, 8), (2, 7, 3, 8), (0, 2, 1, 3), (0, 3, 1, 2), (0, 2, 1, 3)),  # heads in the middle, b transposed
    ((2, 5, 3, 20), (2, 77, 3, 20), (0, 2, 1, 3), (0, 3, 1, 2), (0, 2, 1, 3)),  # in squares, and what is left of them
    ((5, 8), (8, 7), (0, 1), (0, 1), (0, 1)),
    ((4, 5, 6), (6, 7), (0, 1, 2), (0, 1), (0, 1, 2)),  # b broadcasts
    ((5, 6), (4, 6, 7), (0, 1), (0, 1, 2), (0, 1, 2)),  # a broadcasts
    ((3, 1, 5, 6), (1, 4, 6, 7), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),  # both do
    ((2, 1, 3, 1, 5), (2, 1, 3, 5, 2), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4)),
]


def product(a: np.ndarray, b: np.ndarray, layout: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """a @ b by NumPy, operands and result in the layout's axis orders."""
    _, _, a_perm, b_perm, y_perm = layout
    logical = [x.transpose(np.argsort(perm)) for x, perm in ((a, a_perm), (b, b_perm))]
    return np.matmul(*logical).transpose(y_perm)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: f"{v[0]}x{v[1]}")
def test_batched_products(layout: tuple[tuple[int, ...], ...]) -> None:
    a_shape, b_shape, *perms = layout
    n = np.array(b_shape)[list(perms[1]).index(len(b_shape) - 1)]
    a, b = codes(*a_shape), codes(*b_shape)
    bias = np.arange(n, dtype=np.int32) * 100 - 300
    for b_point in (0, 5, 128, 255):
        (found,) = check(BatchedMatMul(Int32(), *perms, None, 3, b_point), [a, b])  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, product(a.astype(np.int64) - 3, b.astype(np.int64) - b_point, layout))
        check(BatchedMatMul(Codes(np.float32([1e-4]), 100, 1, 254), *perms, bias, 3, b_point), [a, b])  # type: ignore[arg-type]
    x, w = floats(*a_shape), floats(*b_shape)
    (found,) = check(BatchedMatMul(Float(), *perms, floats(int(n))), [x, w], **NEAR)  # type: ignore[arg-type]
    check(BatchedMatMul(Float(0.0), *perms), [x, w], **NEAR)  # type: ignore[arg-type]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 18), st.integers(1, 40), st.integers(1, 18), st.integers(0, 255), st.data())
def test_batched_products_of_any_size(images: int, groups: int, m: int, n: int, k: int, zero_point: int, data: st.DataObject) -> None:
    a_batch = tuple(data.draw(st.sampled_from([1, extent])) for extent in (images, groups))
    b_batch = tuple(data.draw(st.sampled_from([1, extent])) for extent in (images, groups))
    layout = ((*a_batch, m, k), (*b_batch, k, n), *((0, 1, 2, 3),) * 3)
    a, b = codes(*layout[0]), codes(*layout[1])
    target = data.draw(st.sampled_from(TARGETS_HERE))
    (found,) = check(BatchedMatMul(Int32(), *layout[2:], None, 9, zero_point), [a, b], targets=[target])
    np.testing.assert_array_equal(found, product(a.astype(np.int64) - 9, b.astype(np.int64) - zero_point, layout))


@given(st.lists(st.tuples(st.integers(1, 4), *(st.integers(0, 12),) * 3), max_size=4))
def test_merged_walks_visit_the_same_places(walks: list[tuple[int, int, int, int]]) -> None:
    def places(over: list[tuple[int, int, int, int]]) -> list[tuple[int, ...]]:
        steps = itertools.product(*(range(extent) for extent, *_ in over))
        return [tuple(sum(i * walk[which] for i, walk in zip(at, over, strict=True)) for which in (1, 2, 3)) for at in steps]

    merged = _merge(walks)
    assert places(merged) == places(walks)
    assert prod(extent for extent, *_ in merged) == prod(extent for extent, *_ in walks)
    assert all(extent > 1 for extent, *_ in merged)


@pytest.mark.parametrize(
    ("op", "shapes", "error"),
    [
        (BatchedMatMul(Float(), (0, 1), (0, 1), (0, 1)), [(2, 3), (4, 5)], ModelError),
        (BatchedMatMul(Float(), (0, 1, 2), (0, 1, 2), (0, 1, 2)), [(2, 3, 4), (3, 4, 5)], ModelError),
        (BatchedMatMul(Float(), (0,), (0, 1), (0, 1)), [(3,), (3, 5)], ModelError),
        (BatchedMatMul(Float(), (0, 1), (0, 1), (0, 1)), [(2, 0), (0, 5)], UnsupportedOp),
        (BatchedMatMul(Float(), (1, 0), (0, 1), (0, 1)), [(3, 2), (3, 5)], UnsupportedOp),
        (BatchedMatMul(Float(), (0, 1), (0, 1), (0, 1), np.zeros(4, np.float32)), [(2, 3), (3, 5)], ModelError),
    ],
)
def test_batched_operands_that_do_not_fit(op: BatchedMatMul, shapes: list[tuple[int, ...]], error: type[Exception]) -> None:
    with pytest.raises(error):
        op.infer([Spec(shape, np.dtype(np.float32)) for shape in shapes])


def test_batches_that_two_strides_cannot_walk_are_refused() -> None:
    shapes = [(2, 1, 2, 1, 3, 4), (1, 2, 1, 2, 4, 5)]
    op = BatchedMatMul(Float(), *((0, 1, 2, 3, 4, 5),) * 3)
    with pytest.raises(UnsupportedOp, match="two strides"):
        op.infer([Spec(shape, np.dtype(np.float32)) for shape in shapes])
