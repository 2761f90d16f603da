"""The device kernels of floats, by their source in the emulator (and on a GPU where there is one), against the ops' references."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES
from kernels.check import TARGETS_HERE, program_of
from kernels.products import floats
from kernels.test_math import nearest

from qrt.core.dtypes import dtype_of
from qrt.core.errors import UnsupportedOp
from qrt.jit.lang.cuda_twins import TWINS
from qrt.ops.elementwise import SIXTEEN, Binary, Cast, Unary, Where
from qrt.ops.elementwise.device import BINARY, CAST, INTEGERS, UNARY
from qrt.ops.elementwise.unary import UNARY as ROWS
from qrt.ops.normalization import ImageNorm, LayerNorm, LpNorm, RmsNorm, ScaledSoftmax, Softmax
from qrt.ops.op import Array, Op
from qrt.ops.program import interpret
from qrt.ops.quantization import DynamicQuantize, device_dynamic
from qrt.ops.reduction import ArgReduce, CumSum, Reduce
from qrt.ops.reduction.device import CUMSUM
from qrt.ops.reduction.reduce import KINDS
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs
from qrt.runtime.plan import build

RNG = np.random.default_rng(0)
SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38, 1, -1, 0.5, 2.5, -87.5, 88.8, 1e-3], np.float32)


def check(device: Any, op: Op, inputs: Sequence[Array], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """The op's outputs by its device kernels: those of its reference, integers bit for bit."""
    program, feeds = program_of(op, inputs)
    plan = DevicePlan(program, device, Packs())
    for wanted, found in zip(interpret(program, feeds), plan.run(feeds), strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(found, wanted, rtol, atol, err_msg=str(op))
        elif wanted.dtype == dtype_of("bfloat16"):
            np.testing.assert_array_equal(found.view(np.uint16), wanted.view(np.uint16), str(op))
        else:
            np.testing.assert_array_equal(found, wanted, str(op))
    plan.close()


@pytest.mark.parametrize("name", UNARY)
def test_unary(device: Any, name: str) -> None:
    op = Unary(name, (0.3, 0.7)[: ROWS[name].params])
    x = np.concatenate([SPECIAL, floats(27) * 3])
    if name in ("mish", "swish", "gelu", "gelu_tanh", "hard_swish"):  # ∞ · 0 of one definition is a limit of the other
        x = np.where(np.abs(x) > 80, np.float32(3), x)
    check(device, op, [x])


# Same shapes, a row, a column, one number, ragged ends, and more axes than walk as one.
SHAPES = [
    ((3, 8), (3, 8)),
    ((3, 8), (1, 8)),
    ((3, 8), (3, 1)),
    ((5, 7), (1, 1)),
    ((1, 1), (2, 5)),
    ((2, 1, 3, 4), (2, 5, 1, 4)),
    ((2, 1, 3, 1, 2, 1), (1, 3, 1, 2, 1, 3)),
]


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_broadcasting(device: Any, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    check(device, Binary("sub"), [floats(*left), floats(*right)], 0, 0)


@pytest.mark.parametrize("name", BINARY)
def test_binary(device: Any, name: str) -> None:
    a, b = (v.reshape(1, -1) for v in np.meshgrid(SPECIAL[:8], SPECIAL[:8]))
    check(device, Binary(name), [np.tile(a, (1, 1)), b], 0, 0)


def whole(dtype: str, n: int) -> Array:
    """Numbers of the dtype's whole range, the extremes among them."""
    if dtype == "bool":
        return RNG.random(n) < 0.5
    bounds = np.iinfo(dtype)
    x = RNG.integers(bounds.min, bounds.max, n, dtype=dtype, endpoint=True)
    x[:4] = bounds.min, bounds.max, 0, 1
    return x


@pytest.mark.parametrize(("name", "dtype"), INTEGERS)
def test_binary_of_integers(device: Any, name: str, dtype: str) -> None:
    check(device, Binary(name), [whole(dtype, 15).reshape(3, 5), whole(dtype, 5).reshape(1, 5)])


@pytest.mark.parametrize("dtype", ["float32", "bool", "int64"])
@pytest.mark.parametrize("shape", [(4, 6), (1, 1), (4, 1)])
def test_where(device: Any, shape: tuple[int, ...], dtype: str) -> None:
    check(device, Where(), [RNG.random((4, 6)) < 0.5, RNG.integers(0, 9, shape).astype(dtype), RNG.integers(0, 9, (4, 6)).astype(dtype)])


@pytest.mark.parametrize(("source", "result"), CAST)
def test_cast(device: Any, source: str, result: str) -> None:
    if source in SIXTEEN:
        x = np.linspace(0, 0xFFFF, 997).astype(np.uint16).view(dtype_of(source))
    else:
        x = np.concatenate([SPECIAL, floats(27) * 99]) if source == "float32" else whole(source, 13)
    check(device, Cast(result), [x], 0, 0)


def test_not(device: Any) -> None:
    check(device, Unary("not"), [whole("bool", 9)])


def test_what_has_no_kernel_is_refused(device: Any) -> None:
    for op, inputs in ((Unary("tan"), [floats(3)]), (Binary("div"), [np.arange(3), np.arange(3)]), (Cast("int16"), [floats(3)])):
        with pytest.raises(UnsupportedOp, match="CUDA"):
            check(device, op, inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "first", "last"), [((3, 70), 1, 2), ((2, 3, 5), 1, 2), ((2, 32, 1), 1, 3), ((9,), 0, 1)])
def test_reduce(device: Any, kind: str, shape: tuple[int, ...], first: int, last: int) -> None:
    check(device, Reduce(kind, first, last), [floats(*shape)])


def test_of_nothing(device: Any) -> None:
    check(device, Reduce("sum", 1, 2), [floats(3, 0)])
    check(device, Reduce("prod", 1, 2), [floats(3, 0, 2)])


@pytest.mark.parametrize("kind", ["max", "min"])
@pytest.mark.parametrize("last", [False, True])
def test_arg(device: Any, kind: str, last: bool) -> None:
    x = RNG.integers(-3, 4, (4, 75)).astype(np.float32)
    x[1, [20, 60]] = np.nan
    check(device, ArgReduce(kind, 1, last), [x])
    check(device, ArgReduce(kind, 1, last), [x[:, :6].reshape(2, 4, 3)])


@pytest.mark.parametrize("dtype", CUMSUM)
@pytest.mark.parametrize(("shape", "axis"), [((3, 7), 1), ((2, 5, 3), 1), ((6, 300), 0), ((4, 1), 1)])
def test_cumsum(device: Any, dtype: str, shape: tuple[int, ...], axis: int) -> None:
    x = floats(*shape) if dtype == "float32" else whole(dtype, math.prod(shape)).reshape(shape)  # whose sums wrap
    for exclusive in (False, True):
        for reverse in (False, True):
            check(device, CumSum(axis, exclusive, reverse), [x], 0, 0)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((3, 7), 1), ((2, 64), 1), ((1, 100), 1), ((2, 5, 3), 1), ((6, 4), 0)])
