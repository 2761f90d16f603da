"""Memory of outputs: it is written again once nobody sees it, never before, and no more of it is kept than is said."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from threads import check_threads_end

from qrt.core.errors import InvalidInput
from qrt.jit.host import host_target
from qrt.ops.elementwise import Unary
from qrt.ops.op import Array, Spec
from qrt.ops.program import Program
from qrt.runtime import outputs
from qrt.runtime.plan import Packs, Plan, build

N = 1000


def plan_of(n: int = N, results: int = 1) -> Plan:
    """−x, as often as asked for."""
    program = Program()
    x = program.value(Spec((n,), np.dtype(np.float32)))
    program.inputs = [x]
    program.outputs = [program.call(Unary("neg"), [x], f"negate {i}")[0] for i in range(results)]
    return build(program, host_target(), 1, Packs())


def filled(value: float, n: int = N) -> Array:
    return np.full(n, value, np.float32)


def result(plan: Plan, value: float, n: int = N) -> Array:
    return plan.run([filled(value, n)])[0]


def addresses(plan: Plan, runs: int, held: int) -> set[int]:
    """Where the outputs of `runs` runs lie, for a caller who holds the last `held`."""
    found, results = set(), deque[Array](maxlen=held)
    for i in range(runs):
        y = result(plan, i)
        found.add(y.ctypes.data)
        results.append(y)
        del y
    return found


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_counted", 0)


# -- what is seen is not written ------------------------------------------------------------------------------------------
def base(y: Array) -> Array:
    assert isinstance(y.base, np.ndarray)
    return y.base


class Own(np.ndarray):
    """Somebody's class of arrays."""


