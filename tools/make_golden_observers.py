"""Writes tests/golden/observers.npz: what torch.ao.quantization's observers answer on tests/observer_streams.py.

Run it with torch 2.13.0 on an x86-64 machine with AVX2: `python tools/make_golden_observers.py`. The test suite reads the
file and does not need torch.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.ao.quantization import observer as torch_observers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from observer_streams import CONFIGS, HOSTILE, STREAMS, stream  # noqa: E402 - the path has to be set first

DTYPES = {"quint8": torch.quint8, "qint8": torch.qint8, "qint16": torch.int16}


def answers(config: str) -> dict[str, np.ndarray]:
    """Scales, zero points and, for histograms, the CRC-32 of the counts, for every stream."""
    options = dict(CONFIGS[config])
    options["dtype"] = DTYPES[str(options.get("dtype", "quint8"))]
    if "qscheme" in options:
        options["qscheme"] = getattr(torch, str(options["qscheme"]))
    scales, zero_points, checks = [], [], []
    for seed in range(STREAMS + HOSTILE):
        observer = getattr(torch_observers, config.split()[0])(**options)
        for array in stream(seed):
            observer(torch.from_numpy(array))
        scale, zero_point = observer.calculate_qparams()
        scales.append(scale.numpy())
        zero_points.append(zero_point.numpy().astype(np.int32))
        if config.startswith("Histogram"):
            checks.append(zlib.crc32(observer.histogram.numpy().tobytes()))
    out = {"scale": np.stack(scales), "zero_point": np.stack(zero_points)}
    if checks:
        out["histogram_crc32"] = np.array(checks, np.uint32)
    return out


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    arrays = {f"{config}/{name}": array for config in CONFIGS for name, array in answers(config).items()}
    np.savez_compressed(ROOT / "tests" / "golden" / "observers.npz", torch_version=torch.__version__, **arrays)


if __name__ == "__main__":
    main()
