"""An encoder as transformers have it, whole on a device: no step on the CPU, and the CPU's bits, also where sums and roots of floats decide
which codes there are. A tiny one in the emulator, MiniLM on a GPU (`pytest -m gpu`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from device.sessions import Emulation
from halves import halved
from minilm import needs_minilm

import qrt
from benchmarks.minilm import encoder, minilm
from qrt.graph import Model

HIDDEN, HEADS, WORDS = 16, 2, 11


def weights() -> dict[str, np.ndarray]:
    """One layer's, under MiniLM's names."""
    rng = np.random.default_rng(0)
    layer = "encoder.layer.0"
    shapes = {
        "embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.position_embeddings.weight": (8, HIDDEN),
        f"{layer}.intermediate.dense.weight": (2 * HIDDEN, HIDDEN),
        f"{layer}.intermediate.dense.bias": (2 * HIDDEN,),
        f"{layer}.output.dense.weight": (HIDDEN, 2 * HIDDEN),
        f"{layer}.output.dense.bias": (HIDDEN,),
    }
    for role in ("self.query", "self.key", "self.value", "output.dense"):
        shapes |= {f"{layer}.attention.{role}.weight": (HIDDEN, HIDDEN), f"{layer}.attention.{role}.bias": (HIDDEN,)}
    for norm in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        shapes |= {f"{norm}.LayerNorm.weight": (HIDDEN,), f"{norm}.LayerNorm.bias": (HIDDEN,)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"embeddings.position_ids": np.arange(8)[None]}


def feeds(words: int, length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(1).integers(0, words, (1, length))
    mask = np.ones_like(ids)
    mask[:, -1:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def codes_of_all(model: Model) -> Model:
    return qrt.quantize(model, [feeds(WORDS, 5), feeds(WORDS, 4)], progress=False)


def of_16_bits(model: Model) -> Model:
    return qrt.load(halved(model.to_proto()))


KINDS = {"float": lambda model: model, "float16": of_16_bits, "dynamic": qrt.quantize_dynamic, "static": codes_of_all}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_whole_encoder(emulation: Emulation, kind: Callable[[Model], Model]) -> None:
    model, given = kind(qrt.load(encoder(weights(), HEADS))), feeds(WORDS, 3)
    session = qrt.InferenceSession(model, target="cuda")
    (found,) = session.run(None, given)
    np.testing.assert_array_equal(found, qrt.InferenceSession(model).run(None, given)[0])
    assert len(emulation.device.graphs) == 1  # nothing between launches


@pytest.mark.gpu
@needs_minilm
@pytest.mark.parametrize("kind", [lambda model: model, qrt.quantize_dynamic], ids=["float", "dynamic"])
def test_minilm(gpu: Any, kind: Callable[[Model], Model]) -> None:
    model, given = kind(qrt.load(minilm())), feeds(30000, 128)
    with qrt.InferenceSession(model, target="cuda") as session:
        wanted = qrt.InferenceSession(model).run(None, given)[0]
        for _ in range(2):
            np.testing.assert_allclose(session.run(None, given)[0], wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max()))
