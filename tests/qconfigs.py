"""What torch's answers are compared with: QConfigs in words (tests/golden/qconfigs.json), and the observers of observer_streams.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from observer_streams import CONFIGS, FAKE_CONFIGS, FAKE_QUANTS

import qrt
from qrt import observers
from qrt.observers import FakeQuantize, MovingAverageMinMaxObserver, PartialWrapper, UniformQuantizationObserverBase
from qrt.quantization import QConfig
from qrt.quantization.qconfig import identity

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "qconfigs.json").read_text(encoding="utf-8"))


def described(constructor: Any) -> str:
    """A constructor as tools/make_golden_qconfigs.py writes it."""
    if constructor is identity:
        return "Identity()"
    if isinstance(constructor, type):
        return f"{constructor.__name__}()"
    assert isinstance(constructor, PartialWrapper)
    words = (f"{key}={described(value) if key == 'observer' else value}" for key, value in sorted(constructor.p.keywords.items()))
    return f"{constructor.p.func.__name__}({', '.join(words)})".replace("qrt.", "").replace("QScheme.", "")  # type: ignore[attr-defined]


def both(qconfig: QConfig | None) -> list[str]:
    """Activation and weight of a QConfig."""
    assert qconfig is not None
    return [described(qconfig.activation), described(qconfig.weight)]


def observer_of(config: str) -> UniformQuantizationObserverBase:
    """The observer of one of CONFIGS."""
    made: UniformQuantizationObserverBase = getattr(observers, config.split()[0])(**_options(CONFIGS[config]))
    return made


def fake_quantize(name: str) -> FakeQuantize:
    """The fake-quantize of a preset, or of one of FAKE_CONFIGS."""
    if name in FAKE_QUANTS:
        preset: FakeQuantize = getattr(observers, name)()
        return preset
    made: FakeQuantize = getattr(observers, name.split()[0])(observer=MovingAverageMinMaxObserver, **_options(FAKE_CONFIGS[name]))
    return made


def _options(words: dict[str, object]) -> dict[str, Any]:
    return {key: getattr(qrt, str(word)) if key in ("dtype", "qscheme") else word for key, word in words.items()}
