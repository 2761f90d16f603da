"""Plans: memory that live values never share, runs from many threads, views, in-place results, taps and the clock."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threads import check_threads_end

from qrt.core.errors import KernelError
from qrt.jit import Kernel, record_dtype
from qrt.jit.host import host_target
from qrt.ops.gemm import Codes, Dense, Float, Weights
from qrt.ops.movement import Transpose
from qrt.ops.op import Array, Base, Op, Operand, Spec, Steps, View
from qrt.ops.program import Program, interpret
from qrt.runtime.arena import ALIGNMENT, SLACK, Buffer, place
from qrt.runtime.plan import Packs, Plan, build

TARGET = host_target()
RNG = np.random.default_rng(0)
AXPY = Kernel("axpy__generic", record_dtype(("x", "i8"), ("y", "i8"), ("z", "i8"), ("n", "i8")), "kernels.cpu_runtime:axpy")


@dataclass(frozen=True)
class Axpy(Op):
    """y = 2 · x + z, which may overwrite x or z."""

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (inputs[0],)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (inputs[0] + inputs[0] + inputs[1],)

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0, 1)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        steps.step(AXPY, x=inputs[0].ref, z=inputs[1].ref, y=outputs[0].ref, n=inputs[0].spec.size)


def buffers_of(plan: Plan) -> set[int]:
    """Where in the slab the plan's steps read or write."""
    return {offset for _, offset in plan.relocations.get((Base.ARENA, 0), ())}


