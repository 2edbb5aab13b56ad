"""Capability representations of the training candidates, and the scale the connector starts at.

Letters: M candidates, T tasks, V variants, C representation width, D backbone width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engine.contract.arrays import Connector, TaskNorms
from engine.contract.bundle import Representation
from engine.contract.candidate import TaskResult
from engine.registry.encoder import (
    accuracy_weighted,
    keyword_vectors,
    text_representation,
)
from training.data import Outcomes
from training.model import TextEncoder

Floats = NDArray[np.float32]
QUESTIONS = 20  # per task of the aptitude test


@dataclass(frozen=True)
class Capabilities:
    """c: (V, M, C). shift, scale: (C,), for the connector to start at a sane size."""

    c: Floats
    shift: Floats
    scale: Floats
    norms: TaskNorms
    vectors: Floats
    accuracies: Floats

    def draw(self, random: np.random.Generator, representation: Representation) -> Floats:
        """(M, C), standardised, as another sitting of the same test might give it.

        Figures are redrawn from Binomial(20, accuracy), so that the connector learns what a figure
        says and not which of a few dozen candidates it belongs to; of a text, one variant.
        """
        if representation == "text":
            return self.standardise(self.c[random.integers(len(self.c))])
        redrawn = random.binomial(QUESTIONS, self.accuracies) / QUESTIONS
        means = np.array(list(self.norms.means.values()))
        return self.standardise(accuracy_weighted(redrawn, means, self.vectors))

    def standardise(self, c: Floats) -> Floats:
        """(..., C) -> (..., C), what the connector in training sees."""
        return np.asarray((c - self.shift) / self.scale, dtype=np.float32)


def capabilities(
    outcomes: Outcomes, encoder: TextEncoder, representation: Representation
) -> Capabilities:
    """Representations of `outcomes.candidates` from their aptitude figures."""
    embedded = encoder.embed(outcomes.keywords)
    means = outcomes.aptitude.mean(axis=0)
    norms = TaskNorms(
        embedded.mean(axis=0),
        dict(zip(outcomes.keywords, means.tolist(), strict=True)),
        float(means.mean()),
    )
    vectors = keyword_vectors(embedded, norms.center)
    if representation == "text":
        c = np.stack([_text(outcomes, figures, encoder) for figures in outcomes.aptitude], axis=1)
        shift, scale = c.mean(axis=(0, 1)), np.full(c.shape[-1], c.std(axis=1).mean())
    else:
        c = accuracy_weighted(outcomes.aptitude, means, vectors)[None]
        shift, scale = _scale_of(c[0])
    return Capabilities(c, shift, scale.astype(np.float32), norms, vectors, outcomes.aptitude)


def _text(outcomes: Outcomes, figures: Floats, encoder: TextEncoder) -> Floats:
    results = [TaskResult(k, float(a)) for k, a in zip(outcomes.keywords, figures, strict=True)]
    return text_representation(results, encoder.embed, encoder.count, encoder.limit)


def _scale_of(c: Floats) -> tuple[Floats, Floats]:
    """The mean accuracy gets as much weight at the start as all the deviations together."""
    shift = np.zeros(c.shape[1], dtype=np.float32)
    shift[-1] = c[:, -1].mean()
    scale = np.full(c.shape[1], np.sqrt((c[:, :-1] ** 2).mean()), dtype=np.float32)
    scale[-1] = c[:, -1].std() / np.sqrt(c.shape[1] - 1)
    return shift, scale


def new_connector(width_in: int, embeddings: torch.Tensor) -> nn.Linear:
    """(C -> D), its outputs about as long as the backbone's token embeddings (vocabulary, D)."""
    connector = nn.Linear(width_in, embeddings.shape[1])
    size = float(embeddings.detach().pow(2).mean().sqrt())
    nn.init.normal_(connector.weight, std=size / np.sqrt(2 * width_in))
    nn.init.zeros_(connector.bias)
    return connector


def folded(connector: nn.Linear, shift: Floats, scale: Floats) -> Connector:
    """The connector for plain representations: W (c - shift) / scale + b = W' c + b'."""
    weight = connector.weight.detach().numpy() / scale
    return Connector(
        weight.astype(np.float32),
        (connector.bias.detach().numpy() - weight @ shift).astype(np.float32),
    )
