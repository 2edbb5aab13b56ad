"""Capability representations that ablations compare; engine/registry/encoder.py has those served.

Letters: V variants, M candidates, T tasks, C representation width, E encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from engine.api.candidate import TaskResult
from engine.bundle.types import Float32Array
from engine.datasets.aptitude_test import AptitudeTest
from engine.registry.encoder import capability_sentences, text_representation
from training.data.capability import Capabilities
from training.model.model import TextEncoder

Represent = Callable[[AptitudeTest, Capabilities, TextEncoder], Float32Array]


def weighted(test: AptitudeTest, capability: Capabilities, encoder: TextEncoder) -> Float32Array:
    """(1, M, E + 1): the shipped one."""
    shipped = replace(capability, representation="accuracy_weighted")
    return shipped.of(test, shipped.vectors(test.keywords, encoder), encoder)


def bare(test: AptitudeTest, capability: Capabilities, encoder: TextEncoder) -> Float32Array:
    """(1, M, T): the figures less their means over the training candidates."""
    means = np.array([capability.norms.means[k] for k in test.keywords])
    return np.asarray(test.figures - means, dtype=np.float32)[None]


def pieces(test: AptitudeTest, capability: Capabilities, encoder: TextEncoder) -> Float32Array:
    """(V, M, E): the paper's sentences in pieces that the encoder reads whole."""
    return _each(
        test, lambda r: text_representation(r, encoder.embed, encoder.count, encoder.limit)
    )


def truncated(test: AptitudeTest, capability: Capabilities, encoder: TextEncoder) -> Float32Array:
    """(V, M, E): the same as one text, of which the encoder reads what fits."""

    def embed(results: list[TaskResult]) -> Float32Array:
        orders = [np.random.default_rng(seed).permutation(len(results)) for seed in range(2)]
        texts = [" ".join(capability_sentences([results[i] for i in order])) for order in orders]
        return np.asarray(encoder.embed(texts), dtype=np.float32)

    encoder.tokenizer.enable_truncation(encoder.limit)
    c = _each(test, embed)
    encoder.tokenizer.no_truncation()
    return c


def standardised(
    parts: Sequence[Represent],
    trained: AptitudeTest,
    tested: AptitudeTest,
    capability: Capabilities,
    encoder: TextEncoder,
) -> tuple[Float32Array, Float32Array]:
    """(V, M, C) of the candidates trained on and of those tested, at unit size over the first."""
    first, second = [], []
    for part in parts:
        c = part(trained, capability, encoder)
        shift, scale = c.mean(axis=(0, 1)), c.std(axis=1).mean()
        first.append((c - shift) / scale)
        second.append((part(tested, capability, encoder) - shift) / scale)
    return _joined(first), _joined(second)


def _each(test: AptitudeTest, embed: Callable[[list[TaskResult]], Float32Array]) -> Float32Array:
    every = []
    for row in test.figures:
        sat = zip(test.keywords, row, strict=True)
        every.append(embed([TaskResult(k, float(a)) for k, a in sat if not np.isnan(a)]))
    return np.stack(every, axis=1)


def _joined(parts: list[Float32Array]) -> Float32Array:
    """Along C, every part repeated to the same number of variants."""
    most = max(len(p) for p in parts)
    return np.concatenate([np.repeat(p, most // len(p), axis=0) for p in parts], axis=-1)
