"""Feeds: what a caller gives a run, checked against what the model declares. Native code checks nothing after this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qrt.core.dtypes import is_float
from qrt.core.errors import InvalidInput
from qrt.core.record import record
from qrt.ops.op import Array

__all__ = ["Contract", "Declared", "Shapes"]

# Of all inputs of a model, in its order.
Shapes = tuple[tuple[int, ...], ...]


@record
class Declared:
    """An input as its model declares it.

    `shape`: ints, names of symbolic dimensions, None for what is not known; None for an unknown rank.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


class Contract:
    """The inputs of a model, against which it checks a run's feeds."""

    def __init__(self, inputs: Sequence[Declared]) -> None:
        self.names = [value.name for value in inputs]
        self._inputs = [(value.name, value.dtype) for value in inputs]
        self._shapes = [value.shape for value in inputs]

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """The feeds as `arrays` gives them, by name, once their shapes are checked as well."""
        arrays, shapes = self.arrays(feeds)
        self.check_shapes(shapes)
        return dict(zip(self.names, arrays, strict=True))

    def arrays(self, feeds: Mapping[str, Any]) -> tuple[list[Array], Shapes]:
        """The feeds as C-contiguous arrays of the declared dtypes, in the model's order, and their shapes, which are not checked. Arrays
        that are so already are not copied, and none is changed.

        An array must have the declared dtype, in any byte order; nested lists are converted if their values fit it. Raises InvalidInput.
        """
        if type(feeds) is not dict and not isinstance(feeds, Mapping):
            raise InvalidInput(f"feeds are a {type(feeds).__name__}: give a dict of input name → array")
        arrays: list[Array] = []
        shapes: list[tuple[int, ...]] = []
        for name, dtype in self._inputs:
            try:
                array = feeds[name]
            except KeyError:
                raise self._wrong_names(feeds) from None
            if type(array) is not np.ndarray or array.dtype != dtype or not (flags := array.flags).c_contiguous or not flags.aligned:
                array = _fitting(name, array, dtype)
            arrays.append(array)
            shapes.append(array.shape)
        if len(feeds) != len(arrays):
            raise self._wrong_names(feeds)
        return arrays, tuple(shapes)

    def array(self, name: str, given: object) -> Array:
        """What is given to the input `name`, as `arrays` has it. Raises InvalidInput."""
        return _fitting(name, given, self.dtype(name))

    def dtype(self, name: str) -> np.dtype[Any]:
        """Of the input `name`. Raises InvalidInput if there is none."""
        for known, dtype in self._inputs:
            if known == name:
                return dtype
        raise InvalidInput(f"no input is called {name!r}: the model's inputs are {', '.join(map(repr, self.names)) or 'none'}")

    def _wrong_names(self, feeds: Mapping[str, Any]) -> InvalidInput:
        names = [name for name, _ in self._inputs]
        unknown, missing = [n for n in feeds if n not in names], [n for n in names if n not in feeds]
        problems = [f"no input is called {', '.join(map(repr, unknown))}"] if unknown else []
        problems += [f"nothing is fed to {', '.join(map(repr, missing))}"] if missing else []
        note = "; initializers are constants, also where the file lists them as inputs" if unknown and not missing else ""
        return InvalidInput(f"{' and '.join(problems)}: the model's inputs are {', '.join(map(repr, names)) or 'none'}{note}")

    def check_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raises InvalidInput if arrays of these shapes, one for each input, cannot be fed.

        Dimensions must equal the fixed ones, and those of one symbolic name each other.
        """
        seen: dict[str, tuple[int, str]] = {}
        for (name, _), wanted, given in zip(self._inputs, self._shapes, shapes, strict=True):
            if wanted is None:
                continue
            text = f"({', '.join('?' if d is None else str(d) for d in wanted)})"
            if len(given) != len(wanted):
                raise InvalidInput(f"input {name!r} has rank {len(given)}, shape {given}: the model takes rank {len(wanted)}, {text}")
            for axis, (want, n) in enumerate(zip(wanted, given, strict=True)):
                if isinstance(want, int) and n != want:
                    raise InvalidInput(f"input {name!r} has shape {given}: the model takes {text}, so axis {axis} must be {want}, not {n}")
                if isinstance(want, str) and seen.setdefault(want, (n, name))[0] != n:
                    raise InvalidInput(
                        f"input {name!r} has shape {given}: axis {axis} is {want!r}, {n} here and {seen[want][0]} in {seen[want][1]!r}; "
                        "give both the same"
                    )


def _fitting(name: str, array: Any, dtype: np.dtype[Any]) -> Array:
    if type(array) is not np.ndarray or array.dtype != dtype:
        array = _converted(name, array, dtype)
    flags = array.flags
    if not flags.c_contiguous or not flags.aligned:
        array = _copied(name, array, dtype)
    return array  # type: ignore[no-any-return]  # an array by now


def _copied(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    try:
        return np.array(array, dtype, order="C")
    except MemoryError:
        raise InvalidInput(
            f"input {name!r} of shape {array.shape} does not lie in memory as kernels read it, and there is no memory for a copy of it: "
            "give a smaller batch, or a C-contiguous array"
        ) from None


def _converted(name: str, given: object, dtype: np.dtype[Any]) -> Array:
    """What is no plain array of the dtype in native byte order, as one."""
    if not isinstance(given, np.ndarray | np.generic | list | tuple):
        raise InvalidInput(f"input {name!r} is a {type(given).__name__}: give a NumPy array of {dtype}")
    try:
        array = np.asarray(given)
        if isinstance(given, np.ndarray | np.generic):
            fits = array.dtype.newbyteorder("=") == dtype
        else:
            kind = "f" if is_float(dtype) else dtype.kind
            fits = array.dtype.kind in {"f": "biuf", "i": "biu", "u": "biu", "b": "b"}.get(kind, "") or array.size == 0
            array = np.asarray(given, dtype) if fits else array  # unlike astype, this raises for an integer out of range
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"input {name!r} cannot become an array of {dtype}: {error}") from error
    if not fits:
        module = "numpy" if dtype.isbuiltin == 1 else "ml_dtypes"
        raise InvalidInput(f"input {name!r} has dtype {array.dtype}: the model takes {dtype}; convert it with .astype({module}.{dtype})")
    return array.astype(dtype, copy=False)
