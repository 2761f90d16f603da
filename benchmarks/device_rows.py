"""The benchmarks of `--target cuda`: products, what only moves bytes, and a network, beside torch and beside what the GPU could do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from unittest.mock import patch

import numpy as np
import onnx

import qrt
from benchmarks import torch_peer
from benchmarks.contest import FLOAT, Measured, Result, Settings, reason
from benchmarks.data import INT8, network
from benchmarks.gpu import Contender, Gpu, GpuArray, copying, in_turns, matrix_peak, scaled
from benchmarks.models import NETWORKS
from qrt.core.dtypes import quint8
from qrt.core.errors import QrtError
from qrt.core.qparams import QParams
from qrt.ops.conv import Window
from qrt.ops.gemm import Codes, Dense, Int32, Weights
from qrt.ops.gemm.device import HOPPER
from qrt.ops.op import Array, Op, Spec
from qrt.ops.pool import MaxPool, QAveragePool
from qrt.ops.program import Program
from qrt.ops.quantization import Dequantize, QBinary, Quantize
from qrt.report.bench import difference
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

__all__ = ["DEVICE_BENCHMARKS", "Planned", "bytes_moved", "memory_row", "product_row"]

SIZES = (4096, 8192, 16384)
SAMPLED = 64
BATCHES = (1, 64)
ZERO_POINT = 128
# Codes are the same on both; what is computed in floats may be this share of its range apart.
FLOATS_APART = 1e-5
CUDA = "cuda"
# On a GPU there are none to choose.
THREADS = 0


class Planned:
    """One op as a plan on a GPU, with its inputs there."""

    def __init__(self, gpu: Gpu, op: Op, inputs: Sequence[Array]) -> None:
        self.gpu, self.op = gpu, op
        program = Program()
        program.inputs = [program.value(Spec(x.shape, x.dtype)) for x in inputs]
        program.outputs = list(program.call(op, program.inputs, "op"))
        self.plan = DevicePlan(program, gpu, Packs())
        self.specs = [program.specs[value] for value in program.inputs], [program.specs[value] for value in program.outputs]
        self.inputs = [GpuArray.of(gpu, x) for x in inputs]
        self.outputs = [GpuArray(gpu, spec.shape, spec.dtype) for spec in self.specs[1]]

    def run(self) -> None:
        """Gives the plan to the GPU's stream."""
        self.plan.carry_out([x.address for x in self.inputs], [y.address for y in self.outputs], self.gpu.stream)

    def contender(self, name: str, wanted: Array, sample: Callable[[Array], Array]) -> Contender:
        """Raises QrtError if what `sample` takes of the result is not `wanted`."""
        self.run()
        self.gpu.wait()
        if not np.array_equal(sample(self.outputs[0].numpy()), wanted):
            raise QrtError(f"{name} is not what the reference of {type(self.op).__name__} is: nothing was timed")
        return Contender(name, version("qrt"), self.run)


def bytes_moved(inputs: Sequence[Spec], outputs: Sequence[Spec]) -> int:
    """The fewest that an op has to: each input read once, each output written once."""
    return sum(spec.nbytes for spec in (*inputs, *outputs))


# -- products ---------------------------------------------------------------------------------------------------------------
def product_rows(gpu: Gpu, settings: Settings) -> Iterator[Result]:
    """int8 squares, to int32 and requantized."""
    for epilogue in ("s32", "u8"):
        for size in SIZES:
            yield product_row(gpu, epilogue, (size, size, size), settings)


def product_row(gpu: Gpu, epilogue: str, size: tuple[int, int, int], settings: Settings) -> Result:
    """One product: as a plan chooses its kernel, by mma.sync alone, torch's, and what the tensor cores take without memory (`floor`)."""
    m, n, k = size
    settings.progress(f"{epilogue} {m}×{n}×{k}")
    random = np.random.default_rng(0)
    x, w = random.integers(0, 256, (m, k), np.uint8), random.integers(-127, 128, (k, n), np.int8)
    multiplier = np.full(n, 1 / (64 * np.sqrt(k) * 73), np.float32)  # a deviation of these products: about 73 · 74 · √K
    rows, columns = (np.sort(random.choice(extent, min(extent, SAMPLED), replace=False)) for extent in (m, n))

    def op(w: Array, multiplier: Array) -> Dense:
        made = Int32() if epilogue == "s32" else Codes(multiplier, ZERO_POINT)
        return Dense(Weights(np.ascontiguousarray(w)[None, None]), made, ZERO_POINT)

    def sample(y: Array) -> Array:
        return y[np.ix_(rows, columns)]

    (wanted,) = op(w[:, columns], multiplier[columns]).reference([x[rows]])
    ours = Planned(gpu, op(w, multiplier), [x])
    contenders, notes = [ours.contender("qrt", wanted, sample)], []
    if gpu.cc == HOPPER:
        with patch("qrt.ops.gemm.device.choose_hopper_tile", lambda m, n: None):
            contenders.append(Planned(gpu, op(w, multiplier), [x]).contender("qrt, mma.sync", wanted, sample))
    name = "torch._int_mm" if epilogue == "s32" else "torch._int_mm, compiled requantize"
    try:
        torch = torch_peer.torch_on_gpu()
        compute = torch_peer.product(torch, CUDA, x, w, None if epilogue == "s32" else multiplier, ZERO_POINT)
        contenders.append(torch_peer.contender(gpu, torch, name, compute, wanted, sample))
    except Exception as error:  # torch has many of its own: a peer that cannot run is no reason to stop
        notes.append(f"{name}: {reason(error)}")
    loop, looped = matrix_peak(gpu)
    *measured, floor = in_turns(gpu, [*contenders, loop], settings.rounds)
    floor = scaled(floor, ours.op.macs(*ours.specs) / looped)
    rate, share = 2 * ours.op.macs(*ours.specs) / measured[0].minimum / 1e6, floor.minimum / measured[0].minimum
    return Result(f"{epilogue} {m}×{n}×{k}", THREADS, [*measured, floor], rate=rate, share=share, notes=notes)


