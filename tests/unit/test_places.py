"""Where values lie: inputs of concatenations in their parts of the result, and what has to keep a place of its own."""

from __future__ import annotations

import numpy as np
import pytest

from qrt.jit.host import host_target
from qrt.ops.elementwise import Unary
from qrt.ops.movement import Concat, Copy, Slice, Transpose
from qrt.ops.op import Array, Spec, View
from qrt.ops.program import Program, interpret
from qrt.ops.strides import contiguous, is_contiguous, merged, row_stride, viewed
from qrt.runtime.places import places_of
from qrt.runtime.plan import Packs, Plan, build

TARGET = host_target()
F32 = np.dtype(np.float32)


def program_of(*shapes: tuple[int, ...]) -> tuple[Program, list[int]]:
    """A program with inputs of these shapes, and a computed value of each."""
    program = Program()
    program.inputs = [program.value(Spec(shape, F32)) for shape in shapes]
    return program, [program.call(Unary("neg"), [x], f"neg {k}")[0] for k, x in enumerate(program.inputs)]


def run(program: Program) -> Plan:
    """The plan, after it gave what the interpreter gives."""
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal(program.specs[v].shape).astype(np.float32) for v in program.inputs]
    plan = build(program, TARGET, 1, Packs())
    for found, wanted in zip(plan.run(feeds), interpret(program, feeds), strict=True):
        np.testing.assert_array_equal(found, wanted)
    return plan


def copies(plan: Plan) -> int:
    """Copies that are left in a plan."""
    return sum(kernel.startswith("copy_") for kernel in plan.kernels)


# -- strides --------------------------------------------------------------------------------------------------------------
def test_strides_merge_and_split() -> None:
    assert contiguous((2, 3, 4)) == [12, 4, 1]
    assert merged((2, 3, 4), (12, 4, 1)) == [(24, 1)]
    assert merged((2, 1, 3, 4), (24, 7, 8, 1)) == [(6, 8), (4, 1)]
    assert is_contiguous((1, 3, 4), (99, 4, 1))
    assert not is_contiguous((2, 3, 4), (24, 4, 1))
    assert row_stride((2, 3, 4), (24, 8, 1)) == 8
    assert row_stride((2, 3, 4), (30, 8, 1)) is None
    assert row_stride((2, 3, 4), (24, 8, 2)) is None
    assert row_stride((1, 4), (9, 1)) == 4
    assert row_stride((), ()) is None


@pytest.mark.parametrize(
    ("shape", "strides", "other"),
    [
        ((6, 4), (8, 1), (2, 3, 4)),
        ((6, 4), (8, 1), (3, 2, 2, 2)),
        ((6, 4), (8, 1), (24,)),
        ((6, 4), (8, 1), (4, 6)),
        ((2, 3, 4), (24, 8, 1), (1, 6, 1, 4)),
        ((2, 3, 4), (40, 8, 1), (6, 4)),
        ((2, 3, 4), (40, 8, 1), (2, 12)),
        ((1, 1), (5, 7), (1,)),
    ],
)
def test_views_of_strided_values(shape: tuple[int, ...], strides: tuple[int, ...], other: tuple[int, ...]) -> None:
    memory = np.arange(400)
    array = np.lib.stride_tricks.as_strided(memory, shape, [8 * s for s in strides])
    found = viewed(shape, strides, other)
    view = array[...]
    try:
        view.shape = other  # NumPy refuses where it would have to copy
    except AttributeError:
        assert found is None
        return
    assert found is not None
    np.testing.assert_array_equal(np.lib.stride_tricks.as_strided(memory, other, [8 * s for s in found]), view)


# -- concatenation --------------------------------------------------------------------------------------------------------
def test_parts_of_the_outermost_axis_are_written_where_they_belong() -> None:
    program, values = program_of((1, 3, 4), (1, 2, 4), (1, 5, 4))
    program.outputs = list(program.call(Concat(1), values, "join"))
    assert copies(run(program)) == 0


def test_a_result_of_a_view_is_a_part_too() -> None:
    program, (a, b) = program_of((2, 6), (3, 4))
    (a,) = program.call(View((3, 4)), [a], "view")
    (joined,) = program.call(Concat(0), [a, b], "join")
    program.outputs = list(program.call(View((24,)), [joined], "flat"))
    assert copies(run(program)) == 0


def test_concatenations_of_concatenations() -> None:
    program, (a, b, c) = program_of((2, 4), (1, 4), (3, 4))
    (inner,) = program.call(Concat(0), [a, b], "inner")
    (outer,) = program.call(Concat(0), [c, inner, inner], "outer")  # once where it lies, once copied
    program.outputs = [outer]
    assert copies(run(program)) == 1


