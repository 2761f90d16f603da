"""What programs run on in these tests: the emulator, and a GPU where there is one (`pytest -m gpu`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from device.emulated import EmulatedDevice

from qrt.jit.cuda import available


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "emulated":
        yield EmulatedDevice()
        return
    if not available():
        pytest.skip("needs a CUDA device")
    from qrt.jit.driver import Driver

    yield Driver()
