"""Feeds for a model that comes without data: for timing and for counting, not for judging results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qrt.core.dtypes import is_float
from qrt.core.errors import InvalidInput, UnsupportedOp
from qrt.graph import Model
from qrt.ops.op import Array

__all__ = ["example_feeds"]

# What a symbolic dimension becomes: a text of 64 tokens, an image of 64 × 64.
SIZE = 64


def example_feeds(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Array]:
    """Standard normal floats (from one seed) and ones of every other dtype, which are good as tokens and as masks.

    Fixed dimensions keep their size. A symbolic one that leads some input is the batch, 1, wherever its name stands; others are 64.
    `shapes`: those of inputs that are to have others. Raises InvalidInput for a shape that no input has, UnsupportedOp for one unknown.
    """
    rng = np.random.default_rng(0)
    shapes = shapes or {}
    if unknown := sorted(shapes.keys() - {info.name for info in model.inputs}):
        raise InvalidInput(f"shapes: no input is called {unknown[0]!r}; there are {', '.join(repr(info.name) for info in model.inputs)}")
    batch = {value.shape[0] for value in model.inputs if value.shape}
    feeds = {}
    for info, value in zip(model.inputs, model.graph.inputs, strict=True):
        if info.shape is None or value.dtype is None:
            raise UnsupportedOp(f"input {info.name!r} of {model.name} is {info.dtype} of unknown shape: there is no example for it")
        shape = [dim if isinstance(dim, int) else 1 if axis == 0 or (dim and dim in batch) else SIZE for axis, dim in enumerate(info.shape)]
        shape = list(shapes.get(info.name, shape))
        if len(shape) != len(info.shape) or any(isinstance(dim, int) and n != dim for n, dim in zip(shape, info.shape, strict=True)):
            raise InvalidInput(f"shapes: input {info.name!r} is {list(info.shape)}, and cannot be {shape}")
        dtype = np.dtype(value.dtype.numpy())
        feeds[info.name] = np.asarray(rng.standard_normal(shape), dtype) if is_float(dtype) else np.ones(shape, dtype)
    return feeds
