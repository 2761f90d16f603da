"""all-MiniLM-L6-v2 for the tests: its graph (which the benchmarks share), its tokenizer, and its sentence embeddings."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from benchmarks.minilm import MISSING, folder, minilm

__all__ = ["embeddings", "feeds", "minilm", "needs_minilm", "tokenize", "words"]

MAX_TOKENS = 128  # what the model was trained with

needs_minilm = pytest.mark.skipif(folder() is None, reason=MISSING)


@cache
def _vocabulary() -> dict[str, int]:
    place = folder()
    if place is None:
        raise FileNotFoundError(f"{MISSING}: mark the test with needs_minilm")
    lines = (place / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return {token: index for index, token in enumerate(lines)}


def words(text: str) -> list[str]:
    """BERT's basic tokens: lower case, without accents or control characters, punctuation and CJK characters on their own."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    spaced = []
    for char in decomposed:
        category = unicodedata.category(char)
        if category == "Mn" or (category.startswith("C") and char not in "\t\n\r"):
            continue
        ascii_symbol = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
        alone = ascii_symbol or category.startswith("P") or "\u4e00" <= char <= "\u9fff"
        spaced.append(f" {char} " if alone else char)
    return "".join(spaced).split()


def word_pieces(word: str) -> list[int]:
    """The ids of the longest pieces that the word is made of from left to right, or of [UNK]."""
    vocabulary = _vocabulary()
    ids: list[int] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary), None)
        if end is None or len(word) > 100:
            return [vocabulary["[UNK]"]]
        ids.append(vocabulary[prefix + word[start:end]])
        start = end
    return ids


def tokenize(text: str) -> list[int]:
    """The ids of a text, between [CLS] and [SEP], at most MAX_TOKENS."""
    ids = [piece for word in words(text) for piece in word_pieces(word)][: MAX_TOKENS - 2]
    return [_vocabulary()["[CLS]"], *ids, _vocabulary()["[SEP]"]]


def feeds(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The model's inputs for a batch of texts, padded to the longest: three (batch, seq) int64."""
    rows = [tokenize(text) for text in texts]
    shape = (len(rows), max(len(row) for row in rows))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}


def embeddings(last_hidden_state: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """Sentence embeddings: the mean over the tokens that are there, of length 1. (batch, 384) float32."""
    mask = attention_mask[..., None].astype(np.float32)
    mean = (last_hidden_state * mask).sum(axis=1) / mask.sum(axis=1)
    unit: np.ndarray = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return unit
