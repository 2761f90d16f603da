"""What every test gets: property tests that draw the same examples each run and are not timed, as the first example may compile; and a
key for compiled models that is not the user's."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from qrt.jit.cache import cache_dir

settings.register_profile("qrt", deadline=None, derandomize=True)
settings.load_profile("qrt")

# For `benchmarks`. Last, so that ./qrt does not hide an installed qrt, which has qrt.ops and qrt.loaders.
sys.path.append(str(Path(__file__).resolve().parents[1]))


@pytest.fixture(scope="session", autouse=True)
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of the key, which is made when it is needed."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("key") / "key"
        patch.setenv("QRT_KEY_FILE", str(path))
        yield path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that has its kernels, and nothing else."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "kernels").symlink_to(cache_dir() / "kernels")
    monkeypatch.setenv("QRT_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def plans(cache: Path) -> Path:
    """The folder of plans of a cache that has none."""
    return cache / "plans"
