"""The device kernels of floats, by their source in the emulator (and on a GPU where there is one), against the ops' references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from kernels.check import program_of
from kernels.products import floats

from qrt.core.errors import UnsupportedOp
from qrt.ops.elementwise import Binary, Cast, Unary, Where
from qrt.ops.elementwise.device import BINARY, UNARY
from qrt.ops.elementwise.unary import UNARY as ROWS
from qrt.ops.op import Array, Op
from qrt.ops.program import interpret
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

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


@pytest.mark.parametrize("shape", [(4, 6), (1, 1), (4, 1)])
def test_where(device: Any, shape: tuple[int, ...]) -> None:
    check(device, Where(), [RNG.random((4, 6)) < 0.5, floats(*shape), floats(4, 6)])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "int64"])
def test_cast(device: Any, dtype: str) -> None:
    low, high = (0, 2) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    check(device, Cast("float32"), [RNG.integers(low, high, 13, dtype="int64" if dtype == "bool" else dtype).astype(dtype)], 0, 0)


def test_what_has_no_kernel_is_refused(device: Any) -> None:
    for op, inputs in ((Unary("tan"), [floats(3)]), (Binary("add"), [np.arange(3), np.arange(3)]), (Cast("int64"), [floats(3)])):
        with pytest.raises(UnsupportedOp, match="CUDA"):
            check(device, op, inputs)
