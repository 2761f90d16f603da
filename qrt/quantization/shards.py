"""Calibration in shards: what one part of the data teaches, as a safetensors file; and the files of all parts, merged in order.

The arrays are those of `calibration_state`. The metadata says, under the one key "calibration" and in JSON, of what they are the state:

    format         1
    model          SHA-256 of the prepared model, in hex
    observers      site → class and options
    shard, shards  which part it is, from 1, and of how many
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from qrt.core.errors import InvalidInput, ModelError, QuantizationError
from qrt.core.files import write_whole
from qrt.core.record import record
from qrt.graph import Model
from qrt.graph.proto import skeleton
from qrt.observers import ObserverBase
from qrt.quantization.prepared import MARK, PreparedModel

__all__ = ["calibration_state", "merge_shards", "merge_state", "save_shard"]

_FORMAT = 1
_KEY = "calibration"
_DTYPES = frozenset({"F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"})


@record
class _Shard:
    path: Path
    number: int
    count: int
    state: dict[str, np.ndarray]


# -- what was learned -----------------------------------------------------------------------------------------------------
def calibration_state(prepared: PreparedModel) -> dict[str, np.ndarray]:
    """What the observers of activations have learned, with what merging needs: `<site>.activation_post_process.min_val` → array.

    Weights are not in it: whoever prepares the model observes them. Raises QuantizationError for observers that cannot be merged.
    """
    states = {name: observer.state_dict(mergeable=True) for name, observer in _learners(prepared).items()}
    return {f"{name}.{MARK}.{key}": array for name, state in states.items() for key, array in state.items()}


def merge_state(prepared: PreparedModel, state: Mapping[str, np.ndarray]) -> None:
    """Learn what another PreparedModel of the same model and settings has learned, as if its data had come here after one's own.

    `state`: its `calibration_state`. Exact but for the observers whose `merge` says otherwise. Raises QuantizationError, before anything is
    learned, for the state of other observers.
    """
    later: dict[str, ObserverBase] = {}
    rest = dict(state)
    for name, observer in _learners(prepared).items():
        prefix = f"{name}.{MARK}."
        own = {key.removeprefix(prefix): rest.pop(key) for key in list(rest) if key.startswith(prefix)}
        later[name] = copy.deepcopy(observer)
        later[name].load_state_dict(own)
    if rest:
        raise QuantizationError(f"the state holds {next(iter(rest))!r}, and {prepared.model.name} has no such observer")
    for name, observer in _learners(prepared).items():
        observer.merge(later[name])


def _learners(prepared: PreparedModel) -> dict[str, ObserverBase]:
    """The observers of activations, by site."""
    learners: dict[str, ObserverBase] = {}
    for name, made in prepared.observers.items():
        if not isinstance(made, ObserverBase):
            raise QuantizationError(f"{name!r}: a {type(made).__name__} changes what others see after it: calibrate this model in one run")
        if not made.state_dict(mergeable=True):
            raise QuantizationError(
                f"{name!r}: a {type(made).__name__} gives no state: write its state_dict, load_state_dict, merge, or calibrate in one run"
            )
        learners[name] = made
    return learners


# -- files ----------------------------------------------------------------------------------------------------------------
def save_shard(prepared: PreparedModel, path: str | PathLike[str], shard: int, shards: int) -> None:
    """Write what `prepared` has learned from the part `shard` (from 1) of `shards` parts of the data. The file appears whole or not at all.

    Raises InvalidInput for a number that is not 1 … `shards`, QuantizationError for observers that cannot be merged, OutputError.
    """
    from safetensors.numpy import save

    if not 1 <= shard <= shards:
        raise InvalidInput(f"shard {shard} of {shards}: give a number from 1 to {shards}")
    content = {**_identity(prepared), "shard": shard, "shards": shards}
    data = save(calibration_state(prepared), {_KEY: json.dumps(content, ensure_ascii=False, sort_keys=True)})
    write_whole(Path(path), lambda part: part.write_bytes(data))


def merge_shards(prepared: PreparedModel, paths: Iterable[str | PathLike[str]]) -> int:
    """Learn what the files `paths` hold, in the order of their shards, whatever the order of the files. How many there were.

    `prepared`: the same model, prepared in the same way, that has seen nothing yet. Then it is as if it had seen all of the data: exactly,
    or as nearly as its observers' `merge` says. Raises ModelError for a file that cannot be read; QuantizationError for one of another
    model or other observers, and for a shard that is missing or there twice.
    """
    identity = _identity(prepared)
    shards = sorted((_read(Path(path), identity) for path in paths), key=lambda shard: shard.number)
    _check_complete(shards)
    for shard in shards:
        try:
            merge_state(prepared, shard.state)
        except QuantizationError as error:
            raise QuantizationError(f"{shard.path}: {error}") from error
    return len(shards)


def _check_complete(shards: list[_Shard]) -> None:
    """Raises QuantizationError unless these, in order, are the shards 1 … N of N."""
    if not shards:
        raise InvalidInput("no shards are given: give the state file of each part of the data")
    count = shards[0].count
    for number, shard in enumerate(shards, 1):
        if shard.count != count:
            raise QuantizationError(f"{shards[0].path} is one of {count} shards, {shard.path} one of {shard.count}: merge those of one run")
        if number > 1 and shard.number == shards[number - 2].number:
            raise QuantizationError(f"{shards[number - 2].path} and {shard.path} are both shard {shard.number}: give each one once")
        if shard.number != number:
            raise QuantizationError(f"shard {number} of {count} is missing: give the state files of all {count}")
    if len(shards) < count:
        raise QuantizationError(f"shard {len(shards) + 1} of {count} is missing: give the state files of all {count}")


# -- one file -------------------------------------------------------------------------------------------------------------
def _read(path: Path, identity: Mapping[str, Any]) -> _Shard:
    """The shard in `path`. Raises ModelError for no such file, QuantizationError for one of something else than `identity`."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():  # a named pipe would wait for a writer for ever
            raise ModelError(f"cannot read {path}: there is no such file; give one that `qrt quantize --state` wrote")
        with safe_open(path, framework="numpy") as file:
            content = _content(path, (file.metadata() or {}).get(_KEY, ""))
            _check_identity(path, content, identity)
            names = file.keys()
            strange = [name for name in names if file.get_slice(name).get_dtype() not in _DTYPES]
            if strange:
                raise ModelError(f"{path} is damaged: {strange[0]!r} holds no numbers of an observer; write it again")
            return _Shard(path, content["shard"], content["shards"], {name: file.get_tensor(name) for name in names})
    except (SafetensorError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"cannot read {path}: {error}; the file is damaged or no calibration state: write it again") from error


