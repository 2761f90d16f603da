"""Observers of blocks, fake quantization and saved states against the recorded answers of torchao 0.18.0 and torch 2.13.0
(tools/make_golden_affine.py)."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from affine_streams import AVERAGES, FAKE_QUANTIZED, GRANULARITIES, MAPPINGS, SEEDS, affine_stream, fake_quantized

from qrt import observers
from qrt.core.dtypes import QDType, per_channel_affine, per_channel_affine_float_qparams, qint8, qint16, quint8
from qrt.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
    FakeQuantize,
    HistogramObserver,
    MappingType,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    ZeroPointDomain,
    get_observer_state_dict,
    load_observer_state_dict,
)

F32 = np.float32
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "affine.npz")
DTYPES: dict[str, QDType] = {"uint8": quint8, "int8": qint8, "int16": qint16}


def observer(granularity: str, mapping: str, average: float | None) -> AffineQuantizedMinMaxObserver:
    options: dict[str, Any] = dict(MAPPINGS[mapping])
    first = MappingType[options.pop("mapping")], DTYPES[options.pop("dtype")], getattr(observers, granularity)(*GRANULARITIES[granularity])
    options["zero_point_domain"] = ZeroPointDomain[options.pop("domain", "INT")]
    if average is None:
        return AffineQuantizedMinMaxObserver(*first, **options)
    return AffineQuantizedMovingAverageMinMaxObserver(*first, averaging_constant=average, **options)


def crc32(array: np.ndarray) -> int:
    return zlib.crc32((array + array.dtype.type(0)).tobytes())  # + 0: there is one zero


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("average", AVERAGES)
def test_observers_of_blocks_equal_torchao(granularity: str, average: float | None) -> None:
    golden, wrong = GOLDEN[f"{average} {granularity}"], []
    assert golden.shape == (len(MAPPINGS), len(SEEDS), 2)
    for mapping, answers in zip(MAPPINGS, golden, strict=True):
        for seed, (of_scale, of_zero_point) in zip(SEEDS, answers, strict=True):
            made = observer(granularity, mapping, average)
            for array in affine_stream(seed):
                assert made(array) is array
            scale, zero_point = made.calculate_qparams()
            assert scale.dtype == F32
            if crc32(scale) != of_scale:
                wrong.append((mapping, seed, "scale", scale))
            if (0 if zero_point is None else crc32(zero_point)) != of_zero_point:
                wrong.append((mapping, seed, "zero point", scale, zero_point))
    assert not wrong


def test_there_are_enough_streams() -> None:
    assert len(GRANULARITIES) * len(MAPPINGS) * len(SEEDS) >= 200


@pytest.mark.parametrize(("case", "channels", "floating"), [("tensor", None, False), ("channels", 5, False), ("float channels", 5, True)])
def test_fake_quantize_operators_equal_torch(case: str, channels: int | None, floating: bool) -> None:
    """Outputs and gradient masks where most values are ties, with zero points odd and even, and with values that have no code."""
    wrong = []
    for seed in range(FAKE_QUANTIZED):
        x, scale, zero_point, qmin, qmax = fake_quantized(seed, channels, floating)
        options: dict[str, Any] = {"dtype": qint16, "observer": MinMaxObserver}
        if channels is not None:
            scheme = per_channel_affine_float_qparams if floating else per_channel_affine
            options |= {"observer": PerChannelMinMaxObserver, "qscheme": scheme}
        made = FakeQuantize(quant_min=qmin, quant_max=qmax, **options)
        made.disable_observer()
        made.scale, made.zero_point = scale, zero_point
        if crc32(made(x)) != GOLDEN[f"{case}/output_crc32"][seed]:
            wrong.append((seed, "output"))
        if zlib.crc32(made.gradient_mask(x).tobytes()) != GOLDEN[f"{case}/mask_crc32"][seed]:
            wrong.append((seed, "mask"))
    assert not wrong


@pytest.mark.parametrize("door", ["eager", "fx"])
def test_states_of_a_model_that_torch_prepared_load(door: str) -> None:
    """The dict as torch's get_observer_state_dict gives it: loaded, it gives torch's qparams, and saved again it is the same."""
    saved = {key.removeprefix(f"{door}/"): GOLDEN[key] for key in GOLDEN.files if key.startswith(f"{door}/")}
    modules = {key.removeprefix(f"{door} scale/"): HistogramObserver() for key in GOLDEN.files if key.startswith(f"{door} scale/")}
    assert len(modules) == {"eager": 2, "fx": 4}[door]
    mark = ".activation_post_process"
    held: Any = {name.removesuffix(mark): module for name, module in modules.items()}
    if door == "fx":  # which calls its observers activation_post_process_0 …, as modules of the graph
        held = SimpleNamespace(named_modules=modules.items)
    load_observer_state_dict(held, saved)
    for name, module in modules.items():
        scale, zero_point = module.calculate_qparams()
        assert scale == GOLDEN[f"{door} scale/{name}"]
        assert zero_point == GOLDEN[f"{door} zero_point/{name}"]
    again = get_observer_state_dict(held)
    assert sorted(again) == sorted(saved)
    for key, array in again.items():
        np.testing.assert_array_equal(array, saved[key])
