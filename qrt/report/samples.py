"""Samples from files: what calibration and comparison read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qrt.core.errors import InvalidInput
from qrt.graph import Model
from qrt.ops.op import Array

__all__ = ["Samples", "read_arrays"]

# How an .npy file and an archive begin, one without members too.
_STARTS = (b"\x93NUM", b"PK\x03\x04", b"PK\x05\x06")


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name, or the one of an .npy file under the name "". Nothing is unpickled. Raises InvalidInput."""
    try:
        if path.exists() and not path.is_file():  # before it is opened: a named pipe would wait for a writer for ever
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            if file.read(4) not in _STARTS:  # which NumPy takes for a pickle, and advises to trust
                raise ValueError("it holds no array")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # NumPy gives other members of an archive as bytes
                raise ValueError(f"{name!r} in it is no array")
        return arrays
    except Exception as error:  # a damaged archive raises from zipfile, zlib and numpy alike
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InvalidInput(
            f"cannot read {path}: {what.splitlines()[0]}; give an .npy or .npz file that numpy.save or numpy.savez wrote"
        ) from error


class Samples:
    """The samples in a file, one feed at a time, for a model's inputs.

    The file is an .npz whose arrays are named after the inputs, or, for a model with one input, an .npz or .npy with one array. The first
    axis of each array counts samples. An array of the input's own rank is fed a slice at a time, as large as the input's first dimension
    if that is fixed, else of one sample; an array of one axis more is fed one element at a time. Raises InvalidInput.
    """

    def __init__(self, path: Path, model: Model) -> None:
        arrays = read_arrays(path)
        names = [info.name for info in model.inputs]
        if len(names) == 1 and len(arrays) == 1:
            arrays = {names[0]: next(iter(arrays.values()))}
        if set(arrays) != set(names):
            raise InvalidInput(
                f"{path} holds {', '.join(map(repr, arrays)) or 'nothing'}: name its arrays after the inputs, {', '.join(map(repr, names))}"
            )
        self._arrays = arrays
        self._steps: dict[str, int] = {}
        counts = set()
        for info in model.inputs:
            array, shape = arrays[info.name], info.shape
            rank = array.ndim - 1 if shape is None else len(shape)
            if array.ndim not in (rank, rank + 1) or array.ndim == 0:
                raise InvalidInput(f"{path}: {info.name!r} has shape {array.shape}: stack samples of rank {rank} along the first axis")
            lead = shape[0] if shape else 1
            self._steps[info.name] = 0 if array.ndim > rank else lead if isinstance(lead, int) and lead > 0 else 1
            counts.add(len(array) // (self._steps[info.name] or 1))
        if len(counts) != 1 or counts == {0}:
            lengths = ", ".join(f"{name!r}: {len(array)}" for name, array in arrays.items())
            raise InvalidInput(f"{path} does not hold the same number of samples, 1 or more, for every input ({lengths})")
        self._path, self._numbers = path, range(counts.pop())

    def shard(self, number: int, count: int) -> Samples:
        """Part `number` (from 1) of `count` parts, which follow each other. Raises InvalidInput for fewer samples than parts."""
        if count > len(self):
            raise InvalidInput(f"{self._path} holds {len(self)} samples: they cannot make {count} shards; make {len(self)} at most")
        part = copy.copy(self)
        part._numbers = self._numbers[len(self) * (number - 1) // count : len(self) * number // count]
        return part

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for i in self._numbers:
            yield {
                name: array[i * self._steps[name] : (i + 1) * self._steps[name]] if self._steps[name] else array[i]
                for name, array in self._arrays.items()
            }