SEERS: dict[str, Callable[[Array], object]] = {
    "the array": lambda y: y,
    "a slice": lambda y: y[3:],
    "one element": lambda y: y[5:6],
    "a slice of a slice": lambda y: y[3:][2:],
    "another shape": lambda y: y.reshape(10, -1).T,
    "another dtype": lambda y: y.view(np.uint8)[7:],
    "another class": lambda y: y.view(Own)[1:],
    "its base": base,
    "strides": lambda y: np.lib.stride_tricks.sliding_window_view(y, 4),
    "memoryview": memoryview,
    "memoryview of a slice": lambda y: memoryview(y)[2:],
    "an array of a memoryview": lambda y: np.asarray(memoryview(y)),
    "frombuffer": lambda y: np.frombuffer(y, np.float32),
    "DLPack": np.from_dlpack,
    "ctypes": lambda y: (ctypes.c_float * N).from_buffer(y),
    "a pointer of ctypes": lambda y: y.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
    "an iterator": lambda y: y.flat,
    "pickle's buffer": pickle.PickleBuffer,
    "a cycle": lambda y: (box := [y], box.append(box)),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("how", SEERS)
def test_what_is_seen_in_any_way_is_not_written(how: str) -> None:
    plan = plan_of()
    y = result(plan, 1)
    where = ctypes.c_float.from_address(y.ctypes.data + 20)
    seer = SEERS[how](y)
    del y
    for held in (0, 1, 6):
        addresses(plan, 20, held)
        assert where.value == -1
    del seer


def test_what_is_seen_late_in_a_run_is_not_written() -> None:
    """A result that goes into the next run, and what is taken in between."""
    plan = plan_of()
    y = result(plan, 1)
    for i in range(2, 20):
        (y,) = plan.run([y])
        assert (y == (-1) ** i).all()


def test_results_of_many_threads_stay_what_they_are() -> None:
    plans = [plan_of(), plan_of(results=3)]
    wrong: list[float] = []

    def work(seed: int) -> None:
        held: list[tuple[float, list[Array]]] = []
        rng = np.random.default_rng(seed)
        for i in range(400):
            value = float(seed * 1000 + i)
            held.append((value, [y[::2] for y in plans[i % 2].run([filled(value)])]))
            if rng.random() < 0.1:
                outputs._count(outputs.MOST_BYTES)  # everybody forgets, in the middle of other runs
            wrong.extend(value for value, ys in held if not all((y == -value).all() for y in ys))
            held = held[int(rng.integers(0, 7)) :]

    check_threads_end(work, range(6))
    assert not wrong


def test_arrays_that_die_in_another_thread_come_back() -> None:
    plan, first = plan_of(), list[int]()

    def work() -> None:
        first.append(result(plan, 1).ctypes.data)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert addresses(plan, 3, 0) == set(first)


# -- what nobody sees comes back ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("held", [0, 1, 2, 3])
def test_memory_comes_back(held: int) -> None:
    assert len(addresses(plan_of(), 20, held)) == held + 1


def test_memory_comes_back_from_a_caller_who_keeps_some_for_ever() -> None:
    plan = plan_of()
    kept = [result(plan, i) for i in range(10)]
    assert len(addresses(plan, 20, 1)) == 2
    assert all((y == -i).all() for i, y in enumerate(kept))


def test_outputs_of_one_run_lie_apart() -> None:
    plan = plan_of(results=3)
    for _ in range(3):
        found = plan.run([filled(2)])
        assert len({y.ctypes.data for y in found}) == 3


def test_an_output_without_elements() -> None:
    for _ in range(3):
        assert result(plan_of(0), 1, 0).shape == (0,)


# -- what is kept ---------------------------------------------------------------------------------------------------------
def alive(references: Sequence[weakref.ref[Array]]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


def memory_of(plan: Plan, runs: int) -> Iterator[list[weakref.ref[Array]]]:
    """The memory of as many results, first while they are held and then when they are not."""
    held = [result(plan, i) for i in range(runs)]
    found = [weakref.ref(base(y)) for y in held]
    yield found
    held.clear()
    yield found


def test_some_arrays_are_kept_for_each_output() -> None:
    held, dropped = memory_of(plan_of(), 50)
    assert alive(held) == alive(dropped) <= outputs.MOST


def test_the_memory_of_a_plan_goes_with_it_and_with_the_last_array() -> None:
    plan = plan_of()
    y = result(plan, 1)
    reference = weakref.ref(base(y))
    del plan
    assert alive([reference]) == 1
    assert (y == -1).all()
    del y
    assert alive([reference]) == 0


def test_what_all_plans_keep_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MOST_BYTES", 5 * 4 * N)
    plans = [plan_of() for _ in range(20)]
    references = [weakref.ref(base(result(plan, 1))) for plan in plans]
    assert 1 <= alive(references) <= 5
    addresses(plans[-1], 5, 1)
    assert len(addresses(plans[-1], 20, 1)) == 2  # which is no reason to start again and again


def test_what_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    small = plan_of(10)
    monkeypatch.setattr(outputs, "MOST_BYTES", 4 * N - 1)
    kept, large = weakref.ref(base(result(small, 1, 10))), plan_of()
    assert alive([weakref.ref(base(result(large, 1))) for _ in range(3)]) == 0
    assert alive([kept]) == 1  # nor does it cost others what they keep


# -- what callers get -----------------------------------------------------------------------------------------------------
def test_results_are_plain_arrays_of_the_caller() -> None:
    plan = plan_of()
    y = result(plan, 1)
    assert type(y) is np.ndarray
    assert (y.shape, y.dtype) == ((N,), np.float32)
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert y.flags.aligned
    for other in (copy.copy(y), copy.deepcopy(y), pickle.loads(pickle.dumps(y)), pickle.loads(pickle.dumps(y, 5))):
        assert not np.shares_memory(y, other)
        np.testing.assert_array_equal(y, other)


def test_what_a_caller_does_to_a_result_stays_with_it() -> None:
    plan = plan_of()
    y = result(plan, 1)
    y.shape = (N // 2, 2)  # type: ignore[misc]
    y.dtype = np.dtype(np.int32)  # type: ignore[misc]
    y[...] = 7
    y.setflags(write=False)
    where = y.ctypes.data
    del y
    y = result(plan, 2)
    assert y.ctypes.data == where
    assert y.flags.writeable
    assert (y.shape, y.dtype) == ((N,), np.float32)
    assert (y == -2).all()


def test_a_forked_child_writes_to_memory_of_its_own() -> None:
    plan = plan_of()
    y = result(plan, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Python 3.12 on, forking with threads warns
        child = os.fork()
    if child == 0:
        held = [y, *(result(plan, i) for i in range(2, 9))]
        fine = all((each == -1 - i).all() for i, each in enumerate(held))
        del held, y
        result(plan, 9)
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (y == -1).all()


def test_a_run_that_fails_keeps_nothing_from_others() -> None:
    plan = plan_of()
    y = result(plan, 1)
    for _ in range(3):
        with pytest.raises((InvalidInput, IndexError)):
            plan.run([])
    assert (y == -1).all()
    assert (result(plan, 2) == -2).all()
