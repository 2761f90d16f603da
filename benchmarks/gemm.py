"""Matrix products, beside ONNX Runtime's and beside what the machine's multiply-add instructions could reach."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qrt
from benchmarks.contest import Result, Settings, engines_of, measure
from benchmarks.peak import peak
from qrt.core.target import Target
from qrt.jit import host_target
from qrt.ops.gemm.dense import Dense
from qrt.ops.gemm.epilogue import Codes, Float
from qrt.ops.gemm.product import Weights
from qrt.ops.op import Array, Spec
from qrt.ops.program import Program
from qrt.report.bench import Engine, difference, time_in_turns
from qrt.runtime.plan import Packs, build

__all__ = ["SIZES", "gemm_rows", "product_rows"]

# (M, N, K): few rows (a token at a time, a last layer), square, long, MiniLM's, ResNet-50's as products.
SIZES = (
    *((m, 1024, 1024) for m in (1, 2, 4, 8)),
    (1, 1000, 2048),
    (1, 4096, 4096),
    *((size, size, size) for size in (64, 128, 256, 512, 1024, 2048)),
    (8192, 1024, 1024),
    (1024, 1024, 8192),
    *((128, n, k) for n, k in ((384, 384), (1536, 384), (384, 1536))),
    *((3136, 64, 64), (3136, 64, 576), (784, 128, 1152), (196, 256, 2304), (49, 512, 4608), (49, 2048, 512)),
)
# A plan of the product alone repeats it until it does about this many multiply-accumulates, so that starting the plan costs nothing, nor do
# the pages of its new result; a few hundred steps are enough for that.
REPEATED_MACS, REPEATS = 1 << 31, 256
SINGLE = "float32"


def gemm_rows(settings: Settings) -> Iterator[Result]:
    """uint8 by int8, then float32 by float32."""
    for kind in ("u8s8", SINGLE):
        for size in SIZES:
            for threads in settings.threads:
                yield product_rows(kind, size, threads, settings)


def product_rows(kind: str, size: tuple[int, int, int], threads: int, settings: Settings) -> Result:
    """One product: in a model of one node, by the kernel alone (`kernel`: a plan without a session), and by the peak loop (`floor`)."""
    m, n, k = size
    settings.progress(f"{kind} {m}×{n}×{k}")
    x, w = _operands(kind, size)
    notes: list[str] = []
    target, macs = host_target(), m * n * k
    engines = engines_of(qrt.load(_model(kind, x, w)), {"x": x}, threads, settings, notes)
    kernel, repeats = _kernel(kind, x, w, threads, target)
    loop = peak("fma" if kind == SINGLE else "dot", target, threads)
    timings = time_in_turns([*engines, kernel, Engine("floor", version("qrt"), loop.run)], settings.rounds)
    *measured, alone, floor = map(measure, timings)
    alone, floor = alone.scaled(1 / repeats), floor.scaled(macs / loop.macs)
    rate = 2 * macs / alone.minimum / 1e6
    case = f"{kind} {m}×{n}×{k} ({loop.instruction})"
    return Result(case, threads, [*measured, alone, floor], rate=rate, share=floor.minimum / alone.minimum, notes=notes)


def _operands(kind: str, size: tuple[int, int, int]) -> tuple[Array, Array]:
    m, n, k = size
    random = np.random.default_rng(0)
    if kind == SINGLE:
        return random.standard_normal((m, k)).astype(np.float32), random.standard_normal((k, n)).astype(np.float32)
    return random.integers(0, 256, (m, k)).astype(np.uint8), random.integers(-127, 128, (k, n)).astype(np.int8)


def _model(kind: str, x: Array, w: Array) -> onnx.ModelProto:
    single = kind == SINGLE
    node = helper.make_node("MatMul" if single else "MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT if single else TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT if single else TensorProto.INT32, (len(x), w.shape[1]))],
        [numpy_helper.from_array(w, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _kernel(kind: str, x: Array, w: Array, threads: int, target: Target) -> tuple[Engine, int]:
    """The product with the epilogue that a network gives it, again and again in one plan, its result checked; and how often."""
    n = w.shape[1]
    multiplier = np.full(n, 1 / (64 * np.sqrt(len(w)) * 73), np.float32)  # a deviation of uint8 × int8 products: about 73 · 147 · √K
    epilogue = Float() if kind == SINGLE else Codes(multiplier, 128)
    op = Dense(Weights(np.ascontiguousarray(w[None, None])), epilogue)
    repeats = min(REPEATS, max(1, REPEATED_MACS // (x.size * n)))
    program = Program()
    value = program.value(Spec(x.shape, x.dtype))
    program.inputs = [value]
    for _ in range(repeats):
        program.outputs = list(program.call(op, [value], "product"))
    plan = build(program, target, threads, Packs())
    error = difference("its reference", plan.run([x]), op.reference([x]))
    return Engine("kernel", version("qrt"), lambda: plan.run([x]), error), repeats
