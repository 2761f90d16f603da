"""Writes tests/golden/qtensor.npz: torch's quantized tensors of tests/observer_streams.py.

Run it with torch 2.13.0 on an x86-64 machine with AVX2: `python tools/make_golden_qtensor.py`. The test suite reads the
file and does not need torch.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from observer_streams import QTENSORS, STREAMS, channel_qparams, stream  # noqa: E402 - the path has to be set first


def quantized(seed: int, case: str) -> torch.Tensor:
    """The first 20 columns of a stream's first array, quantized as the case says."""
    dtype, channels, floating = QTENSORS[case]
    x = stream(seed)[0][:, :20]
    scales, zero_points = channel_qparams(x, dtype, floating)
    torch_dtype = getattr(torch, dtype)
    if not channels:
        return torch.quantize_per_tensor(torch.from_numpy(x), float(scales[0]), int(zero_points[0]), torch_dtype)
    return torch.quantize_per_channel(torch.from_numpy(x), torch.from_numpy(scales), torch.from_numpy(zero_points), 0, torch_dtype)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    arrays = {}
    for case in QTENSORS:
        made = [quantized(seed, case) for seed in range(STREAMS)]
        arrays[f"{case}/codes"] = np.concatenate([q.int_repr().numpy().reshape(-1) for q in made])
        arrays[f"{case}/values_crc32"] = np.array([zlib.crc32(q.dequantize().contiguous().numpy().tobytes()) for q in made], np.uint32)
    np.savez_compressed(ROOT / "tests" / "golden" / "qtensor.npz", torch_version=torch.__version__, **arrays)


if __name__ == "__main__":
    main()
