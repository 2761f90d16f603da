"""The devices that tests of whole programs run on: the emulator and, with `pytest -m gpu`, the first GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from device.sessions import Emulation


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What numba-cuda warns of while it compiles is no failure of a test on a GPU."""
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What small programs run on, here and there."""
    if request.param == "emulated":
        from device.emulated import EmulatedDevice  # here: it needs greenlet

        yield EmulatedDevice()
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
