"""The devices that tests of whole programs run on: the emulator and, with `pytest -m gpu`, the first GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


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
