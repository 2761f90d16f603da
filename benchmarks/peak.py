"""The most that this machine's multiply-add instructions can do, as an op like any other: threads and timing are those of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.timed import Timed
from qrt.core.target import Target
from qrt.jit import Kernel, choose, record_dtype
from qrt.jit.lanes import LANES
from qrt.ops.op import Array, Operand, Spec, Steps
from qrt.ops.program import Program
from qrt.runtime.plan import Packs, build

__all__ = ["INSTRUCTIONS", "KERNELS", "Peak", "peak"]

RECORD = record_dtype(("n", "i8"), ("x", "i8"), ("y", "i8"))
ROUNDS = 100_000

# Accumulators: enough to hide an instruction's latency, few enough for the registers. `dot` takes more of them beside, but on VNNI.
_COUNTS = {"avx512vnni": 24, "avxvnni": 12, "avx2": 10, "neon_dot": 20, "generic": 6}


def _kernel(isa: str, kind: str) -> Kernel:
    count = _COUNTS[isa]
    return Kernel(f"peak_{kind}_{count}__{isa}", RECORD, "benchmarks.cpu_peak:vectors", (isa, kind, count))


_TILES = Kernel("peak_dot_4__amx", RECORD, "benchmarks.cpu_peak:tiles")
KERNELS: dict[str, tuple[Kernel, ...]] = {kind: tuple(_kernel(isa, kind) for isa in LANES) for kind in ("dot", "fma")}
KERNELS["dot"] = (_TILES, *KERNELS["dot"])

# What a kernel's loop is made of, by kind and rung.
INSTRUCTIONS = {
    "dot": {
        "amx": "tdpbusd",
        "avx512vnni": "vpdpbusd",
        "avxvnni": "vpdpbusd",
        "avx2": "vpmaddwd",
        "neon_dot": "udot",
        "generic": "multiply",
    },
    "fma": {"avx512vnni": "vfmadd", "avxvnni": "vfmadd", "avx2": "vfmadd", "neon_dot": "fmla", "generic": "multiply"},
}


def _macs(kernel: Kernel) -> int:
    """Multiply-accumulates of a round."""
    if kernel is _TILES:
        return 4 * 16 * 16 * 64
    isa, kind, count = kernel.params
    return LANES[str(isa)] * int(count) * (4 if kind == "dot" else 1)


@dataclass(frozen=True)
class _Loop(Timed):
    """Every thread runs the loop; y holds what each one's accumulators came to."""

    kernel: Kernel
    threads: int

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (Spec((self.threads, 256), inputs[0].dtype),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        steps.step(self.kernel, n=ROUNDS, x=inputs[0].ref, y=outputs[0].ref)


@dataclass(frozen=True)
class Peak:
    """`run` does `macs` multiply-accumulates on all threads together."""

    kernel: Kernel
    instruction: str
    macs: int
    run: Callable[[], Sequence[Array]]


def peak(kind: str, target: Target, threads: int) -> Peak:
    """The loop of `kind`, "dot" (codes) or "fma" (float32), of the best rung that `target` can run."""
    (kernel,) = choose(KERNELS[kind], target)
    random = np.random.default_rng(0)
    x = random.integers(0, 100, 16 * 32).astype(np.int32) if kind == "dot" else random.uniform(0, 1e-3, 16 * 32).astype(np.float32)
    program = Program()
    program.inputs = [program.value(Spec(x.shape, x.dtype))]
    program.outputs = list(program.call(_Loop(kernel, threads), program.inputs, "peak"))
    plan = build(program, target, threads, Packs())
    return Peak(kernel, INSTRUCTIONS[kind][kernel.isa], _macs(kernel) * ROUNDS * threads, lambda: plan.run([x]))
