"""The real models as int8: what the CPU gives. On a GPU (`pytest -m gpu`) all of them, and the smallest in the emulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import data
import numpy as np
import pytest
from data import needs_data
from device.needs import needs_cuda

import qrt
from qrt.graph import Model
from qrt.report.example import example_feeds

if TYPE_CHECKING:
    from device.sessions import Emulation

FILES = (data.RESNET20_QDQ, data.RESNET20_QOPERATOR, data.MLPERF_RESNET8_INT8)
FLOATS = (
    data.RESNET20,
    data.MLPERF_RESNET8,
    data.MNIST,
    data.KEYPOINT,
    data.POINT_HISTORY,
    data.POINT_HISTORY_LSTM,
    data.ULTRAFACE,
    data.YOLOX_NANO,
    data.MOBILENET_V1,
    data.SILERO_VAD,
    data.MAGIKA,
)
SMALL = (data.KEYPOINT, data.POINT_HISTORY, data.POINT_HISTORY_LSTM)


def cases(paths: tuple[Path, ...]) -> list[Any]:
    return [pytest.param(path, marks=needs_data(path.relative_to(data.DATA).as_posix()), id=path.stem) for path in paths]


def feeds_of(model: Model) -> Mapping[str, np.ndarray]:
    """Random codes for a model that takes codes, else its example feeds."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(-100, 100, array.shape).astype(array.dtype) if array.dtype == np.int8 else array
        for name, array in example_feeds(model).items()
    }


def check(model: Model, same: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """On a GPU and on the CPU, twice, by a session and by a binding whose results stay on the device until they are asked for."""
    feeds = feeds_of(model)
    with qrt.InferenceSession(model, target="cuda") as session:
        wanted = qrt.InferenceSession(model).run(None, feeds)
        binding = session.bind()
        for name, array in feeds.items():
            binding.bind_input(name, array)
        for arg in session.get_outputs():
            binding.bind_output(arg.name, "cuda")
        for _ in range(2):
            binding.run()
            for found in (session.run(None, feeds), binding.copy_outputs_to_cpu()):
                for y, expected in zip(found, wanted, strict=True):
                    same(y, expected)


def nearly(found: np.ndarray, wanted: np.ndarray) -> None:
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(np.max(np.abs(wanted), initial=0)))


@pytest.mark.gpu
@pytest.mark.parametrize("path", cases(FILES))
def test_files_of_codes_bit_for_bit(gpu: Any, path: Path) -> None:
    check(qrt.load(path), np.testing.assert_array_equal)


@pytest.mark.gpu
@pytest.mark.parametrize("path", cases(FLOATS))
def test_quantized_here(gpu: Any, path: Path) -> None:
    model = qrt.load(path)
    check(qrt.quantize(model, [example_feeds(model)], progress=False), nearly)


@pytest.mark.gpu
@pytest.mark.parametrize("path", cases(SMALL))
def test_quantized_dynamically(gpu: Any, path: Path) -> None:
    check(qrt.quantize_dynamic(qrt.load(path)), nearly)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[needs_cuda, pytest.mark.filterwarnings("ignore")])])
@pytest.mark.parametrize("path", cases(SMALL))
def test_in_the_emulator(emulation: Emulation, path: Path, compiled: bool) -> None:
    """A few dense layers, a transformer, an LSTM: by the kernels' source, and as they were compiled."""
    if compiled:
        from device.compiled import CompiledDevice  # here: it needs greenlet

        emulation.kind = CompiledDevice
    model = qrt.load(path)
    for int8 in (qrt.quantize(model, [example_feeds(model)], progress=False), qrt.quantize_dynamic(model)):
        check(int8, nearly)
    assert emulation.device.launched