def _content(path: Path, text: str) -> dict[str, Any]:
    """The metadata, of the right types."""
    try:
        content = json.loads(text)
        if content["format"] == _FORMAT:
            shard, shards, observers = content["shard"], content["shards"], content["observers"]
            if not (type(shard) is type(shards) is int and 1 <= shard <= shards and isinstance(observers, dict)):
                raise ModelError(f"{path} is damaged: it does not say which shard it is, or of which observers; write it again")
            return dict(content)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
    raise ModelError(f"{path} is no calibration state of this version of qrt: write it again, by `qrt quantize --shard K/N --state FILE`")


def _identity(prepared: PreparedModel) -> dict[str, Any]:
    """What two prepared models have in common if, and only if, one may merge the state of the other."""
    observers = {name: getattr(observer, "settings", type(observer).__name__) for name, observer in prepared.observers.items()}
    return {"format": _FORMAT, "model": _digest(prepared.model), "observers": observers}


def _check_identity(path: Path, content: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises QuantizationError for the state of another model, or of other observers."""
    if content.get("model") != identity["model"]:
        raise QuantizationError(f"{path} was learned on another model, or by another version of qrt: calibrate this model, by this version")
    ours, theirs = identity["observers"], content["observers"]
    for site in sorted({*ours, *theirs}):
        if ours.get(site) != theirs.get(site):
            raise QuantizationError(
                f"{path} was learned with other settings: of {site!r} by {theirs.get(site, 'no observer')}, and now there is "
                f"{ours.get(site, 'none')}: give the same observer, qconfig_mapping and exclude"
            )


def _digest(model: Model) -> str:
    """SHA-256 of a prepared model, weights and all, in hex."""
    proto, weights = skeleton(model)
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
    for name, value in weights.items():
        if value.const_value is not None:
            digest.update(f"{name}:{value.const_value.dtype}:{value.const_value.shape}".encode())
            digest.update(np.ascontiguousarray(value.const_value.numpy()).tobytes())
    return digest.hexdigest()