def test_softmax(device: Any, shape: tuple[int, ...], axis: int, log: bool) -> None:
    x = floats(*shape) * 5
    x.reshape(-1)[2] = -np.inf
    check(device, Softmax(axis, log), [x])


def test_softmax_of_scores(device: Any) -> None:
    check(device, ScaledSoftmax(0.3), [floats(2, 3, 5, 9)])
    check(device, ScaledSoftmax(0.3), [floats(2, 3, 5, 9), floats(2, 1, 1, 9)])


@pytest.mark.parametrize("n", [5, 32, 70])
def test_norms_of_rows(device: Any, n: int) -> None:
    x, scale, bias = floats(3, n), floats(n), floats(n)
    check(device, LayerNorm(1, 1e-5), [x, scale, bias])
    check(device, LayerNorm(1, 1e-5), [x, scale])
    check(device, LayerNorm(1, 1e-5, True), [x, floats(3, n), scale, bias])
    check(device, RmsNorm(1, 1e-5), [x, scale])
    x[1] = 0
    check(device, LpNorm(1), [x])
    check(device, LpNorm(2), [x])


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_norm_of_images(device: Any, groups: int) -> None:
    check(device, ImageNorm(groups, 1e-5), [floats(2, 7, 9, 6) + 1, floats(6), floats(6)])


SAME = [
    *(Unary("gelu"), Unary("tanh"), Unary("sin"), Unary("cos"), Binary("pow")),
    *(Softmax(1), Softmax(1, True), Reduce("mean", 1, 2), LpNorm(2)),
]


@pytest.mark.parametrize("op", SAME, ids=str)
def test_the_same_bits_as_on_the_cpu(device: Any, op: Op) -> None:
    """The formulas and the orders of sums are the CPU's."""
    x = floats(3, 70)
    x[:, :6] *= np.logspace(2, 37, 6, dtype=np.float32)
    program, feeds = program_of(op, [np.abs(x), floats(3, 70)] if isinstance(op, Binary) else [x])
    (wanted,) = build(program, TARGETS_HERE[0], 1, Packs()).run(feeds)
    (found,) = DevicePlan(program, device, Packs()).run(feeds)
    np.testing.assert_array_equal(found, wanted)


