"""Writes tests/golden/qconfigs.json: what torch's qconfig presets and default mappings are made of.

Run it with torch 2.13.0: `python tools/make_golden_qconfigs.py`. The test suite reads the file and does not need torch.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.ao import quantization
from torch.ao.quantization import qconfig as presets

BACKENDS = ("x86", "fbgemm", "qnnpack", "onednn")


def described(constructor: Any) -> str:
    """A constructor as a call: its class's name, and the keywords given beforehand in alphabetical order."""
    if isinstance(constructor, type):
        return f"{constructor.__name__}()"
    call = constructor.p
    words = (f"{key}={described(value) if key == 'observer' else value}" for key, value in sorted(call.keywords.items()))
    return f"{call.func.__name__}({', '.join(words)})".replace("torch.", "")


def qconfig(made: Any) -> list[str]:
    """Activation and weight of a QConfig."""
    return [described(made.activation), described(made.weight)]


def mapping(made: Any) -> dict[str, Any]:
    """The global QConfig, and those of object types by the last word of their names."""
    types = {key if isinstance(key, str) else key.__name__: qconfig(value) for key, value in made.object_type_qconfigs.items()}
    return {"global": qconfig(made.global_qconfig), "types": types}


def main() -> None:
    warnings.simplefilter("ignore")
    names = [name for name in presets.__all__ if isinstance(getattr(presets, name), presets.QConfig)]
    versions = [("get_default_qconfig", 0), ("get_default_qat_qconfig", 0), ("get_default_qat_qconfig", 1)]
    found = {
        "torch": torch.__version__,
        "presets": {name: qconfig(getattr(presets, name)) for name in names},
        "backends": {
            f"{function} {backend} {version}": qconfig(getattr(quantization, function)(backend, version))
            for function, version in versions
            for backend in BACKENDS
        },
        "mappings": {
            f"{function}_mapping {backend} {version}": mapping(getattr(quantization, f"{function}_mapping")(backend, version))
            for function, version in versions
            for backend in BACKENDS
        },
    }
    target = Path(__file__).resolve().parent.parent / "tests" / "golden" / "qconfigs.json"
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