# -- what moves bytes ---------------------------------------------------------------------------------------------------------
FLAT, IMAGES = (512, 1 << 18), (512, 112, 112, 64)
CODES = QParams(np.array(0.03, np.float32), np.array(ZERO_POINT, np.int32), quint8)

# Op, shape of its inputs, and their dtypes.
MOVING: dict[str, tuple[Op, tuple[int, ...], tuple[type[np.generic], ...]]] = {
    "quantize": (Quantize(CODES), FLAT, (np.float32,)),
    "dequantize": (Dequantize(CODES), FLAT, (np.uint8,)),
    "add of codes": (QBinary("add", 0.03, 120, 0.05, 131, 0.06, 128), FLAT, (np.uint8, np.uint8)),
    "max pool 3×3 / 2 of codes": (MaxPool(Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))), IMAGES, (np.uint8,)),
    "average pool 2×2 / 2 of codes": (
        QAveragePool(Window((2, 2), (2, 2), (1, 1), (0, 0, 0, 0)), None, 0.03, 120, 0.03, 120),
        IMAGES,
        (np.uint8,),
    ),
}


def memory_rows(gpu: Gpu, settings: Settings) -> Iterator[Result]:
    """Each beside the driver's copy, which reads and writes as many bytes."""
    for name, (op, shape, kinds) in MOVING.items():
        yield memory_row(gpu, name, op, shape, kinds, settings)


def memory_row(gpu: Gpu, name: str, op: Op, shape: tuple[int, ...], kinds: Sequence[type[np.generic]], settings: Settings) -> Result:
    """An op that treats the first axis' entries alike, of which the first and the last are compared with its reference."""
    settings.progress(name)
    random = np.random.default_rng(0)
    inputs = [
        random.integers(0, 256, shape, np.uint8) if kind is np.uint8 else random.standard_normal(shape, np.float32) * np.float32(2)
        for kind in kinds
    ]
    (wanted,) = op.reference([x[[0, -1]] for x in inputs])
    ours = Planned(gpu, op, inputs)
    moved = bytes_moved(*ours.specs)
    copy, copied = copying(gpu, -(-moved // 2))
    mine, floor = in_turns(gpu, [ours.contender("qrt", wanted, lambda y: y[[0, -1]]), copy], settings.rounds)
    floor = scaled(floor, moved / copied)
    rate, share = moved / mine.minimum / 1e6, floor.minimum / mine.minimum
    return Result(f"{name}, {moved >> 20} MiB", THREADS, [mine, floor], rate=rate, share=share, rate_unit="GB/s")


# -- networks -----------------------------------------------------------------------------------------------------------------
def resnet_rows(gpu: Gpu, settings: Settings) -> Iterator[Result]:
    """ResNet-50 in int8, and in torch's float16: inputs and outputs stay on the GPU."""
    models = network("resnet50")
    for batch in BATCHES:
        settings.progress(f"batch {batch}")
        x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
        contenders, notes = [_session(gpu, models[INT8], x)], []
        try:
            contenders.append(_in_torch(gpu, models[FLOAT], NETWORKS["resnet50"](), x))
        except Exception as error:  # as above
            notes.append(f"torch: {reason(error)}")
        measured: list[Measured] = in_turns(gpu, contenders, settings.rounds)
        yield Result(f"resnet50, batch {batch}", THREADS, measured, notes=notes)


def _in_torch(gpu: Gpu, model: qrt.Model, proto: onnx.ModelProto, x: Array) -> Contender:
    """`proto` in torch, beside what `model`, the same network, gives on the CPU."""
    torch = torch_peer.torch_on_gpu()
    (wanted,) = qrt.InferenceSession(model).run(None, {"x": x})
    torch.backends.cudnn.benchmark = True
    compiled = torch.compile(torch_peer.convolutional(torch, CUDA, proto, torch.float16), mode="reduce-overhead")  # as one CUDA graph
    given = torch.from_numpy(x).to(CUDA, torch.float16).contiguous(memory_format=torch.channels_last)
    return torch_peer.contender(gpu, torch, "torch float16, compiled", lambda: compiled(given), wanted, np.asarray)


def _session(gpu: Gpu, model: qrt.Model, x: Array) -> Contender:
    """`model` in a session on the GPU, bound to arrays there. Raises QrtError if the CPU's result is another."""
    session = qrt.InferenceSession(model, target=CUDA)
    name = session.get_inputs()[0].name
    (wanted,) = qrt.InferenceSession(model).run(None, {name: x})
    given, made = GpuArray.of(gpu, x), GpuArray(gpu, wanted.shape, wanted.dtype)
    binding = session.bind(gpu.stream)
    binding.bind_input(name, given)
    binding.bind_output(session.get_outputs()[0].name, made)
    binding.run()
    gpu.wait()
    if (error := difference("the GPU", [wanted], [made.numpy()])) > FLOATS_APART:
        raise QrtError(f"what the GPU computes differs from what the CPU does by {error:.1e} of its range: nothing was timed")
    return Contender("qrt", version("qrt"), binding.run, error)


DEVICE_BENCHMARKS: dict[str, Callable[[Gpu, Settings], Iterator[Result]]] = {
    "gemm": product_rows,
    "memory": memory_rows,
    "resnet50": resnet_rows,
}
