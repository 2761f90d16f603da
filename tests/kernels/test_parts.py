"""Programs of values that lie in parts of concatenations: whatever makes them, whoever else reads them, the interpreter's bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from kernels.check import TARGETS_HERE

from qrt.core.target import Target
from qrt.ops.conv import Conv, Depthwise, Window
from qrt.ops.elementwise import Unary
from qrt.ops.gemm import Codes, CodesAdd, Dense, Epilogue, Float, Weights
from qrt.ops.movement import Concat, Copy, Slice, Transpose
from qrt.ops.op import Op, Spec, View
from qrt.ops.pool import MaxPool, QAveragePool
from qrt.ops.program import Program, interpret
from qrt.ops.quantization import Lut, QBinary
from qrt.ops.resize import Nearest, QLinear
from qrt.runtime.plan import Packs, Plan, build

U8 = np.dtype(np.uint8)


def codes(rng: np.random.Generator) -> Codes:
    return Codes(np.float32([rng.uniform(1e-3, 4e-3)]), int(rng.integers(256)))


def weights(rng: np.random.Generator, *shape: int) -> Weights:
    return Weights(rng.integers(-128, 128, shape).astype(np.int8))


def window(side: int, stride: int = 1) -> Window:
    return Window((side, side), (stride, stride), (1, 1), (side // 2,) * 4)


def convolution(rng: np.random.Generator, c: int, n: int, side: int, epilogue: Epilogue | None = None) -> Op:
    return Conv(window(side), weights(rng, 1, side * side, c, n), epilogue or codes(rng), int(rng.integers(256)))


# What makes a value of `n` channels from codes [N, H, W, c] and keeps N, H and W: name → (rng, program, value, n) → value.
Maker = Callable[[np.random.Generator, Program, int, int], int]


def _looked_up(side: int) -> Maker:
    """A convolution whose codes are looked up: as they are stored, or by a step of its own."""

    def maker(rng: np.random.Generator, program: Program, value: int, n: int) -> int:
        epilogue = replace(codes(rng), table=rng.integers(0, 256, 256).astype(np.uint8))
        return program.call(convolution(rng, program.specs[value].shape[-1], n, side, epilogue), [value], "looked up")[0]

    return maker


def _same(make: Callable[[np.random.Generator, int], Op]) -> Maker:
    """What keeps the channels: those wanted come from a product before it."""

    def maker(rng: np.random.Generator, program: Program, value: int, n: int) -> int:
        c = program.specs[value].shape[-1]
        (value,) = program.call(convolution(rng, c, n, 1), [value], "point")
        return program.call(make(rng, n), [value], "op")[0]

    return maker


def _lut(rng: np.random.Generator, program: Program, value: int, n: int) -> int:
    (value,) = program.call(convolution(rng, program.specs[value].shape[-1], n, 1), [value], "point")
    table = program.constant(rng.integers(0, 256, 256).astype(np.uint8))
    return program.call(Lut(), [value, table], "lut")[0]


def _sum(rng: np.random.Generator, program: Program, value: int, n: int) -> int:
    a, b = (_lut(rng, program, value, n) for _ in range(2))
    return program.call(QBinary("add", 0.02, 100, 0.03, 90, 0.04, 110), [a, b], "add")[0]


def _residual(rng: np.random.Generator, program: Program, value: int, n: int) -> int:
    other = _lut(rng, program, value, n)
    epilogue = CodesAdd(codes(rng), 0.5, 0.7, 100, 90)
    return program.call(convolution(rng, program.specs[value].shape[-1], n, 1, epilogue), [value, other], "residual")[0]


def _dense(rng: np.random.Generator, program: Program, value: int, n: int) -> int:
    shape = program.specs[value].shape
    (flat,) = program.call(View((shape[0] * shape[1] * shape[2], shape[3])), [value], "flat")
    (flat,) = program.call(Dense(weights(rng, 1, 1, shape[3], n), codes(rng), 7), [flat], "dense")
    return program.call(View((*shape[:3], n)), [flat], "image")[0]


def _turned(rng: np.random.Generator, program: Program, value: int, n: int) -> int:
    value = _lut(rng, program, value, n)
    (value,) = program.call(Transpose((0, 3, 1, 2)), [value], "channels first")
    return program.call(Transpose((0, 2, 3, 1)), [value], "channels last")[0]


def _up(rng: np.random.Generator, program: Program, value: int, n: int) -> int:
    shape = program.specs[value].shape
    value = _lut(rng, program, value, n)
    half = Slice((0, 0, 0, 0), (shape[0], -(-shape[1] // 2), -(-shape[2] // 2), n), (1, 2, 2, 1))
    (value,) = program.call(half, [value], "half")
    rows, columns = (tuple(i // 2 for i in range(extent)) for extent in shape[1:3])
    if rng.integers(2):
        return program.call(Nearest(1, rows, columns), [value], "up")[0]
    places = tuple(map(float, rows)), tuple(map(float, columns))
    return program.call(QLinear(1, *places, 0.02, 3, 0.03, 100), [value], "up")[0]


def _cut(rng: np.random.Generator, program: Program, value: int, n: int) -> int:
    """Channels from the middle of more, convolved or not."""
    value = _lut(rng, program, value, n + 24)
    shape = program.specs[value].shape
    (value,) = program.call(Slice((0, 0, 0, 5), (*shape[:3], n), (1, 1, 1, 1)), [value], "cut")
    return program.call(convolution(rng, n, n, int(rng.choice([1, 3]))), [value], "after")[0] if rng.integers(2) else value


MAKERS: dict[str, Maker] = {
    "cut": _cut,
    "point": lambda rng, program, value, n: program.call(convolution(rng, program.specs[value].shape[-1], n, 1), [value], "1x1")[0],
    "conv": lambda rng, program, value, n: program.call(convolution(rng, program.specs[value].shape[-1], n, 3), [value], "3x3")[0],
    "depthwise": _same(lambda rng, n: Depthwise(window(3), weights(rng, n, 9, 1, 1), codes(rng), int(rng.integers(256)))),
    "pool": _same(lambda rng, n: MaxPool(window(3))),
    "average": _same(lambda rng, n: QAveragePool(window(3), None, 0.02, 3, 0.02, 5)),
    "copy": _same(lambda rng, n: Copy()),
    "point looked up": _looked_up(1),
    "conv looked up": _looked_up(3),
    "lut": _lut,
    "sum": _sum,
    "residual": _residual,
    "dense": _dense,
    "turned": _turned,
    "up": _up,
}


def check(program: Program, targets: Sequence[Target] = TARGETS_HERE) -> list[Plan]:
    """Plans for every target and one and two threads, after each gave the interpreter's bits."""
    rng = np.random.default_rng(0)
    feeds = [rng.integers(0, 256, program.specs[v].shape).astype(program.specs[v].dtype) for v in program.inputs]
    wanted = interpret(program, feeds)
    plans = []
    for target in targets:
        for threads in (1, 2):
            plans.append(build(program, target, threads, Packs()))
            for expected, found in zip(wanted, plans[-1].run(feeds), strict=True):
                np.testing.assert_array_equal(found, expected, f"{target.isa}, {threads} threads")
    return plans


