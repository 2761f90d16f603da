"""torch on the GPU, as a peer of `--target cuda`. It is imported here alone, and only when a row wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.contest import Skipped
from benchmarks.gpu import Contender, Gpu
from qrt.ops.op import Array
from qrt.report.bench import difference

__all__ = ["contender", "convolutional", "product", "torch_on_gpu"]


def torch_on_gpu() -> Any:
    """torch. Raises Skipped where it is not installed, or finds no GPU."""
    try:
        import torch
    except ImportError as error:
        raise Skipped("torch is not installed") from error
    if not torch.cuda.is_available():
        raise Skipped(f"torch {torch.__version__} finds no GPU")
    return torch


def contender(gpu: Gpu, torch: Any, name: str, compute: Callable[[], Any], wanted: Array, sample: Callable[[Array], Array]) -> Contender:
    """`compute` on the GPU's stream. Raises QrtError if its result, of which `sample` takes a part, is not `wanted`."""
    stream = torch.cuda.ExternalStream(gpu.stream)

    def run() -> Any:
        with torch.cuda.stream(stream), torch.inference_mode():
            return compute()

    found = run()
    stream.synchronize()
    return Contender(name, torch.__version__, run, difference(name, [wanted], [sample(found.float().cpu().numpy())]))


def product(torch: Any, device: str, x: Array, w: Array, multiplier: Array | None, zero_point: int) -> Callable[[], Any]:
    """`_int_mm` of codes x [m, k] less 128 and w [k, n], with B as cuBLASLt wants it, column after column; with `multiplier`, requantized
    to uint8 by a function that torch.compile makes one kernel of."""
    left = torch.from_numpy((x ^ np.uint8(128)).view(np.int8)).to(device)
    right = torch.from_numpy(np.ascontiguousarray(w.T)).to(device).t()
    if multiplier is None:
        return lambda: torch._int_mm(left, right)
    scale = torch.from_numpy(multiplier).to(device)

    @torch.compile  # type: ignore[untyped-decorator]
    def requantize(total: Any) -> Any:
        return (torch.round(total.float() * scale) + zero_point).clamp(0, 255).to(torch.uint8)

    return lambda: requantize(torch._int_mm(left, right))


def convolutional(torch: Any, device: str, model: onnx.ModelProto, kind: Any) -> Callable[[Any], Any]:
    """A convolutional network of one input and one output, of the dtype `kind`, channels-last. Raises Skipped for what is not here."""
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()).to(device, kind) for t in model.graph.initializer}
    weights = {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in values.items()}
    steps = [(_operator(torch, node), list(node.input), node.output[0]) for node in model.graph.node]
    given, result = model.graph.input[0].name, model.graph.output[0].name

    def run(x: Any) -> Any:
        made = {**weights, given: x}
        for step, inputs, output in steps:
            made[output] = step(*(made[name] for name in inputs))
        return made[result]

    return run


def _operator(torch: Any, node: onnx.NodeProto) -> Callable[..., Any]:
    """An ONNX node in torch's words."""
    functional = torch.nn.functional
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    pads: Sequence[int] = given.get("pads", (0, 0, 0, 0))
    if list(pads[:2]) == list(pads[2:]):
        strides, padding = given.get("strides", (1, 1)), tuple(pads[:2])
        match node.op_type:
            case "Conv":
                return lambda x, w, b: functional.conv2d(x, w, b, strides, padding, groups=given.get("group", 1))
            case "MaxPool":
                return lambda x: functional.max_pool2d(x, given["kernel_shape"], strides, padding)
            case "Gemm" if given.get("transB"):
                return lambda x, w, b: functional.linear(x, w, b)
            case "GlobalAveragePool":
                return lambda x: x.mean((2, 3), keepdim=True)
            case "Flatten":
                return lambda x: torch.flatten(x, 1)
            case "Relu":
                return lambda x: torch.relu(x)
            case "Add":
                return lambda x, y: x + y
    raise Skipped(f"no {node.op_type} of these attributes in torch: {given}")
