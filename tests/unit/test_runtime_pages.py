"""Memory for constants and slabs: where it starts, what it holds, and that arrays on one shelf do not touch."""

from __future__ import annotations

import itertools
import resource

import numpy as np
import pytest

from qrt.runtime.pages import LEAST, PAGE, Shelf, room


@pytest.mark.parametrize("nbytes", [1, 63, PAGE // 2 - 1, PAGE // 2, PAGE + 1])
def test_room_is_zeroed_and_starts_at_a_cache_line(nbytes: int) -> None:
    array = room(nbytes)
    assert array.nbytes == nbytes
    assert array.ctypes.data % 64 == 0
    assert not array.any()
    array[:] = 7
    assert (array == 7).all()


@pytest.mark.parametrize("nbytes", [PAGE, 1 << 46])
def test_memory_that_the_system_refuses_is_a_memory_error(nbytes: int) -> None:
    """As of NumPy's own arrays, whichever way the memory is asked for."""
    held = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + PAGE // 2, held[1]))
    try:
        with pytest.raises(MemoryError, match=f"refuses {nbytes:,} bytes"):
            room(nbytes)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, held)
    assert not room(PAGE).any()


def test_arrays_on_a_shelf_keep_what_they_hold() -> None:
    shelf, rng = Shelf(), np.random.default_rng(0)
    shapes = [(3,), (LEAST // 4, 1), (LEAST + 1,), (5, 7, 64), (9, LEAST // 4), (20 << 20,), (14 << 20,)]
    sources = [
        rng.integers(0, 100, shape).astype(dtype) for shape, dtype in zip(shapes, [np.float32, np.int32, np.uint8] * 3, strict=False)
    ]
    kept = [shelf.put(source) for source in sources]
    for copy, source in zip(kept, sources, strict=True):
        assert copy.ctypes.data % 64 == 0
        assert copy.dtype == source.dtype
        np.testing.assert_array_equal(copy, source)
    ends = sorted((copy.ctypes.data, copy.ctypes.data + copy.nbytes) for copy in kept)
    assert all(stop + 64 <= start for (_, stop), (start, _) in itertools.pairwise(ends))  # 64 bytes past the end may be read


def test_the_last_array_keeps_the_shelf() -> None:
    shelf = Shelf()
    kept = shelf.put(np.full(LEAST, 3, np.uint8))
    del shelf
    assert (kept == 3).all()
