"""Kernels: names, choice, what the compiler refuses, and code for machines that this one is not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qrt.core.errors import InvalidInput, KernelError
from qrt.core.target import TARGETS, Target, choose_target
from qrt.jit import Kernel, choose, record_dtype
from qrt.jit.compile import assembly, object_code
from qrt.jit.host import host_target
from qrt.ops.conv import depthwise
from qrt.ops.gemm.product import COPY
from qrt.ops.gemm.table import TILES, kernel_for

RECORD = record_dtype(("y", "i8"), ("n", "i8"))
NEON = next(t for t in TARGETS if t.isa == "neon_dot")
BY_ISA = {t.isa: t for t in TARGETS if t.arch == "x86_64"}


# -- kernels --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["copy", "copy_generic", "Copy__generic", "copy__sse9", "copy-x__generic", "__generic", "copy__generic "])
def test_names_say_what_they_must(name: str) -> None:
    with pytest.raises(KernelError, match="family_types_shape__isa"):
        Kernel(name, RECORD, "kernels.cpu_bad:raises")


def test_records_are_laid_out_like_c_structs() -> None:
    record = record_dtype(("a", "i4"), ("b", "i8"), ("c", "f4"))
    assert record.fields is not None
    assert [record.fields[name][1] for name in "abc"] == [0, 8, 16]
    assert record.itemsize == 24


def test_the_best_rung_is_chosen() -> None:
    table = tuple(Kernel(f"k__{isa}", RECORD, "m:f") for isa in ("generic", "avx2"))
    assert [k.isa for k in choose(table, BY_ISA["avx512vnni"])] == ["avx2"]
    assert [k.isa for k in choose(table, BY_ISA["generic"])] == ["generic"]
    assert [k.isa for k in choose(table, NEON)] == ["generic"]
    with pytest.raises(KernelError, match="runs on generic"):
        choose(table[1:], BY_ISA["generic"])


# -- targets --------------------------------------------------------------------------------------------------------------
def test_an_unknown_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"unknown target 'sse9'.*generic"):
        host_target("sse9")
    monkeypatch.setenv("QRT_TARGET", "avx1024")
    with pytest.raises(InvalidInput, match="avx1024"):
        host_target()
    monkeypatch.setenv("QRT_TARGET", "")  # as if it were not set
    host_target()


def test_a_target_that_the_machine_lacks_is_refused() -> None:
    few = frozenset({"avx2", "fma", "bmi2", "f16c"})
    assert choose_target("x86_64", few).isa == "avx2"
    assert choose_target("x86_64", frozenset()).isa == "generic"
    assert choose_target("x86_64", few, "generic").isa == "generic"
    with pytest.raises(InvalidInput, match=r"needs avx512bw.*avx512vnni"):
        choose_target("x86_64", few, "avx512vnni")
    with pytest.raises(InvalidInput, match="unknown target 'neon_dot'"):
        choose_target("x86_64", few, "neon_dot")
    with pytest.raises(InvalidInput, match="riscv64"):
        choose_target("riscv64", frozenset())


def test_each_rung_needs_no_less_than_the_ones_below() -> None:
    for target in TARGETS:
        for below in TARGETS:
            if below.arch == target.arch and below.isa in target.ladder:
                # avxvnni's instructions are avx512vnni's in another encoding, of which the compiler takes the target's.
                assert below.needs <= target.needs or below.isa == "avxvnni"
                assert below.lanes <= target.lanes


def test_the_environment_forces_a_lower_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRT_TARGET", "generic")
    assert host_target().isa == "generic"
    assert host_target("generic").isa == "generic"


# -- what the compiler refuses --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("function", "match"), [("raises", "neither raise nor allocate"), ("allocates", "neither raise nor allocate")])
def test_a_kernel_may_neither_raise_nor_allocate(function: str, match: str) -> None:
    with pytest.raises(KernelError, match=match):
        object_code(Kernel(f"bad_{function}__generic", RECORD, f"kernels.cpu_bad:{function}"), host_target("generic"))


def test_a_kernel_that_does_not_compile_is_named() -> None:
    with pytest.raises(KernelError, match=r"bad_typed__generic.*does not compile"):
        object_code(Kernel("bad_typed__generic", RECORD, "kernels.cpu_bad:ill_typed"), host_target("generic"))


# -- code -----------------------------------------------------------------------------------------------------------------
def test_code_is_the_same_each_time() -> None:
    target = host_target("generic")
    assert object_code(COPY, target) == object_code(COPY, target)


ABROAD = [
    COPY,
    kernel_for(NEON, TILES["neon_dot"][0], "direct", "u8"),
    kernel_for(NEON, TILES["neon_dot"][-1], "indirect", "f32add"),
    depthwise.kernel_for(NEON, 64, "u8add"),
]


@pytest.mark.parametrize("kernel", ABROAD, ids=lambda k: k.name)
def test_kernels_compile_for_aarch64(kernel: Kernel) -> None:
    code = object_code(kernel, NEON)
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 183  # EM_AARCH64
    assert f"qrt_{kernel.name}:" in assembly(kernel, NEON)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.arch}-{t.isa}")
def test_code_stays_within_its_target(target: Target) -> None:
    text = assembly(COPY, target)
    assert ("%zmm" in text) == (target.lanes == 16)
    assert target.lanes > 4 or "%ymm" not in text


def test_vectors_on_the_stack_lie_in_cache_lines() -> None:
    # A caller's stack starts at any multiple of 16, and these kernels keep vectors of 64 bytes there.
    spilling = [k for k in depthwise.INTERLEAVED if k.name.startswith("depthwise_u8s8_u8_5x5")]
    for kernel in spilling:
        text = assembly(kernel, BY_ISA["avx512vnni"])
        assert re.search(r"%zmm\d+, -?\d*\(%rsp", text)
        assert len(re.findall(r"andq\s+\$-64, %rsp", text)) == len(re.findall(r"movq\s+%rsp, %rbp", text))


def test_fused_multiply_adds_appear_only_where_they_are_written() -> None:
    # u8's epilogue multiplies and adds in float32; contracting that would round once less.
    text = assembly(kernel_for(BY_ISA["avx2"], TILES["avx2"][0], "direct", "f32d"), BY_ISA["avx2"])
    assert "vmulps" in text
    assert "vfmadd" not in text


def test_record_dtype_is_numpy_s_own() -> None:
    assert np.zeros((), COPY.record).dtype == COPY.record