def test_what_is_read_elsewhere_is_read_in_its_part() -> None:
    program, (a, b) = program_of((2, 4), (1, 4))
    (joined,) = program.call(Concat(0), [a, b], "join")
    (other,) = program.call(Unary("neg"), [a], "other")
    (late,) = program.call(Concat(0), [other, joined], "late")
    program.outputs = [late]
    assert copies(run(program)) == 0


def test_inputs_outputs_and_constants_are_copied() -> None:
    program, (a, b) = program_of((2, 4), (1, 4))
    held = program.constant(np.ones((2, 4), np.float32))
    program.outputs = [a, *program.call(Concat(0), [a, b, held, program.inputs[0]], "join")]
    assert copies(run(program)) == 3


def test_a_value_twice_and_in_two_concatenations() -> None:
    program, (a, b) = program_of((2, 4), (1, 4))
    (first,) = program.call(Concat(0), [a, a], "twice")
    (second,) = program.call(Concat(0), [b, a], "again")
    program.outputs = [first, second]
    assert copies(run(program)) == 2


def test_what_has_no_elements_takes_no_place() -> None:
    program, (a, b) = program_of((0, 4), (2, 4))
    program.outputs = list(program.call(Concat(0), [a, b, a], "join"))
    assert copies(run(program)) == 0


def test_what_cannot_be_written_in_rows_is_copied() -> None:
    program, (a, b) = program_of((2, 3), (2, 3))
    (turned,) = program.call(Transpose((1, 0)), [a], "turn")
    (other,) = program.call(View((3, 2)), [b], "view")
    program.outputs = list(program.call(Concat(0), [turned, other], "join"))
    assert copies(run(program)) == 1  # the transposition itself


def test_in_place_results_leave_parts_alone() -> None:
    program, (a, b) = program_of((2, 4), (2, 4))
    (c,) = program.call(Unary("neg"), [a], "in place of a")
    (joined,) = program.call(Concat(0), [c, b], "join")
    (d,) = program.call(Unary("neg"), [joined], "in place of the join")
    (e,) = program.call(Copy(), [d], "out")
    program.outputs = [e]
    places = places_of(program)
    assert places[d].root == places[b].root == joined
    assert places[a].root == a
    run(program)


def test_watched_values_stand_whole() -> None:
    program, (a, b) = program_of((2, 4), (1, 4))
    (joined,) = program.call(Concat(0), [a, b], "join")
    program.outputs = list(program.call(Unary("neg"), [joined], "out"))
    assert places_of(program)[a].root == joined
    assert places_of(program, [a])[a].root == a
    seen: dict[int, Array] = {}
    feeds = [np.ones((2, 4), np.float32), np.zeros((1, 4), np.float32)]
    build(program, TARGET, 1, Packs(), [a, joined]).run(feeds, lambda value, array: seen.setdefault(value, array.copy()) is None)
    np.testing.assert_array_equal(seen[a], -feeds[0])
    np.testing.assert_array_equal(seen[joined], -np.concatenate(feeds))


def test_slices_lie_in_their_source() -> None:
    program, (a,) = program_of((6, 8))
    (top,) = program.call(Slice((1, 0), (2, 8), (1, 1)), [a], "in one piece")
    (left,) = program.call(Slice((0, 2), (3, 3), (2, 2)), [a], "strided")
    (back,) = program.call(Slice((5, 0), (3, 8), (-2, 1)), [a], "backwards")
    (given,) = program.call(Slice((0, 0), (2, 8), (1, 1)), [program.inputs[0]], "of an input")
    (negated,) = program.call(Unary("neg"), [top], "any op reads one piece")
    (turned,) = program.call(Transpose((1, 0)), [left], "reads strides")
    program.outputs = [negated, turned, *program.call(Unary("neg"), [back], "b"), *program.call(Unary("neg"), [given], "g")]
    places = places_of(program)
    assert (places[top].root, places[top].start, places[top].strides) == (a, 32, (8, 1))
    assert (places[left].root, places[left].start, places[left].strides) == (a, 8, (16, 2))
    assert [places[v].root for v in (back, given)] == [back, given]
    assert copies(run(program)) == 3


def test_a_slice_keeps_its_source() -> None:
    """Nothing takes over memory that a slice still reads."""
    program, (a,) = program_of((6, 8))
    (top,) = program.call(Slice((0, 0), (2, 8), (1, 1)), [a], "slice")
    (b,) = program.call(Unary("neg"), [a], "not in place")
    program.outputs = [*program.call(Unary("abs"), [b], "out"), *program.call(Unary("neg"), [top], "late")]
    assert places_of(program)[b].root == b
    run(program)


def test_no_parts_where_none_are_wanted() -> None:
    program, (a, b) = program_of((2, 4), (1, 4))
    program.outputs = list(program.call(Concat(0), [a, b], "join"))
    assert [place.root for place in places_of(program, parts=False)][2:4] == [a, b]
