"""What tests of kernels that are compiled need."""

from __future__ import annotations

import importlib.util

import pytest

needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda and nvJitLink: pip install 'qrt[cuda]'"
)
