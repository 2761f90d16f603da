"""Profile: the steps of a session's runs, as a Chrome trace (open it in chrome://tracing or ui.perfetto.dev)."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from qrt.core.files import write_whole
from qrt.ops.op import Array
from qrt.runtime.clock import Clock

__all__ = ["Profile"]

# As ONNX Runtime: a trace past this cannot be opened anyway, and a server that profiles must not run out of memory.
MAX_EVENTS = 1_000_000


class Profile:
    """Collects the steps of runs; `record` may be called from many threads at once."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._stages: list[tuple[int, Sequence[str], Sequence[str], Array]] = []
        self._events = 0

    def record(self, names: Sequence[str], kernels: Sequence[str], cycles: Array) -> None:
        """One stage of one run: its steps, and the cycle counter before the first and after each. Nothing is kept past a million steps."""
        if self._events < MAX_EVENTS:
            self._events += len(names)
            self._stages.append((threading.get_ident(), names, kernels, cycles))

    def write(self, path: Path) -> None:
        """Writes the trace: an event per step with its node's name, kernel, start and duration in microseconds. Raises OutputError."""
        process = os.getpid()
        events = []
        for thread, names, kernels, cycles in self._stages:
            times = self._clock.microseconds(cycles)
            for name, kernel, begin, end in zip(names, kernels, times[:-1], times[1:], strict=True):
                events.append(
                    {
                        "name": name,
                        "cat": "Node",
                        "ph": "X",
                        "ts": float(begin),
                        "dur": float(end - begin),
                        "pid": process,
                        "tid": thread,
                        "args": {"kernel": kernel},
                    }
                )
        write_whole(path, lambda part: part.write_text(json.dumps({"traceEvents": events}), encoding="utf-8"))