def copies(plan: Plan) -> int:
    return sum(kernel.startswith("copy_b1_rows") for kernel in plan.kernels)


def image(*shape: int) -> Program:
    program = Program()
    program.inputs = [program.value(Spec(shape, U8))]
    return program


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("residual", "up", "turned", "copy", "cut")])
@pytest.mark.parametrize(("batch", "channels"), [(1, (24, 64)), (2, (5, 96))])
def test_parts_are_written_where_they_belong(name: str, batch: int, channels: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    program = image(batch, 9, 10, 20)
    parts = [MAKERS[name](rng, program, program.inputs[0], n) for n in channels]
    (joined,) = program.call(Concat(3), parts, "join")
    program.outputs = list(program.call(convolution(rng, sum(channels), 16, 1), [joined], "after"))
    assert [copies(plan) for plan in check(program)] == [0] * 2 * len(TARGETS_HERE)


@pytest.mark.parametrize("seed", range(12))
def test_any_program(seed: int) -> None:
    """Two to five parts of ragged channels, some of which are concatenations or have more readers, are inputs or outputs."""
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(1, 3))
    program = image(batch, int(rng.integers(5, 9)), int(rng.integers(5, 9)), int(rng.choice([3, 16, 40])))
    values = list(program.inputs)
    names = list(MAKERS)

    def make(value: int) -> int:
        n = int(rng.choice([1, 3, 8, 16, 32, 33, 64, 80]))
        return MAKERS[names[rng.integers(len(names))]](rng, program, value, n)

    for _ in range(4):
        parts = [make(values[rng.integers(len(values))]) for _ in range(rng.integers(1, 4))]
        parts += [values[rng.integers(len(values))] for _ in range(rng.integers(1, 3))]
        order = rng.permutation(len(parts))
        values += [*parts, *program.call(Concat(3), [parts[k] for k in order], "join")]
    wanted: list[int] = []
    for value in (values[-1], *rng.choice(values[1:], 2)):
        (own,) = program.call(Copy(), [int(value)], "own")
        wanted.append(own)
    if values[-2] not in program.inputs and rng.integers(2) and program.roots()[values[-2]] == values[-2]:
        wanted.append(values[-2])
    program.outputs = list(dict.fromkeys(wanted))
    check(program)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_other_axes_of_a_batch(axis: int) -> None:
    rng = np.random.default_rng(axis)
    program = image(2, 6, 7, 16)
    names = ("point", "conv", "lut", "pool", "depthwise", "turned", "point looked up", "conv looked up")
    parts = [MAKERS[name](rng, program, program.inputs[0], 16) for name in names]
    program.outputs = list(program.call(Concat(axis), parts, "join"))
    check(program)


