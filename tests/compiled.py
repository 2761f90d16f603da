"""Compiled models for tests, and ways to write ones that `qrt.compile` would not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from graphs import make

from qrt.core.sections import Sections, pack, read


def network() -> onnx.ModelProto:
    """A small network with free batch: a product with a constant, functions, a sum, a transpose."""
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((8, 16), np.float32), rng.standard_normal(16, np.float32)
    text = (
        "(float[N,8] x, float[N,16] z) => (float[16,N] y, float[N,16] h) { g = Gemm(x, w, b) h = Relu(g) s = Add(h, z) y = Transpose(s) }"
    )
    return make(text, w=w, b=b)


def feeds(n: int = 3) -> dict[str, np.ndarray]:
    """Inputs of `network`."""
    rng = np.random.default_rng(n)
    return {"x": rng.standard_normal((n, 8), np.float32), "z": rng.standard_normal((n, 16), np.float32)}


def rewritten(path: Path, change: Callable[[dict[str, Any], list[bytes]], object]) -> Sections:
    """The file at `path` with its content and sections changed, a digest that fits, and the seal that it had."""
    file = read(path)
    sections = [file[i].tobytes() for i in range(len(file))]
    change(file.content, sections)
    pack(file.content, sections).write(path, lambda digest: file.seal)
    return read(path)


def edit_words(sections: list[bytes], index: int, row: int, column: int, value: int) -> None:
    """Sets one int64 of a section that is a table of four columns."""
    words = np.frombuffer(sections[index], "<i8").reshape(-1, 4).copy()
    words[row, column] = value
    sections[index] = words.tobytes()
