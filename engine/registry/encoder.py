"""Encode aptitude results: accuracies -> capability representation c -> embedding e_c = W c + b.

Runs when a candidate is registered, never on the request path.

    c = [50 mean_t d_t k_t, mean_t acc_t]
    d_t = (acc_t - mean_t acc_t) - (mu_t - mean_t mu_t)

k_t is the centered, normalized embedding of task t's keywords. d_t is the candidate's task profile
relative to that of the training candidates, whose means mu_t are known for the tasks they took; for
other tasks the second bracket is 0. Overall level and task profile are separate: a test that is
harder or easier throughout moves the last coordinate alone (docs/adr/0005). c keeps every accuracy,
needs no fixed task list, and does not depend on the order or the number of tasks.

Shapes: T tasks, E encoder width, C = E + 1 representation width, D backbone width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.candidate import Candidate, TaskResult
from engine.api.errors import InvalidInputError, Violation
from engine.bundle.arrays import Connector, TaskNorms
from engine.bundle.types import Float32Array

Embed = Callable[[Sequence[str]], Float32Array]
FULL_TEST = 50  # tasks of the paper's aptitude test
MAX_KNOWN_TASKS = 10_000  # 15 MB at E = 384


def keyword_vectors(embeddings: Float32Array, center: Float32Array) -> Float32Array:
    """(T, E) keyword embeddings -> centred and normalised, as the formula's k_t."""
    centred = embeddings - center
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(length, 1e-6), dtype=np.float32)


def accuracy_weighted(
    accuracies: NDArray[np.floating[Any]], means: NDArray[np.floating[Any]], vectors: Float32Array
) -> Float32Array:
    """(..., T) accuracies, NaN = not sat; (T,) means mu_t, NaN = not known; (T, E) vectors ->
    (..., E + 1), see the module."""
    figures = np.asarray(accuracies, dtype=np.float64)
    sat = ~np.isnan(figures)
    known = sat & ~np.isnan(means)
    level = _mean(figures, sat)
    usual = _mean(np.broadcast_to(means, figures.shape), known)
    shape = np.where(sat, figures - level, 0.0) - np.where(known, means - usual, 0.0)
    tasks = np.maximum(sat.sum(axis=-1, keepdims=True), 1)
    weighted = FULL_TEST * (shape @ vectors.astype(np.float64)) / tasks
    return np.concatenate([weighted, level], axis=-1).astype(np.float32)


def _mean(values: NDArray[np.float64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over the last axis of what is known, kept as an axis; 0 where nothing is."""
    count = np.maximum(where.sum(axis=-1, keepdims=True), 1)
    return np.asarray(np.where(where, values, 0.0).sum(axis=-1, keepdims=True) / count)


class CapabilityEncoder:
    """Candidate -> (D,) embedding. Keyword embeddings are computed once per task and kept.

    embed: texts -> (N, E); count: text -> tokens; limit: tokens the encoder reads.
    """

    def __init__(
        self,
        embed: Embed,
        count: Callable[[str], int],
        limit: int,
        norms: TaskNorms,
        connector: Connector,
    ) -> None:
        self._embed = embed
        self._count = count
        self._limit = limit
        self._norms = norms
        self._connector = connector
        self._known: dict[str, Float32Array] = {}

    def encode(self, candidate: Candidate) -> Float32Array:
        """(D,) float32; equal aptitude gives an equal embedding, in whatever order it came."""
        c = self._weighted(sorted(candidate.aptitude, key=lambda r: r.task))
        return np.asarray(c @ self._connector.weight.T + self._connector.bias, dtype=np.float32)

    def _weighted(self, results: Sequence[TaskResult]) -> Float32Array:
        tasks = [r.task for r in results]
        accuracies = np.array([r.accuracy for r in results])
        return accuracy_weighted(accuracies, self._norms.of(tasks), self._vectors(tasks))

    def _vectors(self, tasks: Sequence[str]) -> Float32Array:
        new = [t for t in tasks if t not in self._known]
        for task in new:
            if self._count(task) > self._limit:
                raise InvalidInputError(
                    Violation(
                        "aptitude",
                        f"a task's keywords are {self._count(task)} tokens, the encoder reads"
                        f" {self._limit}; shorten them.",
                    )
                )
        if new:
            vectors = keyword_vectors(self._embed(new), self._norms.center)
            if len(self._known) > MAX_KNOWN_TASKS:
                kept = {*self._norms.means, *tasks}
                self._known = {t: v for t, v in self._known.items() if t in kept}
            self._known.update(zip(new, vectors, strict=True))
        return np.stack([self._known[t] for t in tasks])