def test_floats() -> None:
    """Sigmoids and products of floats, of whole vectors and of others."""
    rng = np.random.default_rng(3)
    program = Program()
    program.inputs = [program.value(Spec((2, 5, 7, 16), np.dtype(np.float32)))]
    parts = []
    for n in (4, 1, 80):
        w = Weights(rng.standard_normal((1, 1, 16, n)).astype(np.float32))
        (value,) = program.call(Conv(Window((1, 1), (1, 1), (1, 1), (0,) * 4), w, Float()), program.inputs, "conv")
        parts.append(value if n == 4 else program.call(Unary("sigmoid"), [value], "sigmoid")[0])
    (joined,) = program.call(Concat(3), parts, "join")
    (flat,) = program.call(View((2, 35, 85)), [joined], "flat")
    other = program.call(Unary("neg"), [flat], "neg")[0]
    program.outputs = list(program.call(Concat(1), [flat, other], "levels"))
    x = rng.standard_normal((2, 5, 7, 16)).astype(np.float32)
    (wanted,) = interpret(program, [x])
    for target in TARGETS_HERE:
        for threads in (1, 2):
            (found,) = build(program, target, threads, Packs()).run([x])
            np.testing.assert_allclose(found, wanted, 1e-4, 1e-5)


def test_halves_are_read_where_they_lie() -> None:
    """A split, as residual blocks of detectors have it: one half through a convolution, both concatenated again."""
    rng = np.random.default_rng(5)
    program = image(2, 9, 9, 24)
    whole = _lut(rng, program, program.inputs[0], 64)
    first, second = (program.call(Slice((0, 0, 0, c), (2, 9, 9, 32), (1, 1, 1, 1)), [whole], "split")[0] for c in (0, 32))
    others = [
        *(program.call(convolution(rng, 32, 24, side), [second], "conv")[0] for side in (1, 3)),
        program.call(Depthwise(window(3), weights(rng, 32, 9, 1, 1), codes(rng), 3), [second], "depthwise")[0],
        program.call(MaxPool(window(5)), [first], "pool")[0],
        program.call(QBinary("add", 0.02, 1, 0.03, 2, 0.05, 3), [first, second], "add")[0],
        program.call(Lut(), [first, program.constant(rng.integers(0, 256, 256).astype(np.uint8))], "lut")[0],
    ]
    program.outputs = list(program.call(Concat(3), others, "join"))
    assert {copies(plan) for plan in check(program)} == {0}


def test_readers_of_parts() -> None:
    """A value that is convolved, pooled, looked up, added and concatenated once more lies in its part for all of them."""
    rng = np.random.default_rng(4)
    program = image(1, 12, 12, 24)
    shared = _lut(rng, program, program.inputs[0], 40)
    others = [
        *(program.call(convolution(rng, 40, 24, side), [shared], "conv")[0] for side in (1, 3)),
        program.call(Depthwise(window(3), weights(rng, 40, 9, 1, 1), codes(rng), 3), [shared], "depthwise")[0],
        program.call(Conv(window(3, 2), weights(rng, 1, 9, 40, 48), codes(rng), 9), [shared], "stride")[0],
        program.call(MaxPool(window(5)), [shared], "pool")[0],
        program.call(QBinary("add", 0.02, 1, 0.03, 2, 0.05, 3), [shared, shared], "add")[0],
        program.call(Lut(), [shared, program.constant(rng.integers(0, 256, 256).astype(np.uint8))], "lut")[0],
        program.call(Transpose((0, 2, 1, 3)), [shared], "turn")[0],
    ]
    whole = [v for v in others if program.specs[v].shape[1] == 12]
    (joined,) = program.call(Concat(3), [whole[0], shared, *whole[1:]], "join")
    program.outputs = [*program.call(Copy(), [joined], "own"), others[3]]
    plans = check(program)
    assert {copies(plan) for plan in plans} == {2}  # what turns the axes, and the copy that is asked for
