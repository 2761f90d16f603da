"""The devices that tests of whole programs run on: two that are none, one of which executes the source of kernels and the other what the
compiler made of it, and, with `pytest -m gpu`, the first GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest
from device.needs import needs_cuda

if TYPE_CHECKING:
    from device.sessions import Emulation

_QUIET = pytest.mark.filterwarnings("ignore")  # what numba-cuda warns of while it compiles


def _left_out(item: pytest.Item) -> bool:
    """Whether a test of a compiled kernel of floats is left out. They come from a few factories, and differ in what they do to a number:
    of four, one is compiled here, and all where there is a GPU."""
    return item.path.name == "test_float.py" and "[compiled" in item.name and crc32(item.name.encode()) % 4 > 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if _left_out(item)])
    items[:] = [item for item in items if not _left_out(item)]
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(_QUIET)


@pytest.fixture(params=["emulated", pytest.param("compiled", marks=[needs_cuda, _QUIET]), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What small programs run on, here and there."""
    if request.param == "emulated":
        from device.emulated import EmulatedDevice  # here: it needs greenlet

        yield EmulatedDevice()
    elif request.param == "compiled":
        from device.compiled import CompiledDevice

        yield CompiledDevice()
    else:
        yield request.getfixturevalue("gpu")


@pytest.fixture
def gpu() -> Any:
    """A GPU, for programs that the emulator would take too long for; mark such tests `gpu`."""
    from qrt.jit.cuda import available

    if not available():
        pytest.skip("needs a CUDA device")
    from qrt.jit.driver import Driver

    return Driver()


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    """Sessions of target "cuda" get emulated devices; no run on them is too small."""
    from device.sessions import Emulation

    from qrt.jit import driver
    from qrt.runtime import segments

    found = Emulation()
    monkeypatch.setattr(driver, "Driver", found)
    monkeypatch.setattr(segments, "LEAST_MACS", 0)
    return found
