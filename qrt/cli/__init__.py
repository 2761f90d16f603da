"""The command line: `qrt quantize | run | bench | inspect | compare | demo`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The console script `qrt`."""
    from qrt.cli.app import run

    sys.exit(run(sys.argv[1:]))
