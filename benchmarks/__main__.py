"""Runs the benchmarks from the command line."""

from __future__ import annotations

import sys

# `python -m` looks in the repository first, where ./qrt would hide an installed qrt, which has qrt.ops and qrt.loaders.
sys.path.append(sys.path.pop(0))

from benchmarks.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
