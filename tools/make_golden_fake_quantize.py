"""Writes tests/golden/fake_quantize.npz: what torch's fake-quantize presets, its chooser and its saved states hold.

Run it with torch 2.13.0 on an x86-64 machine with AVX2: `python tools/make_golden_fake_quantize.py`. The test suite reads the
file and does not need torch.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.ao import quantization as torch_quantization

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from observer_streams import (  # noqa: E402 - the path has to be set first
    CHOOSERS,
    FAKE_CONFIGS,
    FAKE_QUANTS,
    HOSTILE,
    PRESETS,
    STREAMS,
    chooser_ranges,
    stream,
)


def made(name: str) -> torch.nn.Module:
    """A fake-quantize, by the name of its preset or of its configuration."""
    if name in FAKE_QUANTS:
        return getattr(torch_quantization, name)()
    options = dict(FAKE_CONFIGS[name])
    if "dtype" in options:
        options["dtype"] = getattr(torch, str(options["dtype"]))
    cls = getattr(torch_quantization, name.split()[0])
    return cls(observer=torch_quantization.MovingAverageMinMaxObserver, **options)


def fake_quantized(name: str) -> dict[str, np.ndarray]:
    """For every stream: the last scale and zero point, and the CRC-32 of all outputs and of all gradient masks."""
    scales, zero_points, outputs, masks = [], [], [], []
    for seed in range(STREAMS + HOSTILE):
        module = made(name)
        output = mask = 0
        for array in stream(seed):
            if not array.size:  # torch's operators refuse these
                continue
            x = torch.from_numpy(array).requires_grad_()
            y = module(x)
            y.sum().backward()
            output = zlib.crc32(y.detach().numpy().tobytes(), output)
            mask = zlib.crc32((x.grad.numpy() != 0).tobytes(), mask)
        scales.append(module.scale.numpy().copy())
        zero_points.append(module.zero_point.numpy().copy())
        outputs.append(output)
        masks.append(mask)
    crc = {"output_crc32": np.array(outputs, np.uint32), "mask_crc32": np.array(masks, np.uint32)}
    return {"scale": np.stack(scales), "zero_point": np.stack(zero_points), **crc}


def observed(preset: str) -> dict[str, np.ndarray]:
    """Scale and zero point of an observer preset, for every stream."""
    scales, zero_points = [], []
    for seed in range(STREAMS + HOSTILE):
        observer = getattr(torch_quantization, preset)()
        for array in stream(seed):
            observer(torch.from_numpy(array))
        scale, zero_point = observer.calculate_qparams()
        scales.append(scale.numpy().copy())
        zero_points.append(zero_point.numpy().astype(np.float32 if zero_point.is_floating_point() else np.int32))
    return {"scale": np.stack(scales), "zero_point": np.stack(zero_points)}


def chosen(case: str) -> dict[str, np.ndarray]:
    """The fused fake-quantize's scale and zero point of ranges given as arrays of two values."""
    qmin, qmax, symmetric = CHOOSERS[case]
    low, high = (torch.from_numpy(side) for side in chooser_ranges())
    n = low.numel()
    scale, zero_point = torch.ones(n), torch.zeros(n, dtype=torch.int32)
    on = torch.ones(1, dtype=torch.long)
    torch.fused_moving_avg_obs_fake_quant(
        torch.stack([low, high], 1), on, on, torch.empty(0), torch.empty(0), scale, zero_point, 1.0, qmin, qmax, 0, True, symmetric
    )
    return {"scale": scale.numpy(), "zero_point": zero_point.numpy()}


def dynamic(reduce_range: bool) -> dict[str, np.ndarray]:
    """Scale (float64) and zero point that dynamic quantization takes for the same ranges."""
    ranges = torch.from_numpy(np.stack(chooser_ranges(), axis=1))
    pairs = [torch._choose_qparams_per_tensor(pair, reduce_range) for pair in ranges]
    return {"scale": np.array([scale for scale, _ in pairs]), "zero_point": np.array([zero_point for _, zero_point in pairs], np.int32)}


def states() -> dict[str, np.ndarray]:
    """The state dicts of some observers and fake-quantizes after stream 30."""
    names = ("MinMaxObserver", "MovingAverageMinMaxObserver", "PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver")
    passive = ("HistogramObserver", "default_fixed_qparams_range_0to1_observer", "PlaceholderObserver", "RecordingObserver")
    found = {}
    for name in (*names, *passive, *FAKE_QUANTS):
        module = getattr(torch_quantization, name)()
        for array in stream(30):
            module(torch.from_numpy(array))
        found.update({f"state/{name}/{key}": value.numpy() for key, value in module.state_dict().items()})
    return found


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    arrays = {f"{preset}/{name}": array for preset in (*FAKE_QUANTS, *FAKE_CONFIGS) for name, array in fake_quantized(preset).items()}
    arrays |= {f"{preset}/{name}": array for preset in PRESETS for name, array in observed(preset).items()}
    arrays |= {f"chooser {case}/{name}": array for case in CHOOSERS for name, array in chosen(case).items()}
    arrays |= {f"dynamic {reduced}/{name}": array for reduced in (False, True) for name, array in dynamic(reduced).items()}
    target = ROOT / "tests" / "golden" / "fake_quantize.npz"
    np.savez_compressed(target, torch_version=torch.__version__, **arrays, **states())


if __name__ == "__main__":
    main()
