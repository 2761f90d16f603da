"""The states of many observers as one flat dict, as torch.ao.quantization saves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qrt.core.errors import QuantizationError
from qrt.observers.base import ObserverBase
from qrt.observers.fake_quantize import FakeQuantizeBase

__all__ = ["get_observer_state_dict", "load_observer_state_dict"]

MARK = "activation_post_process"


def get_observer_state_dict(mod: Any) -> dict[str, np.ndarray]:
    """Every observer's state, ready for safetensors: `conv1.activation_post_process.min_val` → array.

    `mod`: a mapping of site → observer, one FakeQuantize, or anything with `named_modules()`, as torch's modules have.
    """
    found: dict[str, np.ndarray] = {}
    for prefix, observer in _observers(mod):
        found.update((prefix + key, array) for key, array in observer.state_dict().items() if MARK in prefix + key)
    return found


def load_observer_state_dict(mod: Any, obs_dict: Mapping[str, np.ndarray]) -> None:
    """Put such a dict back, also one that torch saved (its tensors as arrays). `mod`: as in `get_observer_state_dict`.

    Raises QuantizationError for keys that are missing, or that belong to no observer of `mod`.
    """
    known: set[str] = set()
    for prefix, observer in _observers(mod):
        state = {key.removeprefix(prefix): np.asarray(array) for key, array in obs_dict.items() if key.startswith(prefix)}
        known.update(prefix + key for key in state)
        # A FakeQuantize's own buffers may be absent: get_observer_state_dict keeps only its observer's.
        own = {key: array for key, array in observer.state_dict().items() if MARK not in prefix + key}
        observer.load_state_dict({**own, **state})
    unexpected = sorted(set(obs_dict) - known)
    if unexpected:
        raise QuantizationError(f"the observer state holds {unexpected[0]!r}, and there is no such observer: load it where it was saved")


def _observers(mod: Any) -> Iterator[tuple[str, ObserverBase | FakeQuantizeBase]]:
    """Prefix of the keys and observer; of a FakeQuantize, not its own observer once more."""
    if isinstance(mod, Mapping):
        yield from ((f"{site}.{MARK}.", observer) for site, observer in mod.items())
    elif isinstance(mod, ObserverBase | FakeQuantizeBase):
        yield "", mod
    else:
        inside: set[int] = set()
        for name, module in mod.named_modules():
            if isinstance(module, ObserverBase | FakeQuantizeBase) and id(module) not in inside:
                inside.add(id(getattr(module, MARK, None)))
                yield f"{name}.", module
