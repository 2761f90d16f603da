"""Writes tests/golden/affine.npz: what torchao's observers of blocks, torch's fake-quantize operators and a model prepared by torch hold.

Run it with torch 2.13.0 and torchao 0.18.0 on an x86-64 machine with AVX2: `python tools/make_golden_affine.py`. The test suite reads
the file and needs neither.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchao
from torch.ao import quantization as torch_quantization
from torch.ao.quantization.quantize_fx import prepare_fx
from torchao.quantization import granularity as granularities
from torchao.quantization.pt2e import _affine_quantization as affine
from torchao.quantization.quant_primitives import MappingType, ZeroPointDomain

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from affine_streams import AVERAGES, FAKE_QUANTIZED, GRANULARITIES, MAPPINGS, SEEDS, affine_stream, fake_quantized  # noqa: E402 - the path has to be set first


def observer(granularity: str, mapping: str, average: float | None) -> Any:
    """torchao's observer of a case."""
    options = dict(MAPPINGS[mapping])
    arguments = (
        MappingType[str(options.pop("mapping"))],
        getattr(torch, str(options.pop("dtype"))),
        getattr(granularities, granularity)(*GRANULARITIES[granularity]),
    )
    options["zero_point_domain"] = ZeroPointDomain[str(options.pop("domain", "INT"))]
    if average is None:
        return affine.AffineQuantizedMinMaxObserver(*arguments, **options)
    return affine.AffineQuantizedMovingAverageMinMaxObserver(*arguments, averaging_constant=average, **options)


def checks(granularity: str, mapping: str, average: float | None) -> np.ndarray:
    """For every stream: the CRC-32 of the scales, float32, and of the zero points, int32, or float32 where they are floats."""
    found = []
    for seed in SEEDS:
        made = observer(granularity, mapping, average)
        for array in affine_stream(seed):
            made(torch.from_numpy(array))
        scale, zero_point = made.calculate_qparams()
        kind = np.float32 if MAPPINGS[mapping].get("domain") == "FLOAT" else np.int32
        of_zero_points = 0 if zero_point is None else zlib.crc32((zero_point.numpy().astype(kind) + kind(0)).tobytes())
        found.append((zlib.crc32(scale.numpy().tobytes()), of_zero_points))
    return np.array(found, np.uint32)


def operator(channels: int | None, floating: bool) -> dict[str, np.ndarray]:
    """For every case: the CRC-32 of a fake-quantize operator's output and of its gradient mask."""
    outputs, masks = [], []
    for seed in range(FAKE_QUANTIZED):
        array, scale, zero_point, qmin, qmax = fake_quantized(seed, channels, floating)
        x = torch.from_numpy(array).requires_grad_()
        if channels is None:
            y = torch.fake_quantize_per_tensor_affine(x, float(scale[0]), int(zero_point[0]), qmin, qmax)
        else:
            y = torch.fake_quantize_per_channel_affine(x, torch.from_numpy(scale), torch.from_numpy(zero_point), 0, qmin, qmax)
        y.backward(torch.ones_like(y))
        outputs.append(zlib.crc32((y.detach().numpy() + np.float32(0)).tobytes()))
        masks.append(zlib.crc32((x.grad.numpy() != 0).tobytes()))
    return {"output_crc32": np.array(outputs, np.uint32), "mask_crc32": np.array(masks, np.uint32)}


def network() -> torch.nn.Module:
    """Two layers to prepare."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(108, 4)).eval()


def saved_states() -> dict[str, np.ndarray]:
    """The observers' states of a network prepared eagerly and by FX, as torch saves them, and the qparams that torch finds in them."""
    found: dict[str, np.ndarray] = {}
    x = torch.from_numpy(np.random.RandomState(3).random_sample((4, 1, 8, 8)).astype(np.float32))
    for door in ("eager", "fx"):
        model = network()
        if door == "eager":
            model.qconfig = torch_quantization.get_default_qconfig("onednn")
            prepared = torch_quantization.prepare(model)
        else:
            prepared = prepare_fx(model, torch_quantization.get_default_qconfig_mapping("qnnpack"), (x,))
        for scale in (1.0, 2.0):
            prepared(x * scale)
        state = torch_quantization.get_observer_state_dict(prepared)
        found |= {f"{door}/{key}": value.numpy() for key, value in state.items()}
        for name, module in prepared.named_modules():
            if isinstance(module, torch_quantization.HistogramObserver):
                qparams = module.calculate_qparams()
                found |= {f"{door} {kind}/{name}": q.numpy() for kind, q in zip(("scale", "zero_point"), qparams, strict=True)}
    return found


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    arrays = {}
    for average in AVERAGES:
        for granularity in GRANULARITIES:
            arrays[f"{average} {granularity}"] = np.stack([checks(granularity, mapping, average) for mapping in MAPPINGS])
    for case, (channels, floating) in {"tensor": (None, False), "channels": (5, False), "float channels": (5, True)}.items():
        arrays |= {f"{case}/{name}": array for name, array in operator(channels, floating).items()}
    target = ROOT / "tests" / "golden" / "affine.npz"
    versions = {"torch_version": torch.__version__, "torchao_version": torchao.__version__}
    np.savez_compressed(target, **versions, **arrays, **saved_states())


if __name__ == "__main__":
    main()
