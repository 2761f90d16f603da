"""Element-wise kernels against their NumPy definitions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.check import TARGETS_HERE, check

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.target import TARGETS, Target
from qrt.jit.compile import assembly
from qrt.ops.elementwise import BINARY, UNARY, Binary, Cast, Unary, Where, binary, unary
from qrt.ops.op import Spec

RNG = np.random.default_rng(0)
PARAMS = {"clip": (-1.0, 2.0), "hard_sigmoid": (0.2, 0.5), "selu": (1.67, 1.05), "is_inf": (1, 0), "thresholded_relu": (0.5,)}
# Functions that are not defined, or not finite, on the whole line.
DOMAIN = {"acos": (-1, 1), "asin": (-1, 1), "atanh": (-0.99, 0.99), "acosh": (1, 9), "log": (0.01, 9), "sqrt": (0, 9), "tan": (-1.5, 1.5)}
EXACT = {
    "abs",
    "bitwise_not",
    "ceil",
    "clip",
    "cube",
    "floor",
    "is_inf",
    "is_nan",
    "leaky_relu",
    "neg",
    "not",
    "reciprocal",
    "relu",
    "round",
}
EXACT |= {"round_bfloat16", "round_float16", "sign", "softsign", "sqrt", "square", "thresholded_relu", "hard_sigmoid", "hard_swish"}


def sample(dtype: str, shape: tuple[int, ...], low: float = -6, high: float = 6) -> np.ndarray:
    if dtype == "bool":
        return RNG.integers(0, 2, shape).astype(np.bool_)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.uniform(low, high, shape).astype(kind)
    limits = np.iinfo(kind)
    return RNG.integers(limits.min, limits.max, shape, endpoint=True, dtype=kind)


# A function's rows for other dtypes differ in the type of the loop alone, so a few functions stand for all, and those
# stand for the targets too: compiling every row for every target takes minutes.
EVERYWHERE = {"add", "div", "erf", "exp", "less", "relu", "softplus", "tanh"}
MANY_TYPES = {"add", "clip", "div", "equal", "max", "min", "neg", "relu", "sign", "sub"}


def rows(table: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, dtype) for name, row in table.items() for dtype in row.dtypes[: None if name in MANY_TYPES else 1]]


def targets_for(name: str, dtype: str = "float32") -> tuple[Target, ...]:
    return TARGETS_HERE if name in EVERYWHERE and dtype in ("float32", "int32") else TARGETS_HERE[:1]


@pytest.mark.parametrize(("name", "dtype"), rows(UNARY))
def test_unary(name: str, dtype: str) -> None:
    params = PARAMS.get(name, (0.7,))[: UNARY[name].params]
    if np.dtype(dtype).kind != "f":
        params = tuple(int(p + 1) for p in params)
    for shape in ((), (1,), (37,), (4, 67)):
        x = sample(dtype, shape, *DOMAIN.get(name, (-6, 6)))
        check(Unary(name, params), [x], exact=name in EXACT, rtol=2e-6, atol=1e-6, targets=targets_for(name, dtype))


@pytest.mark.parametrize(
    "name", ["relu", "clip", "sign", "round", "is_nan", "is_inf", "abs", "exp", "tanh", "sigmoid", "log", "mish", "sqrt"]
)
def test_unary_of_special_numbers(name: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0, 0.5, -0.5, 1.5, 2.5, 1e-45, 3e38, -3e38, 88.8, -88, -104, 89] * 3, np.float32)
    check(Unary(name, PARAMS.get(name, ())), [x], exact=name in EXACT, rtol=1e-6, atol=1e-36, targets=targets_for(name))


@pytest.mark.parametrize(("name", "dtype"), rows(BINARY))
def test_binary(name: str, dtype: str) -> None:
    low = 0.1 if name == "pow" else -6
    for a, b in (((5, 67), (5, 67)), ((5, 67), (1, 67)), ((1, 1), (5, 67)), ((3, 4, 5), (3, 1, 5))):
        exact = name != "pow"
        check(Binary(name), [sample(dtype, a, low), sample(dtype, b, low)], exact=exact, rtol=1e-5, targets=targets_for(name, dtype))


@pytest.mark.parametrize("name", ["div", "mod", "fmod"])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_integer_division_never_traps(name: str, dtype: str) -> None:
    limits = np.iinfo(dtype)
    ends = np.array([limits.min, limits.min + 1, 0, 1, 2, 7, limits.max], np.dtype(dtype))
    values = np.concatenate([ends, ends[1:5] * np.array(-1).astype(dtype)])
    a, b = (v.copy() for v in np.broadcast_arrays(values[:, None], values[None, :]))
    quotient = check(Binary(name), [a, b], targets=TARGETS_HERE[:1])[0]
    x, y = a.astype(object), b.astype(object)
    whole = (y != 0) & ~((x == limits.min) & (y == -1))
    truncated = np.array([[abs(p) // abs(q) * (-1 if (p < 0) != (q < 0) else 1) if q else 0 for q in y[0]] for p in x[:, 0]], object)
    expected = {"div": truncated, "fmod": x - truncated * y, "mod": np.array([[p % q if q else 0 for q in y[0]] for p in x[:, 0]], object)}[
        name
    ]
    assert (quotient.astype(object) == expected)[whole].all()


def test_minimum_and_maximum_pass_nan_on() -> None:
    a = np.array([1, np.nan, 2, np.nan, -np.inf] * 5, np.float32)
    b = np.array([np.nan, 1, 1, np.nan, np.inf] * 5, np.float32)
    for name in ("min", "max"):
        check(Binary(name), [a, b])


SHAPES = st.lists(st.sampled_from([1, 2, 3, 17]), min_size=1, max_size=5)


@settings(max_examples=25)
@given(SHAPES, st.data())
def test_any_broadcast(shape: list[int], data: Any) -> None:
    a, b, c = (tuple(n if data.draw(st.booleans()) else 1 for n in shape) for _ in range(3))
    x, y = sample("float32", a), sample("float32", b)
    check(Binary("sub"), [x, y])
    check(Where(), [sample("bool", c), x, y])


def test_large_operands_are_shared_by_threads() -> None:
    x = sample("float32", (3, 33, 41, 24))
    check(Binary("add"), [x, sample("float32", (1, 1, 1, 24))])
    check(Binary("mul"), [x, sample("float32", (3, 1, 1, 24))])
    check(Binary("add"), [x, x])
    check(Binary("less"), [x, sample("float32", (3, 33, 41, 1))])
    check(Where(), [sample("bool", (3, 33, 41, 1)), x, sample("float32", (1, 1, 1, 1))])


@pytest.mark.parametrize("size", [0, 1])
def test_empty_operands(size: int) -> None:
    x = np.zeros((size, 3), np.float32)
    check(Binary("add"), [x, np.ones((1, 3), np.float32)])
    check(Unary("exp"), [x], exact=False)
    check(Cast("int64"), [x])


@pytest.mark.parametrize("source", ["float32", "float64", "bool", "uint8", "int64", "int16"])
@pytest.mark.parametrize("result", ["float32", "bool", "int8", "uint16", "int32", "uint32", "int64"])
def test_cast(source: str, result: str) -> None:
    if source == result:
        return
    x = sample(source, (5, 27), -200, 200)
    y = check(Cast(result), [x], targets=TARGETS_HERE[:1])[0]
    if source == "bool" or result == "float32":
        np.testing.assert_array_equal(y, x.astype(result))


def test_cast_of_floats_that_no_integer_holds() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e20, -1e20, 3e9, -3e9, 300.7, -1.5, 2147483520, 255.99] * 3, np.float32)
    for result in ("int64", "int32", "uint32", "int8"):
        check(Cast(result), [x])
        check(Cast(result), [x.astype(np.float64)], targets=TARGETS_HERE[:1])


def test_what_has_no_kernel_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match="exp has no kernel for int64"):
        Unary("exp").infer([Spec((2,), np.dtype(np.int64))])
    with pytest.raises(ModelError, match="do not broadcast"):
        Binary("add").infer([Spec((2, 3), np.dtype(np.float32)), Spec((2, 4), np.dtype(np.float32))])
    with pytest.raises(ModelError, match="one dtype"):
        Binary("add").infer([Spec((2,), np.dtype(np.float32)), Spec((2,), np.dtype(np.int32))])
    with pytest.raises(ModelError, match="ranks"):
        Where().infer([Spec((2,), np.dtype(np.bool_)), Spec((2,), np.dtype(np.int32)), Spec((), np.dtype(np.int32))])


@pytest.mark.parametrize("name", ["unary_sigmoid_float32", "unary_erf_float32", "unary_tanh_float32", "binary_add_float32", "where_b4"])
def test_hot_kernels_use_the_widest_vectors(name: str) -> None:
    kernel = next(k for k in (*unary.KERNELS, *binary.KERNELS) if k.name == f"{name}__generic")
    for isa, register in (("amx", "zmm"), ("avx512vnni", "zmm"), ("avxvnni", "ymm"), ("avx2", "ymm")):
        target = next(t for t in TARGETS if t.isa == isa)
        assert assembly(kernel, target).count(register) > 20, isa
