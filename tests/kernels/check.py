"""What every kernel test does: one op as a program, by its NumPy reference and by its kernels, on every target this machine runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qrt.core.dtypes import dtype_of
from qrt.core.errors import InvalidInput
from qrt.core.target import TARGETS, Target
from qrt.jit.host import host_target
from qrt.ops.op import Array, Op, Spec
from qrt.ops.program import Program, interpret
from qrt.runtime.plan import Packs, build


def runnable_targets() -> Iterator[Target]:
    """The targets whose code this machine can run."""
    for target in TARGETS:
        try:
            yield host_target(target.isa)
        except InvalidInput:
            continue


TARGETS_HERE = tuple(dict.fromkeys(runnable_targets()))
if any(target.isa == "amx" for target in TARGETS_HERE):  # which runs every kernel of avx512vbmi
    TARGETS_HERE = tuple(target for target in TARGETS_HERE if target.isa != "avx512vbmi")


def program_of(op: Op, inputs: Sequence[Array], constants: Sequence[int] = ()) -> tuple[Program, list[Array]]:
    """The program of one op, and the feeds of those inputs that are not among `constants`."""
    program = Program()
    values, feeds = [], []
    for index, array in enumerate(inputs):
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        if index in constants:
            values.append(program.constant(array))
            continue
        values.append(program.value(Spec(array.shape, array.dtype)))
        program.inputs.append(values[-1])
        feeds.append(array)
    program.outputs = list(program.call(op, values, "op"))
    return program, feeds


def check(
    op: Op,
    inputs: Sequence[Array],
    exact: bool = True,
    constants: Sequence[int] = (),
    rtol: float = 1e-5,
    atol: float = 1e-6,
    targets: Sequence[Target] = TARGETS_HERE,
) -> list[Array]:
    """The op's outputs by its reference, after its kernels gave the same for every one of `targets` and for 1 and 2 threads.

    `exact`: bit for bit; else within `rtol` and `atol`. `constants`: the inputs whose contents are known to the plan.
    """
    program, feeds = program_of(op, inputs, constants)
    wanted = interpret(program, feeds)
    for target in targets:
        for threads in (1, 2):
            found = build(program, target, threads, Packs()).run(feeds)
            where = f"{op} on {target.isa}, {threads} threads"
            for expected, got in zip(wanted, found, strict=True):
                assert (got.shape, got.dtype) == (expected.shape, expected.dtype), where
                if got.dtype == dtype_of("bfloat16"):  # which NumPy has no comparison with NaN for
                    got, expected = got.astype(np.float32), expected.astype(np.float32)
                if exact:
                    np.testing.assert_array_equal(got, expected, where)
                else:
                    np.testing.assert_allclose(got, expected, rtol, atol, err_msg=where)
    return wanted


def check_same_bits(op: Op, inputs: Sequence[Array]) -> None:
    """Every target and any number of threads give the same bits."""
    program, feeds = program_of(op, inputs)
    results = [build(program, target, threads, Packs()).run(feeds)[0].tobytes() for target in TARGETS_HERE for threads in (1, 2, 3)]
    assert len(set(results)) == 1
