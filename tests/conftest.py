"""What every test gets: property tests that draw the same examples each run and are not timed, as the first example may compile."""

import sys
from pathlib import Path

from hypothesis import settings

settings.register_profile("qrt", deadline=None, derandomize=True)
settings.load_profile("qrt")

# For `benchmarks`. Last, so that ./qrt does not hide an installed qrt, which has qrt.ops and qrt.loaders.
sys.path.append(str(Path(__file__).resolve().parents[1]))
