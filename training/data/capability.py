"""Compute the training candidates' capability representations and the connector's first scale.

Shapes: M candidates, K synthetic ones, T tasks, C representation width, D backbone width,
E encoder width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from engine.bundle.arrays import Connector, TaskNorms
from engine.bundle.types import Float32Array
from engine.datasets.aptitude_test import AptitudeTest
from engine.registry.encoder import accuracy_weighted, keyword_vectors
from training.data.augment import CandidateSample
from training.model.model import TextEncoder

LEVEL_WEIGHT = 3.0
# The smallest spreads assumed at the start: a test of one task has no profile at all, and two
# specialists may have the same level. Fifty tasks and 29 candidates have .04 and .13.
MIN_PROFILE, MIN_LEVEL = 0.02, 0.05


@dataclass(frozen=True)
class Capabilities:
    """Turn accuracies into standardized representations.

    norms: what accuracies are compared with. shift, scale: (C,), chosen so that the connector's
    inputs have a sensible size at the start.
    """

    norms: TaskNorms
    shift: Float32Array
    scale: Float32Array

    def vectors(self, keywords: list[str], encoder: TextEncoder) -> Float32Array:
        """Embed task keywords: the (T, E) vectors k_t of engine/registry/encoder.py."""
        return keyword_vectors(encoder.embed(keywords), self.norms.center)

    def of(self, test: AptitudeTest, vectors: Float32Array) -> Float32Array:
        """Represent the candidates of `test`: (M, C), as serving does and standardized."""
        means = self.norms.of(test.keywords)
        return self.standardize(accuracy_weighted(test.accuracies, means, vectors))

    def of_sample(
        self, sample: CandidateSample, keywords: list[str], vectors: Float32Array
    ) -> Float32Array:
        """Represent the candidates of a training step: (M + K, C), standardized."""
        means = self.norms.of(keywords)
        if not sample.means_known:
            means = np.full_like(means, np.nan)
        return self.standardize(accuracy_weighted(sample.accuracies, means, vectors))

    def standardize(self, c: Float32Array) -> Float32Array:
        """Shift and scale plain representations (..., C)."""
        return np.asarray((c - self.shift) / self.scale, dtype=np.float32)


def capabilities(
    test: AptitudeTest, encoder: TextEncoder, norms: TaskNorms | None = None
) -> Capabilities:
    """Fit norms, unless given, and scale on the aptitude test of the first folder's candidates."""
    embedded = encoder.embed(test.keywords)
    if norms is None:
        means = np.nanmean(test.accuracies, axis=0).tolist()
        norms = TaskNorms(embedded.mean(axis=0), dict(zip(test.keywords, means, strict=True)))
    vectors = keyword_vectors(embedded, norms.center)
    shift, scale = _scale_of(accuracy_weighted(test.accuracies, norms.of(test.keywords), vectors))
    return Capabilities(norms, shift.astype(np.float32), scale.astype(np.float32))


def _scale_of(c: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Give the overall level LEVEL_WEIGHT times the weight of the whole profile at the start.

    20 questions per task leave as much noise as signal in the profile (docs/log.md).
    """
    shift = np.zeros(c.shape[1], dtype=np.float32)
    shift[-1] = c[:, -1].mean()
    profile = max(float(np.sqrt((c[:, :-1] ** 2).mean())), MIN_PROFILE)
    scale = np.full(c.shape[1], profile, dtype=np.float32)
    scale[-1] = max(float(c[:, -1].std()), MIN_LEVEL) / (LEVEL_WEIGHT * np.sqrt(c.shape[1] - 1))
    return shift, scale


def new_connector(width_in: int, embeddings: torch.Tensor) -> nn.Linear:
    """Initialize a connector (C -> D) whose outputs are about as long as token embeddings.

    embeddings: (vocabulary, D), of the backbone.
    """
    connector = nn.Linear(width_in, embeddings.shape[1])
    size = float(embeddings.detach().pow(2).mean().sqrt())
    nn.init.normal_(connector.weight, std=size / np.sqrt(2 * width_in))
    nn.init.zeros_(connector.bias)
    return connector


def fuse_standardization(
    connector: nn.Linear, shift: Float32Array, scale: Float32Array
) -> Connector:
    """Build the connector for plain representations: W (c - shift) / scale + b = W' c + b'."""
    weight = connector.weight.detach().cpu().numpy() / scale
    return Connector(
        weight.astype(np.float32),
        (connector.bias.detach().cpu().numpy() - weight @ shift).astype(np.float32),
    )