def check(program: Program, feeds: Sequence[Array], threads: int = 1) -> list[Array]:
    """The plan's outputs, which are the interpreter's, bit for bit."""
    found = build(program, TARGET, threads, Packs()).run(feeds)
    for got, wanted in zip(found, interpret(program, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)
    return found


def vector(n: int = 100) -> Array:
    return RNG.integers(-50, 50, n).astype(np.float32)


# -- the arena ------------------------------------------------------------------------------------------------------------
@given(
    st.lists(
        st.builds(lambda n, at, length: Buffer(n, at, at + length), st.integers(0, 5000), st.integers(0, 12), st.integers(0, 5)),
        max_size=30,
    ),
    st.integers(0, 8),
)
def test_buffers_that_live_together_lie_apart(buffers: list[Buffer], pause: int) -> None:
    offsets, size = place(buffers, pause)
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    for i, (a, at) in enumerate(zip(buffers, offsets, strict=True)):
        assert at + a.nbytes + SLACK <= size
        for b, bt in list(zip(buffers, offsets, strict=True))[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert at + a.nbytes + SLACK <= bt or bt + b.nbytes + SLACK <= at
    needed = max((sum(b.nbytes for b in buffers if b.first <= step <= b.last) for step in range(20)), default=0)
    assert needed <= size <= sum(b.nbytes + SLACK + ALIGNMENT for b in buffers)


def test_memory_is_used_again() -> None:
    buffers = [Buffer(1000, step, step + 1) for step in range(50)]
    assert place(buffers)[1] <= 2 * (1000 + SLACK + ALIGNMENT)


def test_memory_passes_between_equals_at_once_and_to_other_sizes_after_a_pause() -> None:
    buffers = [Buffer(4000, 0, 1), Buffer(4000, 2, 3), Buffer(1000, 2, 3), Buffer(1000, 4, 5), Buffer(1000, 7, 8)]
    assert place(buffers)[0] == [0, 0, 4096, 0, 0]
    assert place(buffers, 3)[0] == [0, 0, 4096, 4096, 0]


def test_a_plan_on_two_threads_keeps_memory_with_its_cores_as_long_as_caches_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program()
    x, y = (program.value(Spec((n,), np.dtype(np.float32))) for n in (5000, 100))
    program.inputs = [x, y]
    for i in range(4):
        (x,) = program.call(Axpy(), [x, x], f"long {i}")
    for i in range(4):
        (y,) = program.call(Axpy(), [y, y], f"short {i}")
    program.outputs = [x, y]
    one, two = (build(program, TARGET, threads, Packs()) for threads in (1, 2))
    assert one.arena_nbytes < two.arena_nbytes
    monkeypatch.setattr("qrt.runtime.plan.cache_bytes", lambda level: one.arena_nbytes // 2)
    assert build(program, TARGET, 2, Packs()).arena_nbytes == one.arena_nbytes


# -- plans ----------------------------------------------------------------------------------------------------------------
def chain(length: int, n: int = 100) -> Program:
    """x → Axpy(x, z) → Axpy(·, z) …"""
    program = Program()
    x, z = (program.value(Spec((n,), np.dtype(np.float32))) for _ in range(2))
    program.inputs = [x, z]
    for i in range(length):
        (x,) = program.call(Axpy(), [x, z], f"step {i}")
    program.outputs = [x]
    return program


def test_results_take_over_the_memory_of_what_dies() -> None:
    program = chain(6)
    check(program, [vector(), vector()])
    assert len(buffers_of(build(program, TARGET, 1, Packs()))) == 1


def test_what_is_read_later_is_not_overwritten() -> None:
    program = Program()
    x = program.value(Spec((64,), np.dtype(np.float32)))
    program.inputs = [x]
    (a,) = program.call(Axpy(), [x, x], "a")
    (b,) = program.call(Axpy(), [a, a], "b")  # reads a twice: it may not be written while it is read
    (c,) = program.call(Axpy(), [a, b], "c")  # a dies here, b does not
    (d,) = program.call(Axpy(), [c, b], "d")
    (e,) = program.call(Axpy(), [d, c], "e")
    program.outputs = [e, b]
    check(program, [vector(64)])


def test_inputs_and_constants_are_never_written() -> None:
    program = Program()
    x = program.value(Spec((64,), np.dtype(np.float32)))
    program.inputs = [x]
    constant = program.constant(held := vector(64))
    (a,) = program.call(Axpy(), [x, constant], "a")
    program.outputs = [a]
    feed = vector(64)
    before = feed.copy(), held.copy()
    feed.setflags(write=False)
    check(program, [feed])
    np.testing.assert_array_equal(feed, before[0])
    np.testing.assert_array_equal(held, before[1])


def test_views_cost_nothing_and_keep_their_source_alive() -> None:
    program = Program()
    x = program.value(Spec((6, 8), np.dtype(np.float32)))
    program.inputs = [x]
    (a,) = program.call(Axpy(), [x, x], "a")
    (flat,) = program.call(View((48,)), [a], "view")
    (square,) = program.call(View((4, 12)), [flat], "view of a view")
    (b,) = program.call(Axpy(), [square, square], "b")
    (again,) = program.call(View((6, 8)), [b], "back")
    (c,) = program.call(Axpy(), [again, a], "c")  # a lives on under its views
    (out,) = program.call(View((48,)), [c], "out")
    program.outputs = [out]
    plan = build(program, TARGET, 2, Packs())
    assert plan.kernels == [AXPY.name] * 3
    check(program, [RNG.integers(-9, 9, (6, 8)).astype(np.float32)], 2)


def test_an_output_needs_a_buffer_of_its_own() -> None:
    program = Program()
    x = program.value(Spec((4,), np.dtype(np.float32)))
    program.inputs, program.outputs = [x], [x]
    with pytest.raises(KernelError, match="no buffer of its own"):
        build(program, TARGET, 1, Packs())


def test_records_are_filled_exactly() -> None:
    @dataclass(frozen=True)
    class Careless(Axpy):
        def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
            steps.step(AXPY, x=inputs[0].ref, w=outputs[0].ref)

    program = Program()
    x = program.value(Spec((4,), np.dtype(np.float32)))
    program.inputs = [x]
    program.outputs = list(program.call(Careless(), [x, x], "careless"))
    with pytest.raises(KernelError, match=r"'careless'.*\['n', 'w', 'y', 'z'\]"):
        build(program, TARGET, 1, Packs())


def test_a_plan_of_no_steps() -> None:
    program = Program()
    x = program.value(Spec((0, 4), np.dtype(np.float32)))
    program.inputs = [x]
    program.outputs = list(program.call(Dense(Weights(np.zeros((1, 1, 4, 3), np.float32)), Float()), [x], "dense"))
    (found,) = build(program, TARGET, 2, Packs()).run([np.zeros((0, 4), np.float32)])
    assert found.shape == (0, 3)


def test_scratch_lives_as_long_as_its_op() -> None:
    @dataclass(frozen=True)
    class Twice(Axpy):
        """2 · (2 · x + z) + z through scratch memory."""

        inplace = ()

        def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
            x, z = inputs
            return (2 * (2 * x + z) + z,)

        def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
            middle, n = steps.scratch(inputs[0].spec.nbytes), inputs[0].spec.size
            steps.step(AXPY, x=inputs[0].ref, z=inputs[1].ref, y=middle, n=n)
            steps.step(AXPY, x=middle, z=inputs[1].ref, y=outputs[0].ref, n=n)

    program = Program()
    x = program.value(Spec((100,), np.dtype(np.float32)))
    program.inputs = [x]
    (a,) = program.call(Twice(), [x, x], "a")
    (b,) = program.call(Twice(), [a, x], "b")
    (c,) = program.call(Twice(), [b, a], "c")
    program.outputs = [c]
    check(program, [vector()], 2)


# -- running --------------------------------------------------------------------------------------------------------------
def network(threads: int, packs: Packs | None = None) -> Plan:
    """Three products of codes, large enough to be shared by threads."""
    rng = np.random.default_rng(7)
    program = Program()
    value = program.value(Spec((64, 96), np.dtype(np.uint8)))
    program.inputs = [value]
    for i in range(3):
        w = Weights(rng.integers(-128, 128, (1, 1, 96, 96)).astype(np.int8))
        (value,) = program.call(Dense(w, Codes(np.float32([2e-3]), 128), 128), [value], f"dense {i}")
    program.outputs = [value]
    return build(program, TARGET, threads, packs or Packs())


def test_one_and_two_threads_give_the_same_bytes() -> None:
    x = RNG.integers(0, 256, (64, 96)).astype(np.uint8)
    one, two, four = (network(threads).run([x])[0] for threads in (1, 2, 4))
    assert one.tobytes() == two.tobytes() == four.tobytes()


def test_runs_from_many_threads_at_once_do_not_meet() -> None:
    plans = [network(2), network(2)]  # two sessions
    feeds = [RNG.integers(0, 256, (64, 96)).astype(np.uint8) for _ in range(8)]
    wanted = [plans[0].run([x])[0].tobytes() for x in feeds]
    wrong: list[int] = []

    def work(first: int) -> None:
        for i in range(first, first + 200):
            which = i % len(feeds)
            if plans[i % 2].run([feeds[which]])[0].tobytes() != wanted[which]:
                wrong.append(i)

    check_threads_end(work, range(8))
    assert not wrong
    assert len(plans[0]._free) <= 8  # contexts are used again


def test_a_plan_of_small_steps_wakes_no_second_thread() -> None:
    program = Program()
    program.inputs = [program.value(Spec((2, 8), np.dtype(np.uint8)))]
    program.outputs = list(program.call(Transpose((1, 0)), program.inputs, "small"))
    assert build(program, TARGET, 2, Packs()).threads == 1
    assert network(2).threads == 2


def test_outputs_are_the_caller_s_own() -> None:
    plan = network(1)
    x = RNG.integers(0, 256, (64, 96)).astype(np.uint8)
    first = plan.run([x])[0]
    kept = first.copy()
    plan.run([255 - x])
    np.testing.assert_array_equal(first, kept)


def test_packed_constants_are_made_once() -> None:
    packs, source = Packs(), np.arange(4)
    made: list[int] = []

    def make() -> Array:
        made.append(1)
        return np.arange(3, dtype=np.float32)

    first = packs.get(source, "a", make)
    assert packs.get(source, "a", make) is first
    assert first.ctypes.data % ALIGNMENT == 0
    packs.get(source, "b", make)
    packs.get(np.arange(4), "a", make)  # another array of the same contents
    assert len(made) == 3
    assert packs.nbytes == 36


# -- taps and the clock ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 2])
def test_taps_see_each_value_before_it_is_overwritten(threads: int) -> None:
    program = chain(5)
    values = [call.outputs[0] for call in program.calls]
    plan = build(program, TARGET, threads, Packs(), values)
    x, z = vector(), vector()
    wanted = [x]
    for _ in values:
        wanted.append(wanted[-1] * 2 + z)
    seen: dict[int, Array] = {}
    (found,) = plan.run([x, z], lambda value, array: seen.setdefault(value, array.copy()) is None)
    assert list(seen) == values
    for value, expected in zip(values, wanted[1:], strict=True):
        np.testing.assert_array_equal(seen[value], expected)
    np.testing.assert_array_equal(found, wanted[-1])
    np.testing.assert_array_equal(plan.run([x, z])[0], found)  # the same plan without looking


def test_a_tap_that_raises_leaves_the_plan_whole() -> None:
    program = chain(3)
    plan = build(program, TARGET, 1, Packs(), [program.calls[0].outputs[0]])
    x, z = vector(), vector()

    def refuse(value: int, array: Array) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        plan.run([x, z], refuse)
    np.testing.assert_array_equal(plan.run([x, z])[0], interpret(program, [x, z])[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_clock_ticks_once_a_step(threads: int) -> None:
    plan = network(threads)
    clock: list[Array] = []
    plan.run([RNG.integers(0, 256, (64, 96)).astype(np.uint8)], clock=clock)
    (ticks,) = clock
    assert len(ticks) == len(plan.names) + 1 == len(plan.kernels) + 1
    assert (np.diff(ticks) > 0).all()
    assert list(dict.fromkeys(plan.names)) == [f"dense {i}" for i in range(3)]  # on some targets a product takes two steps


def test_what_two_models_pack_alike_lies_in_memory_once() -> None:
    one, two, made = Packs(), Packs(), []

    def pack() -> np.ndarray:
        made.append(0)
        return np.arange(1 << 16, dtype=np.uint8) & 63

    first, second = one.get(np.zeros(3), "b", pack), two.get(np.zeros(3), "b", pack)
    assert first is second
    assert len(made) == 2
    other = two.get(np.zeros(3), "b", lambda: pack().view(np.int8))
    assert other.ctypes.data != first.ctypes.data
    small = [packs.get(np.zeros(3), "b", lambda: np.zeros(8, np.uint8)) for packs in (one, two)]
    assert small[0] is not small[1]
    alive = weakref.ref(first)
    del one, two, first, second
    assert alive() is None
