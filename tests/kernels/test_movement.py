"""The kernels of the movement ops equal their references, for every element size."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.check import TARGETS_HERE, check, program_of

from qrt.core.errors import InvalidInput, ModelError
from qrt.ops.movement import Concat, Copy, Expand, Pad, Slice, Transpose
from qrt.ops.movement.gather import Gather, GatherElements, GatherND, ScatterElements, ScatterND, Triangle
from qrt.ops.op import Op, Spec
from qrt.ops.program import interpret
from qrt.runtime.plan import Packs, build

DTYPES = [np.uint8, np.float16, np.float32, np.int64]


def numbered(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        ((3, 5), (1, 0)),
        ((1, 3, 21, 17), (0, 2, 3, 1)),  # interleave three planes
        ((1, 21, 17, 3), (0, 3, 1, 2)),  # and pick them apart
        ((2, 4, 33), (0, 2, 1)),
        ((2, 33, 2), (0, 2, 1)),
        ((2, 64, 9, 16), (0, 2, 3, 1)),
        ((2, 70, 150), (0, 2, 1)),
        *(((2, n, 75), (0, 2, 1)) for n in (5, 8, 12, 15, 22, 27)),  # what is left of squares
        ((5, 2, 3, 4, 7), (4, 1, 3, 0, 2)),
        ((2, 2, 2, 2, 2, 2, 2, 3), (7, 5, 3, 1, 6, 4, 2, 0)),  # more axes than a record holds
        ((2, 3, 400), (1, 0, 2)),
        ((4, 0, 3), (2, 1, 0)),
        ((), ()),
    ],
)
def test_transpose(shape: tuple[int, ...], perm: tuple[int, ...], dtype: type) -> None:
    check(Transpose(perm), [numbered(shape, dtype)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_shares_one_long_row(dtype: type) -> None:
    check(Copy(), [numbered((40001,), dtype)])


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (Slice((1, 0, 4), (2, 3, 2), (1, 1, -2)), (4, 3, 5)),
        (Slice((3, 1), (4, 2), (-1, 3)), (4, 6)),
        (Slice((0, 2), (1, 0), (1, 1)), (1, 2)),
        (Slice((0, 1), (3, 50), (2, 2)), (6, 100)),
        (Expand((3, 4, 5)), (3, 1, 5)),
        (Expand((3, 4, 5)), (1, 4, 1)),
        (Expand((200, 300)), (1, 1)),
        *((Expand((3, 67, count)), (3, 67, 1)) for count in (2, 3, 4, 5, 8, 12, 15, 16)),
        (Triangle(True, 1), (2, 4, 5)),
        (Triangle(False, -1), (2, 4, 5)),
        (Triangle(True, -9), (3, 3)),
        (Triangle(False, 9), (3, 3)),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_input(op: Op, shape: tuple[int, ...], dtype: type) -> None:
    check(op, [numbered(shape, dtype)])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize(("before", "after"), [((0, 1, 2), (0, 3, 1)), ((1, 0, 0), (0, 0, 3)), ((0, 0, 0), (0, 0, 0))])
def test_pad(mode: str, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    inputs = [numbered((3, 4, 5)), np.array(7, np.float32)][: 2 if mode == "constant" else 1]
    check(Pad(before, after, mode), inputs)


def test_pad_of_nothing() -> None:
    check(Pad((2, 1), (0, 0), "constant"), [np.zeros((0, 3), np.float32), np.array(2, np.float32)])
    with pytest.raises(ModelError):
        Pad((2, 1), (0, 0), "edge").infer([Spec((0, 3), np.dtype(np.float32))])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concat(axis: int) -> None:
    shapes = [[2, 3, 5] for _ in range(3)]
    for k, shape in enumerate(shapes):
        shape[axis] = 2 * k
    check(Concat(axis), [numbered(tuple(shape)) for shape in shapes])


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather(axis: int, dtype: type, index_dtype: type) -> None:
    index = np.array([[0, -1, 1], [2, -3, 1]], index_dtype)
    (y,) = check(Gather(axis), [numbered((3, 4, 5), dtype), index])
    np.testing.assert_array_equal(y, np.take(numbered((3, 4, 5), dtype), index, axis))


X = numbered((3, 4, 5))
WRONG = {
    "gather": (Gather(1), [X, np.array([[3, 2], [-4, 4]])], "within -4 … 3; one is 4"),
    "gather, int32": (Gather(2), [X, np.array(-(2**31), np.int32)], "within -5 … 4; one is -2147483648"),
    "gather tuples": (GatherND(), [X, np.array([[0, 3, -6]])], r"tuples within \(-3 … 2, -4 … 3, -5 … 4\); one is -6"),
    "gather tuples, int32": (GatherND(1), [X, np.array([[0], [4], [3]], np.int32)], "within -4 … 3; one is 4"),
    "gather along": (GatherElements(0), [X, np.full((1, 4, 5), 2**63 - 1)], "within -3 … 2; one is 9223372036854775807"),
    "gather along, int32": (GatherElements(2), [X, np.full((1, 4, 5), -6, np.int32)], "within -5 … 4; one is -6"),
    "scatter": (ScatterND(), [X, np.array([[0, 0], [2, -(2**63)]]), X[:2, 0]], r"\(-3 … 2, -4 … 3\); one is -9223372036854775808"),
    "scatter, int32": (ScatterND(), [X, np.array([[3]], np.int32), X[:1]], "within -3 … 2; one is 3"),
    "scatter along": (ScatterElements(1), [X, np.full((1, 1, 1), 4), X[:1, :1, :1]], "within -4 … 3; one is 4"),
    "scatter along, int32": (ScatterElements(1), [X, np.full((1, 1, 1), -5, np.int32), X[:1, :1, :1]], "within -4 … 3; one is -5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_index_out_of_range_ends_the_run_and_spoils_no_other(name: str) -> None:
    op, inputs, error = WRONG[name]
    program, feeds = program_of(op, inputs)
    sound = [feeds[0], np.zeros_like(feeds[1]), *feeds[2:]]
    with pytest.raises(InvalidInput, match=f"node 'op': indices must be .*{error}$"):
        interpret(program, feeds)
    wanted = interpret(program, sound)
    for target in TARGETS_HERE:
        for threads in (1, 2):
            plan = build(program, target, threads, Packs())
            for _ in range(2):
                with pytest.raises(InvalidInput, match=f"node 'op': indices must be .*{error}$"):
                    plan.run(feeds)
                np.testing.assert_array_equal(plan.run(sound)[0], wanted[0])


def test_whichever_thread_meets_it_an_index_out_of_range_is_told() -> None:
    x, index = numbered((7, 4096)), np.zeros(64, np.int64)
    for place in (0, 31, 32, 63):
        index[:] = 0
        index[place] = 7
        program, feeds = program_of(Gather(0), [x, index])
        with pytest.raises(InvalidInput, match="one is 7"):
            build(program, TARGETS_HERE[0], 2, Packs()).run(feeds)


@pytest.mark.parametrize(
    ("batch", "shape", "index_shape"),
    [(0, (3, 4, 5), (6, 1)), (0, (3, 4, 5), (2, 2, 3)), (1, (3, 4, 5), (3, 7, 2)), (2, (3, 4, 5), (3, 4, 1))],
)
def test_gather_tuples(batch: int, shape: tuple[int, ...], index_shape: tuple[int, ...]) -> None:
    check(GatherND(batch), [numbered(shape), np.random.default_rng(1).integers(-3, 3, index_shape)])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_along_an_axis(axis: int, dtype: type) -> None:
    index = np.random.default_rng(1).integers(-(3 + axis), 3 + axis, (2, 4, 3))
    check(GatherElements(axis), [numbered((3, 4, 5), dtype), index])
    check(ScatterElements(axis), [numbered((3, 4, 5), dtype), index, numbered((2, 4, 3), dtype)])


def test_scatter_tuples_in_order() -> None:
    index = np.array([[0, 1], [2, -1], [0, 1]])
    (y,) = check(ScatterND(), [numbered((3, 4, 5)), index, numbered((3, 5)) + 100])
    np.testing.assert_array_equal(y[0, 1], (numbered((3, 5)) + 100)[2])
    check(ScatterND(), [numbered((3, 4, 5)), np.zeros((0, 2), np.int64), np.zeros((0, 5), np.float32)])


@pytest.mark.parametrize(
    ("op", "specs"),
    [
        (Transpose((0, 0)), [((2, 2), np.float32)]),
        (Slice((0,), (3,), (1,)), [((2,), np.float32)]),
        (Slice((1,), (3,), (-1,)), [((2,), np.float32)]),
        (Expand((3,)), [((2,), np.float32)]),
        (Concat(0), [((2, 2), np.float32), ((2, 3), np.float32)]),
        (Concat(0), [((2,), np.float32), ((2,), np.int32)]),
        (Pad((-1,), (0,), "constant"), [((2,), np.float32), ((), np.float32)]),
        (Pad((1,), (0,), "constant"), [((2,), np.float32), ((), np.int32)]),
        (Pad((2,), (0,), "reflect"), [((2,), np.float32)]),
        (Gather(0), [((2,), np.float32), ((2,), np.float32)]),
        (Gather(0), [((0, 2), np.float32), ((2,), np.int32)]),
        (GatherND(0), [((2,), np.float32), ((2, 2), np.int32)]),
        (GatherND(1), [((2, 2), np.float32), ((3, 1), np.int32)]),
        (GatherElements(0), [((2, 2), np.float32), ((2, 3), np.int32)]),
        (ScatterElements(0), [((2, 2), np.float32), ((2, 2), np.int32), ((2, 1), np.float32)]),
        (ScatterND(), [((2, 2), np.float32), ((2, 1), np.int32), ((2, 3), np.float32)]),
        (Triangle(True, 0), [((2,), np.float32)]),
    ],
)
def test_what_does_not_fit_is_refused(op: Op, specs: list[tuple[tuple[int, ...], type]]) -> None:
    with pytest.raises(ModelError):
        op.infer([Spec(shape, np.dtype(dtype)) for shape, dtype in specs])
