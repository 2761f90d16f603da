"""Tables that follow one another, or a product, become one; what they compute stays."""

from __future__ import annotations

from collections import Counter

import numpy as np
from kernels.check import TARGETS_HERE

from qrt.lower.tables import join_tables
from qrt.ops.conv import Conv, Window
from qrt.ops.gemm import Codes, Weights
from qrt.ops.movement import Copy
from qrt.ops.op import Array, Op, Spec, View
from qrt.ops.program import Program, interpret
from qrt.ops.quantization import Lut
from qrt.ops.resize import Nearest
from qrt.runtime.plan import Packs, build

RNG = np.random.default_rng(0)


def program() -> Program:
    made = Program()
    made.inputs = [made.value(Spec((2, 6, 7, 24), np.dtype(np.uint8)))]
    return made


def look_up(made: Program, value: int) -> int:
    return made.call(Lut(), [value, made.constant(RNG.integers(0, 256, 256).astype(np.uint8))], "lut")[0]


def convolve(made: Program, value: int) -> int:
    w = Weights(RNG.integers(-128, 128, (1, 1, made.specs[value].shape[-1], 40)).astype(np.int8))
    return made.call(Conv(Window((1, 1), (1, 1), (1, 1), (0,) * 4), w, Codes(np.float32([3e-3]), 100), 7), [value], "conv")[0]


def joined(made: Program, *watched: int) -> Counter[type[Op]]:
    """The ops that are left, after they gave what was computed before, on every target."""
    feeds: list[Array] = [RNG.integers(0, 256, (2, 6, 7, 24)).astype(np.uint8)]
    wanted = interpret(made, feeds)
    join_tables(made, watched)
    runs = [interpret(made, feeds), *(build(made, target, threads, Packs()).run(feeds) for target in TARGETS_HERE for threads in (1, 2))]
    for found, expected in ((f, w) for run in runs for f, w in zip(run, wanted, strict=True)):
        np.testing.assert_array_equal(found, expected)
    return Counter(type(call.op) for call in made.calls)


def test_a_product_takes_all_that_follow() -> None:
    made = program()
    value = convolve(made, made.inputs[0])
    for _ in range(3):
        value = look_up(made, value)
    made.outputs = [value]
    assert joined(made) == {Conv: 1}


def test_tables_become_one() -> None:
    made = program()
    made.outputs = [look_up(made, look_up(made, made.inputs[0]))]
    assert joined(made) == {Lut: 1}


def test_codes_are_looked_up_before_they_are_repeated() -> None:
    made = program()
    (large,) = made.call(Nearest(1, (0, 0, 1, 1, 5), (0, 3, 3)), [convolve(made, made.inputs[0])], "resize")
    (flat,) = made.call(View((30, 40)), [large], "view")
    made.outputs = [look_up(made, flat)]
    assert joined(made) == {Conv: 1, Nearest: 1, View: 1}


def test_what_others_read_is_computed() -> None:
    made = program()
    first = convolve(made, made.inputs[0])
    (own,) = made.call(Copy(), [first], "own")
    second = look_up(made, first)
    third = look_up(made, second)
    made.outputs = [own, second, look_up(made, third)]
    assert joined(made) == {Conv: 1, Copy: 1, Lut: 2}


def test_what_is_watched_is_computed() -> None:
    made = program()
    first = convolve(made, made.inputs[0])
    second = look_up(made, first)
    made.outputs = [look_up(made, second)]
    assert joined(made, first) == {Conv: 1, Lut: 1}


def test_tables_that_are_computed_stay() -> None:
    made = program()
    made.inputs.append(made.value(Spec((256,), np.dtype(np.uint8))))
    made.outputs = list(made.call(Lut(), [convolve(made, made.inputs[0]), made.inputs[1]], "lut"))
    join_tables(made)
    assert Counter(type(call.op) for call in made.calls) == {Conv: 1, Lut: 1}


def test_codes_of_int8() -> None:
    """A table that leaves uint8 stays a step of its own behind a product, and joins another table."""
    made = program()
    table = made.constant(RNG.integers(-128, 128, 256).astype(np.int8))
    (value,) = made.call(Lut(), [look_up(made, convolve(made, made.inputs[0])), table], "lut")
    made.outputs = [value]
    assert joined(made) == {Conv: 1, Lut: 1}
    made = program()
    (value,) = made.call(Lut(), [made.inputs[0], made.constant(RNG.integers(-128, 128, 256).astype(np.int8))], "lut")
    made.outputs = [look_up(made, value)]
    assert joined(made) == {Lut: 1}
