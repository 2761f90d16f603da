"""What a caller gives a model that calibrates or is debugged, checked: native code checks nothing after this."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qrt.core.dtypes import is_float
from qrt.core.errors import CalibrationError
from qrt.graph import Model, ir

__all__ = ["Batch", "feeds_of"]

# Inputs by name, or the one array of a model with one input.
Batch = Mapping[str, np.ndarray] | np.ndarray


def feeds_of(model: Model, batch: Batch, where: str) -> dict[str, np.ndarray]:
    """One batch as feeds of `model`, checked against its inputs. Raises CalibrationError, which says `where`."""
    inputs = {v.name or "": v for v in model.graph.inputs}
    if not isinstance(batch, Mapping):
        if len(inputs) != 1:
            raise CalibrationError(f"{where} is one array; {model.name} has inputs {', '.join(inputs)}: give dicts")
        batch = {next(iter(inputs)): batch}
    missing, unknown = inputs.keys() - batch.keys(), batch.keys() - inputs.keys()
    if missing or unknown:
        what = f"lacks {sorted(missing)}" if missing else f"names {sorted(unknown, key=repr)}"
        raise CalibrationError(f"{where} {what}; the inputs of {model.name} are {', '.join(inputs)}")
    sizes: dict[str, int] = {}
    return {name: _checked(value, batch[name], f"{where}, input {name!r}", sizes) for name, value in inputs.items()}


def _checked(value: ir.Value, given: object, where: str, sizes: dict[str, int]) -> np.ndarray:
    """`given` as the array that `value` takes. `sizes`: what symbolic dimensions are in this batch."""
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise CalibrationError(f"{where} cannot become an array: {error}") from error
    wanted = value.dtype.numpy() if value.dtype is not None else array.dtype
    if array.dtype != wanted:
        raise CalibrationError(f"{where} has dtype {array.dtype}: give {wanted}")
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
        if array.ndim != len(shape):
            raise CalibrationError(f"{where} has shape {array.shape}, which does not fit {shape}")
        here = tuple(sizes.setdefault(d, n) if isinstance(d, str) else d for d, n in zip(shape, array.shape, strict=True))
        if any(d not in (n, None) for d, n in zip(here, array.shape, strict=True)):
            raise CalibrationError(f"{where} has shape {array.shape}, which does not fit {shape}: in this batch, {here}")
    if is_float(array.dtype) and not np.isfinite(array).all():
        raise CalibrationError(f"{where} holds NaN or infinity; remove the sample")
    return np.ascontiguousarray(array).reshape(array.shape)
