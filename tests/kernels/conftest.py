"""What tests of kernels get: work that is shared between threads however small it is, so that small tests see how it is cut."""

from collections.abc import Iterator

import pytest

from qrt.ops.elementwise import walk
from qrt.ops.gemm import product


@pytest.fixture(scope="module", autouse=True)
def shared_however_small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, "SMALL", 0)
        patch.setattr(walk, "SMALL", 0)
        yield
