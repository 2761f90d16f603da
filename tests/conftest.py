"""What every test gets: property tests that draw the same examples each run and are not timed, as the first example may compile."""

from hypothesis import settings

settings.register_profile("qrt", deadline=None, derandomize=True)
settings.load_profile("qrt")
