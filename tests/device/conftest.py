"""A GPU that is emulated, for sessions."""

from __future__ import annotations

import pytest
from device.sessions import Emulation

from qrt.jit import driver
from qrt.runtime import segments


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    """Sessions of target "cuda" get emulated devices; no run on them is too small."""
    found = Emulation()
    monkeypatch.setattr(driver, "Driver", found)
    monkeypatch.setattr(segments, "LEAST_MACS", 0)
    return found