def test_the_twin_of_fma_rounds_once() -> None:
    """Ties between two float32, and numbers so near to one that float64 takes them for one."""
    x, y = np.full(300, 4097, np.float32), (4099 + 2 * RNG.integers(0, 100, 300)).astype(np.float32)
    z = RNG.choice(np.array([0, 1, 3, 2.0**-40, -(2.0**-40), 1e-45, -1e-45, 2.0**-20], np.float32), 300)
    wanted = [nearest(Fraction(a) * Fraction(b) + Fraction(c)) for a, b, c in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)]
    np.testing.assert_array_equal(TWINS["fma"](x, y, z), wanted)
    with np.errstate(all="ignore"):
        for a, b, c in itertools.product(np.array([np.inf, -np.inf, np.nan, 3e38, 0, -1], np.float32), repeat=3):
            np.testing.assert_array_equal(TWINS["fma"](a, b, c), np.float32(np.float64(a) * np.float64(b) + np.float64(c)))


@pytest.mark.parametrize("n", [1, 15, 16, 67, 700])
def test_dynamic_quantize(device: Any, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_dynamic, "PART", 128)
    r = floats(n) * 3
    for x in (r, np.abs(r) + 1, -np.abs(r) - 1, np.zeros_like(r), np.where(np.arange(n) == n // 2, np.float32(np.nan), r)):
        check(device, DynamicQuantize(), [x], 0, 0)


def test_dynamic_quantize_of_nothing(device: Any) -> None:
    check(device, DynamicQuantize(), [floats(0)], 0, 0)


def near(length: int, width: int) -> Array:
    """What transformers have between layers: numbers around 0, some far out."""
    x = floats(length, width)
    x[:, 7] *= 30
    return x


@pytest.mark.gpu
def test_large(gpu: Any) -> None:
    """Several blocks, whole and ragged."""
    x = near(512, 1531)
    for op in (Unary("gelu"), Unary("exp"), Softmax(1), Softmax(1, True), Softmax(0), Reduce("mean", 1, 2), Reduce("max", 0, 1), LpNorm(2)):
        check(gpu, op, [x], 1e-5, 1e-5)
    check(gpu, LayerNorm(1, 1e-12), [x, floats(1531), floats(1531)], 1e-4, 1e-4)
    check(gpu, Binary("add"), [x.reshape(4, 128, 1531), floats(4, 1, 1531)], 0, 0)
    check(gpu, Binary("div"), [near(512, 1536), floats(512, 1)], 0, 0)
    check(gpu, ArgReduce("max", 1), [x])
    check(gpu, ImageNorm(8, 1e-5), [floats(4, 60, 57, 64), floats(64), floats(64)], 1e-4, 1e-4)
    for n in (384 * 128, 3_000_001):
        check(gpu, DynamicQuantize(), [near(1, n)], 0, 0)


MUTATIONS = {
    "half of a row's threads": (Reduce("sum", 1, 2), "(16, 8, 4, 2, 1):\n            total", "(8, 4, 2, 1):\n            total"),
    "the first row for all": (Softmax(1), "thread // int64(32), int32", "thread * int64(0), int32"),
    "the end of a row": (Softmax(1), "while i < n:\n            total = join", "while i <= n:\n            total = join"),
    "less the mean": (LayerNorm(1, 1e-5), "row_sum_squares(x_at, n, lane, mean)", "row_sum_squares(x_at, n, lane, float32(0))"),
    "another part": (DynamicQuantize(), "first = int64(cuda.blockIdx.x) * int64(part)", "first = int64(0)"),
    "threads before the first": (DynamicQuantize(), "        cuda.syncthreads()\n", ""),
    "the next element": (Binary("sub"), "int32(rest - outer * extent)", "int32(rest)"),
}


@pytest.mark.parametrize("bug", MUTATIONS)
def test_a_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_dynamic, "PART", 256 if "threads" in bug else 64)
    op, *mutation = MUTATIONS[bug]
    x = np.linspace(1, 9, 3 * 70, dtype=np.float32).reshape(3, 70)[:, ::-1]
    program, feeds = program_of(op, [x, *{LayerNorm: [floats(70)], Binary: [floats(3, 1)]}.get(type(op), [])])
    mutant = "range" if isinstance(op, DynamicQuantize) else ""
    for schedule in SCHEDULES[::2]:
        try:
            found = DevicePlan(program, EmulatedDevice(schedule, tuple(mutation), mutant), Packs()).run(feeds)
        except IndexError:
            return
        if not all(np.allclose(y, wanted, 1e-5, 1e-6) for y, wanted in zip(found, interpret(program, feeds), strict=True)):
            return
    pytest.fail("no schedule finds it")
