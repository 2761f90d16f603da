"""Every SIMD method equals its NumPy twin on every instruction set that this machine has, and is the instruction it should be on all."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from kernels.native import call, guarded
from kernels.products import VECTOR_TARGETS
from llvmlite import ir

from qrt.core.target import TARGETS, Target
from qrt.jit import Kernel, record_dtype
from qrt.jit.compile import assembly
from qrt.jit.lang.simd import FOUR_TWINS, QUAD_TWINS, TWINS, Simd
from qrt.ops.gemm.table import TILES, kernel_for

RECORD = record_dtype(("a", "i8"), ("b", "i8"), ("c", "i8"), ("y", "i8"), ("n", "i8"))
RNG = np.random.default_rng(0)
N = 1 << 12  # a multiple of every vector
INT = np.iinfo(np.int32)
BY_ISA = pytest.mark.parametrize("target", VECTOR_TARGETS, ids=lambda t: t.isa)


def method(name: str, operands: str, result: str, isa: str) -> Kernel:
    return Kernel(f"simd_{name}__{isa}", RECORD, "kernels.cpu_simd:method", (isa, name, operands, result))


def mixed(*special: float, low: float, high: float, dtype: type) -> np.ndarray:
    """N numbers: a quarter of them the special ones in random order, the rest uniform between the bounds."""
    x = RNG.uniform(low, high, N).astype(dtype)
    x[RNG.permutation(N)[: N // 4]] = RNG.choice(np.array(special, dtype), N // 4)
    return x


def operands_of(name: str) -> list[np.ndarray]:
    """Arrays that a method is defined for, with its extremes."""
    accumulators = mixed(0, INT.max, INT.min, low=INT.min, high=INT.max, dtype=np.int32)
    match name:
        case "dot":
            codes = mixed(0, 255, low=0, high=256, dtype=np.uint8)
            a = np.stack([mixed(0, 255, low=0, high=256, dtype=np.uint8) for _ in range(3)] + [codes], 1)
            w = np.stack([mixed(-128, -127, 127, low=-128, high=128, dtype=np.int8) for _ in range(4)], 1)
            a[:4], w[:4] = 255, np.array([-128, 127, -127, 1], np.int8)[:, None]  # the largest sums there are
            return [accumulators, a.view(np.int32).ravel(), w.view(np.int32).ravel()]
        case "dot_pairs":
            a, w = (np.stack([mixed(-32768, 32767, 255, low=-32768, high=32768, dtype=np.int16) for _ in range(2)], 1) for _ in range(2))
            a[:2], w[:2] = -32768, -32768  # the only sum beyond 32 bits, which wraps
            return [accumulators, a.view(np.int32).ravel(), w.view(np.int32).ravel()]
        case "multiply_add":
            codes = mixed(0, 255, low=0, high=256, dtype=np.int32)
            return [accumulators, codes, mixed(-32768, 32767, -255, 255, low=-32768, high=32768, dtype=np.int32)]
        case "fma_code":
            codes = mixed(0, 255, low=0, high=256, dtype=np.uint8).astype(np.float32)
            ratio, acc = np.exp(RNG.normal(size=N)).astype(np.float32), RNG.normal(size=N).astype(np.float32) * 100
            acc[::2] = -(codes * ratio)[::2]  # what is left is the product's own rounding error
            return [acc, codes, ratio]
        case "clamp" | "bound":
            x = mixed(np.nan, np.inf, -np.inf, 0.0, -0.0, 127, -128, low=-300, high=300, dtype=np.float32)
            low = mixed(-np.inf, -0.0, 0.0, low=-200, high=0, dtype=np.float32)
            return [x, low, mixed(np.inf, 0.0, low=0, high=200, dtype=np.float32)]
        case "round":
            halves = np.arange(N, dtype=np.float32) - N // 2 + np.float32(0.5)
            halves[::2] = mixed(-0.0, 2147483520, -2147483648, 8388607.5, 0.49999997, low=-1000, high=1000, dtype=np.float32)[::2]
            return [halves]
        case "to_float":
            # Between 2**24 and 2**25 every odd number is a tie.
            ties = mixed(INT.max, INT.min, (1 << 24) + 1, (1 << 24) + 3, low=INT.min, high=INT.max, dtype=np.int32)
            ties[: N // 4] = RNG.integers(1 << 24, 1 << 25, N // 4)
            return [ties]
    raise AssertionError(f"no operands for Simd.{name}: a new method needs its own here")


@BY_ISA
@pytest.mark.parametrize("name", TWINS)
def test_method_equals_its_twin(name: str, target: Target) -> None:
    operands, result, twin = TWINS[name]
    arrays = operands_of(name)
    y = np.empty(N, np.float32 if result == "f" else np.int32)
    call(method(name, operands, result, target.isa), target, y=y, n=N, **dict(zip("abc", arrays, strict=False)))
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = twin(*arrays)
    assert y.dtype == wanted.dtype
    np.testing.assert_array_equal(y.view(np.int32), wanted.view(np.int32))  # bits, so that −0 is not 0


def target_of(isa: str) -> Target:
    """The target of that rung, if this machine runs it; else the test is skipped."""
    found = next((target for target in VECTOR_TARGETS if target.isa == isa), None)
    return found or pytest.skip(f"this machine has no {isa}")


@pytest.mark.parametrize("name", QUAD_TWINS)
def test_method_on_four_vectors_equals_its_twin(name: str) -> None:
    target = target_of("avx512vnni")
    kernel, blocks = Kernel(f"simd_{name}__avx512vnni", RECORD, f"kernels.cpu_simd:{name}", ("avx512vnni",)), N // 64
    if name == "interleave":
        rows, lanes = RNG.integers(0, 256, (blocks, 4, 64)).astype(np.uint8), np.empty((blocks, 64), np.int32)
        call(kernel, target, a=rows, y=lanes, n=blocks)
        np.testing.assert_array_equal(lanes, QUAD_TWINS[name](rows))
        return
    steps = mixed(INT.max, INT.min, 32767, 32768, -32769, 255, 256, -1, low=-400, high=400, dtype=np.int32).reshape(blocks, 64)
    if name == "saturate":
        for signed in (False, True):
            packed = np.empty((blocks, 64), np.uint8)
            call(
                replace(kernel, name=f"simd_saturate_{int(signed)}__avx512vnni", params=(target.isa, signed)),
                target,
                a=steps,
                y=packed,
                n=blocks,
            )
            np.testing.assert_array_equal(packed, QUAD_TWINS[name](steps, signed))
        return
    for zero_point, low, high in ((0, 0, 255), (128, 0, 255), (255, 7, 200), (3, 3, 3)):
        packed = np.empty((blocks, 64), np.uint8)
        call(kernel, target, a=steps, b=np.array([zero_point, low, high], np.int32), y=packed, n=blocks)
        np.testing.assert_array_equal(packed, QUAD_TWINS[name](steps, zero_point, low, high))


@pytest.mark.parametrize("name", FOUR_TWINS)
def test_method_on_four_narrow_vectors_equals_its_twin(name: str) -> None:
    target = target_of("avx2")
    kernel, blocks = Kernel(f"simd_{name}__avx2", RECORD, f"kernels.cpu_simd:{name}", ("avx2",)), N // 32
    codes = np.empty((blocks, 32), np.uint8)
    if name == "pack_four":
        steps = mixed(INT.max, INT.min, 32767, 32768, -32769, 255, 256, -1, low=-400, high=400, dtype=np.int32).reshape(blocks, 32)
        for zero_point, low in ((0, 0), (128, 0), (255, 7), (3, 3)):
            call(kernel, target, a=steps, b=np.array([zero_point, low], np.int32), y=codes, n=blocks)
            np.testing.assert_array_equal(codes, FOUR_TWINS[name](steps, zero_point, low))
        return
    rows = RNG.integers(0, 256, (blocks, 2, 32)).astype(np.uint8)
    a, y = (rows, np.empty((blocks, 32), np.int32)) if name == "pairs_of" else (rows[:, 0].copy(), codes)
    call(kernel, target, a=a, y=y, n=blocks)
    np.testing.assert_array_equal(y, FOUR_TWINS[name](a))


@BY_ISA
def test_fma_rounds_once_where_there_is_an_instruction_for_it(target: Target) -> None:
    acc, a, w = (RNG.normal(size=N).astype(np.float32) for _ in range(3))
    acc[::2] = -(a[::2] * w[::2])  # what is left is the product's own rounding error: 0 if it was rounded
    y = np.empty(N, np.float32)
    call(method("fma", "fff", "f", target.isa), target, a=acc, b=a, c=w, y=y, n=N)
    if target.isa == "generic":
        np.testing.assert_array_equal(y, acc + a * w)
        return
    for got, *exact in zip(y[:512].tolist(), acc.tolist(), a.tolist(), w.tolist(), strict=False):
        wanted = Fraction(exact[0]) + Fraction(exact[1]) * Fraction(exact[2])
        assert abs(Fraction(got) - wanted) <= Fraction(float(np.spacing(np.float32(abs(got))))) / 2


@BY_ISA
def test_masked_lanes_are_neither_read_nor_written(target: Target) -> None:
    kernel = Kernel(f"simd_codes__{target.isa}", RECORD, "kernels.cpu_simd:codes", (target.isa,))
    floats = Kernel(f"simd_masked_float__{target.isa}", RECORD, "kernels.cpu_simd:masked_float", (target.isa,))
    for count in range(1, target.lanes + 1):
        codes = guarded(RNG.integers(0, 256, count).astype(np.uint8))
        wide, narrow = guarded(np.full(count, -1, np.int32)), guarded(np.full(count, 7, np.uint8))
        call(kernel, target, a=codes, b=wide, y=narrow, n=count)
        np.testing.assert_array_equal(wide, codes)
        np.testing.assert_array_equal(narrow, codes)

        numbers, number = guarded(RNG.normal(size=count).astype(np.float32)), np.float32([1.5])
        loaded, stored = np.full(target.lanes, -1, np.float32), np.full(target.lanes, -1, np.float32)
        call(floats, target, a=numbers, b=loaded, c=number, y=stored, n=count)
        np.testing.assert_array_equal(loaded, [*numbers, *[0] * (target.lanes - count)])
        np.testing.assert_array_equal(stored, [1.5] * count + [-1] * (target.lanes - count))


# -- instructions -------------------------------------------------------------------------------------------------------
INSTRUCTIONS = [
    ("avx512vnni", "dot", r"vpdpbusd\b.*zmm"),
    ("avxvnni", "dot", r"vpdpbusd\b.*ymm"),
    ("avx512vnni", "dot_pairs", r"(vpmaddwd|vpdpwssd)\b.*zmm"),
    ("avx2", "dot_pairs", r"vpmaddwd\b.*ymm"),
    ("neon_dot", "dot", r"\budot\b"),
    ("avx512vnni", "multiply_add", r"(vpmaddwd|vpdpwssd)\b.*zmm"),
    ("avx2", "multiply_add", r"vpmaddwd\b.*ymm"),
    ("neon_dot", "multiply_add", r"\bmla\b"),
    ("avx512vnni", "round", r"vcvtps2dq\b.*zmm"),
    ("avx2", "round", r"vcvtps2dq\b.*ymm"),
    ("neon_dot", "round", r"\bfcvtns\b|\bfrintn\b"),
    ("avx512vnni", "fma", r"vfmadd\d*ps\b.*zmm"),
    ("avx2", "fma", r"vfmadd\d*ps\b.*ymm"),
    ("neon_dot", "fma", r"\bfmla\b"),
    ("avx512vnni", "clamp", r"vmaxps\b.*zmm"),
    ("avx2", "clamp", r"vmaxps\b.*ymm"),
]


@pytest.mark.parametrize(("isa", "name", "instruction"), INSTRUCTIONS)
def test_method_is_the_instruction_that_it_should_be(isa: str, name: str, instruction: str) -> None:
    operands, result = TWINS[name][:2] if name in TWINS else ("fff", "f")
    target = next(t for t in TARGETS if t.isa == isa)
    assert re.search(instruction, assembly(method(name, operands, result, isa), target))


def inner_loops(text: str, instruction: str) -> list[str]:
    """The stretches of assembly from a label to the jump back to it, with `instruction` and no other label inside."""
    loops = []
    for name, body in re.findall(r"^(\.\w+):(.*?)(?=^\.\w+:|\Z)", text, re.MULTILINE | re.DOTALL):
        loop = re.match(rf".*?^\s*(?:j\w+|b\.\w+|cbn?z)\b[^\n]*{re.escape(name)}\b", body, re.MULTILINE | re.DOTALL)
        if loop and re.search(instruction, loop[0]):
            loops.append(loop[0])
    return loops


@pytest.mark.parametrize(
    ("isa", "epilogue", "product", "stack"),
    [
        ("avx512vnni", "u8", "vpdpbusd", "%rsp"),
        ("avxvnni", "u8", "vpdpbusd", "%rsp"),
        ("avx2", "u8", "vpmaddwd", "%rsp"),
        ("neon_dot", "u8", "udot", r"\[sp"),
        ("avx512vnni", "f32", "vfmadd", "%rsp"),
        ("avx2", "f32", "vfmadd", "%rsp"),
        ("neon_dot", "f32", "fmla", r"\[sp"),
    ],
)
def test_the_product_s_inner_loop_stays_in_registers(isa: str, epilogue: str, product: str, stack: str) -> None:
    target = next(t for t in TARGETS if t.isa == isa)
    # Each main tile; the tables' tests run the others.
    for tile in TILES[isa][:2]:
        loops = inner_loops(assembly(kernel_for(target, tile, "direct", epilogue), target), product)
        assert loops, f"{tile}: no loop with {product}"
        for loop in loops:
            spilled = [line.strip() for line in loop.splitlines() if re.search(stack, line)]
            assert not spilled, f"{tile}: {spilled}"


# -- what this machine cannot run ---------------------------------------------------------------------------------------
def lanes_of(constant: ir.Constant) -> np.ndarray:
    return np.array([lane.constant for lane in constant.constant], np.int64)


class Numpy:
    """An IR builder's bit operations, on arrays of 32-bit lanes."""

    @staticmethod
    def bitcast(value: Any, kind: Any) -> np.ndarray:
        return np.asarray(value).view(np.dtype(f"u{kind.element.width // 8}"))

    @staticmethod
    def xor(x: np.ndarray, y: Any) -> np.ndarray:
        return x ^ lanes_of(y).astype(x.dtype)

    @staticmethod
    def sub(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x.astype(np.int64) - y).astype(np.int32)


class Neon(Simd):
    """Simd for neon_dot whose values are arrays: 4 lanes at a time."""

    def __init__(self) -> None:
        super().__init__("neon_dot", Numpy())

    def call(self, name: str, result: Any, *args: Any) -> Any:
        assert name == "llvm.aarch64.neon.udot.v4i32.v16i8"
        acc, a, b = (lanes_of(x) if isinstance(x, ir.Constant) else x for x in args)
        return (acc.astype(np.int64) + (a.astype(np.int64) * b).reshape(-1, 4).sum(1)).astype(np.int32)


def test_neon_s_dot_of_unsigned_by_signed_is_exact() -> None:
    arrays = operands_of("dot")
    wanted = TWINS["dot"][2](*arrays)
    for at in range(0, 1024, 4):
        np.testing.assert_array_equal(Neon().dot(*(x[at : at + 4] for x in arrays)), wanted[at : at + 4])
