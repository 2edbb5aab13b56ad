"""Instructions as vectors: hashed TF-IDF of their words, for where no embedding is at hand.

Shapes: N instructions, D width.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from engine.bundle.types import Float32Array, Int64Array

WIDTH = 2048  # D; words that share a place are rare among those that matter
MAX_WORDS = 2000  # of one instruction
MIN_WEIGHT = 0.1  # of a word that names a group: its share, times the logarithm of its excess
NUMBER = "#"  # the word for every number
_WORD = re.compile(r"[^\W\d_]{2,40}|\d{1,9}")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def words_of(text: str) -> list[str]:
    """List the words of a text in lower case, with one word for all numbers; pairs of characters
    of scripts without spaces."""
    words: list[str] = []
    for word in _WORD.findall(text.lower()):
        if word[0].isdecimal():
            words.append(NUMBER)
        elif _UNSPACED.match(word) and len(word) > 2:
            words += [word[i : i + 2] for i in range(len(word) - 1)]
        else:
            words.append(word)
    return words[:MAX_WORDS]


def tfidf(texts: Sequence[str]) -> Float32Array:
    """Return unit vectors (N, D), all zeros for a text without words. The same texts give the same
    vectors anywhere."""
    counts = np.zeros((len(texts), WIDTH), dtype=np.float32)
    for row, text in zip(counts, texts, strict=True):
        for word, count in Counter(words_of(text)).items():
            digest = zlib.crc32(word.encode())
            row[digest % WIDTH] += (1 + math.log(count)) * (1 if digest >> 31 else -1)
    present = (counts != 0).sum(axis=0)
    counts *= np.log((1 + len(texts)) / (1 + present)) + 1
    return unit(counts)


def unit(vectors: Float32Array) -> Float32Array:
    """Scale vectors (N, D) to length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Float32Array = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled


def names_of(texts: Sequence[str], labels: Int64Array, count: int) -> list[str]:
    """Name each of `count` groups by the three words that set its texts apart from the others.

    labels: (N,) group of each text.
    """
    within = [Counter[str]() for _ in range(count)]
    overall: Counter[str] = Counter()
    sizes = np.bincount(labels, minlength=count)
    for text, label in zip(texts, labels, strict=True):
        words = {word for word in words_of(text) if len(word) > 2 or not word.isascii()}
        within[label].update(words)
        overall.update(words)

    def weight(group: int, word: str) -> float:
        inside = within[group][word] / max(1, sizes[group])
        outside = (overall[word] - within[group][word] + 1) / (len(texts) - sizes[group] + 2)
        return float(inside * math.log(inside / outside))

    names = []
    for group in range(count):
        weights = {word: weight(group, word) for word in within[group]}
        telling = [word for word, value in weights.items() if value > MIN_WEIGHT]
        best = sorted(telling, key=lambda word: (-weights[word], word))[:3]
        names.append(", ".join(best) or f"group {group + 1}")
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
