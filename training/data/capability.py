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
from training.data.augment import Drawn
from training.model.model import TextEncoder

LEVEL = 3.0
# The least spread that is told apart at the start: a test of one task has no shape at all, two
# specialists may have one level. Fifty tasks and 29 candidates have .04 and .13.
LEAST_SHAPE, LEAST_LEVEL = 0.02, 0.05


@dataclass(frozen=True)
class Capabilities:
    """How figures become representations. shift, scale: (C,), for the connector to start at a sane
    size."""

    norms: TaskNorms
    shift: Float32Array
    scale: Float32Array

    def vectors(self, keywords: list[str], encoder: TextEncoder) -> Float32Array:
        """(T, E) k_t of these tasks."""
        return keyword_vectors(encoder.embed(keywords), self.norms.center)

    def of(self, test: AptitudeTest, vectors: Float32Array) -> Float32Array:
        """(M, C), standardised: what serving will compute from the same figures."""
        means = self.norms.of(test.keywords)
        return self.standardize(accuracy_weighted(test.figures, means, vectors))

    def drawn(self, drawn: Drawn, keywords: list[str], vectors: Float32Array) -> Float32Array:
        """(M + K, C), standardised, of figures as a step of training draws them."""
        means = self.norms.of(keywords)
        if not drawn.means_known:
            means = np.full_like(means, np.nan)
        return self.standardize(accuracy_weighted(drawn.figures, means, vectors))

    def standardize(self, c: Float32Array) -> Float32Array:
        """Shift and scale plain representations (..., C)."""
        return np.asarray((c - self.shift) / self.scale, dtype=np.float32)


def capabilities(
    test: AptitudeTest, encoder: TextEncoder, norms: TaskNorms | None = None
) -> Capabilities:
    """Norms, where not given, and scale from the test that the first pool's candidates sat."""
    embedded = encoder.embed(test.keywords)
    if norms is None:
        means = np.nanmean(test.figures, axis=0).tolist()
        norms = TaskNorms(embedded.mean(axis=0), dict(zip(test.keywords, means, strict=True)))
    vectors = keyword_vectors(embedded, norms.center)
    shift, scale = _scale_of(accuracy_weighted(test.figures, norms.of(test.keywords), vectors))
    return Capabilities(norms, shift.astype(np.float32), scale.astype(np.float32))


def _scale_of(c: Float32Array) -> tuple[Float32Array, Float32Array]:
    """The mean accuracy gets LEVEL times the weight of all the shape together at the start: 20
    questions a task leave as much noise as signal in the shape (docs/log.md)."""
    shift = np.zeros(c.shape[1], dtype=np.float32)
    shift[-1] = c[:, -1].mean()
    shape = max(float(np.sqrt((c[:, :-1] ** 2).mean())), LEAST_SHAPE)
    scale = np.full(c.shape[1], shape, dtype=np.float32)
    scale[-1] = max(float(c[:, -1].std()), LEAST_LEVEL) / (LEVEL * np.sqrt(c.shape[1] - 1))
    return shift, scale


def new_connector(width_in: int, embeddings: torch.Tensor) -> nn.Linear:
    """(C -> D), its outputs about as long as the backbone's token embeddings (vocabulary, D)."""
    connector = nn.Linear(width_in, embeddings.shape[1])
    size = float(embeddings.detach().pow(2).mean().sqrt())
    nn.init.normal_(connector.weight, std=size / np.sqrt(2 * width_in))
    nn.init.zeros_(connector.bias)
    return connector


def folded(connector: nn.Linear, shift: Float32Array, scale: Float32Array) -> Connector:
    """The connector for plain representations: W (c - shift) / scale + b = W' c + b'."""
    weight = connector.weight.detach().cpu().numpy() / scale
    return Connector(
        weight.astype(np.float32),
        (connector.bias.detach().cpu().numpy() - weight @ shift).astype(np.float32),
    )
