"""Target: the instruction set kernels are compiled for, as a rung of one ladder per architecture."""

from __future__ import annotations

from qrt.core.errors import InvalidInput
from qrt.core.record import record

__all__ = ["LADDERS", "TARGETS", "Target"]

# Each rung can run the kernels of every rung to its right; `generic` always exists.
LADDERS: dict[str, tuple[str, ...]] = {
    "x86_64": ("amx", "avx512vbmi", "avx512vnni", "avxvnni", "avx2", "generic"),
    "aarch64": ("neon_dot", "generic"),
}


@record
class Target:
    """One rung: LLVM's CPU and feature strings for it, and the host features that it needs.

    `lanes`: 32-bit lanes of its widest vector.
    """

    isa: str
    arch: str
    cpu: str
    features: str
    needs: frozenset[str]
    lanes: int

    @property
    def ladder(self) -> tuple[str, ...]:
        """The ISAs whose kernels run on this target, best first."""
        rungs = LADDERS[self.arch]
        return rungs[rungs.index(self.isa) :]


_AVX2 = frozenset({"avx2", "fma", "bmi2", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}
# Ice Lake and later, Zen 4 and later. Every processor with AMX permutes bytes as well.
_VBMI = _AVX512 | {"avx512vbmi"}
_AMX = _VBMI | {"amx-tile", "amx-int8"}

# CPU names are LLVM's ISA levels, not the host's model: the same object code serves every machine of the rung.
TARGETS: tuple[Target, ...] = (
    Target("amx", "x86_64", "x86-64-v4", "+avx512vnni,+avx512vbmi,-prefer-256-bit,+amx-tile,+amx-int8", _AMX, 16),
    Target("avx512vbmi", "x86_64", "x86-64-v4", "+avx512vnni,+avx512vbmi,-prefer-256-bit", _VBMI, 16),
    Target("avx512vnni", "x86_64", "x86-64-v4", "+avx512vnni,-prefer-256-bit", _AVX512, 16),
    Target("avxvnni", "x86_64", "x86-64-v3", "+avxvnni", _AVX2 | {"avxvnni"}, 8),
    Target("avx2", "x86_64", "x86-64-v3", "", _AVX2, 8),
    Target("generic", "x86_64", "x86-64", "", frozenset(), 4),
    Target("neon_dot", "aarch64", "generic", "+v8.2a,+dotprod", frozenset({"dotprod"}), 4),
    Target("generic", "aarch64", "generic", "", frozenset(), 4),
)


def choose_target(arch: str, host_features: frozenset[str], wanted: str | None = None) -> Target:
    """The best rung that a host of `arch` with `host_features` can run, or the one called `wanted`.

    Raises InvalidInput if `wanted` is not a rung of this architecture or the host lacks a feature that it needs.
    """
    rungs = [t for t in TARGETS if t.arch == arch]
    if not rungs:
        raise InvalidInput(f"no kernels for architecture {arch!r}: qrt runs on {', '.join(LADDERS)}")
    runnable = [t for t in rungs if t.needs <= host_features]
    if wanted is None:
        return runnable[0]
    able = ", ".join(t.isa for t in runnable)
    for t in rungs:
        if t.isa == wanted:
            if t not in runnable:
                missing = ", ".join(sorted(t.needs - host_features))
                raise InvalidInput(f"target {wanted!r} needs {missing}, which this machine lacks; it can run {able}")
            return t
    raise InvalidInput(f"unknown target {wanted!r}: this machine can run {able} and, beside a GPU, cuda (QRT_TARGET or target=)")
