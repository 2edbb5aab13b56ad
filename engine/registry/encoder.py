"""Encode aptitude results: accuracies -> capability representation c -> embedding e_c = W c + b.

Runs when a candidate is registered, never on the request path.

    c = [50 mean_t w_t d_t k_t, level]
    d_t = (acc_t - mean_t acc_t) - (mu_t - mean_t mu_t)
    w_t = min(1, n_t / (n_t + 10) : 20 / (20 + 10))

k_t is the centered, normalized embedding of task t's keywords. d_t is the candidate's task profile
relative to that of the training candidates, whose means mu_t are known for the tasks they took; for
other tasks the second bracket is 0. w_t shrinks the figure of a task with few questions, n_t,
towards the level, and weighs it in the means over t; it is 1 for the 20 questions of the whole test
and for more, as training saw them. The level is the weighted mean of acc_t on the scale of all
tasks: what the weights change in the mean of mu_t is taken back.

Overall level and task profile are separate: a test that is harder or easier throughout moves the
last coordinate alone (docs/adr/0005). c keeps every accuracy, needs no fixed task list, and does
not depend on the order or the number of tasks.

Shapes: T tasks, E encoder width, C = E + 1 representation width, D backbone width.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.candidate import TEST_TASKS, USUAL_QUESTIONS, Candidate
from engine.api.errors import InvalidInputError, Violation
from engine.bundle.arrays import Connector, TaskNorms, keyword_set, keywords_id
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.task_places import TaskPlaces, normalized
from engine.bundle.types import Float32Array
from engine.registry.matching.task_match import TaskMatch, match_tasks, ramp

logger = logging.getLogger(__name__)
Embed = Callable[[Sequence[str]], Float32Array]
MAX_CACHED_TASKS = 10_000  # 15 MB at E = 384
# With so many questions, an accuracy's noise is as large as what candidates of one level differ by.
PRIOR_QUESTIONS = 10.0
# Ramp over the cosine of a task's places by keywords and by questions: below, the keywords say
# nothing.
READABLE = (0.1, 0.3)


def keyword_vectors(embeddings: Float32Array, center: Float32Array) -> Float32Array:
    """Center and normalize keyword embeddings, as the k_t of the formula. embeddings: (T, E)."""
    centered = embeddings - center
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    return np.asarray(centered / np.maximum(length, 1e-6), dtype=np.float32)


def question_weights(questions: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Compute w_t of the module's formula from numbers of questions (..., T), 0 = unknown."""
    n = np.where(questions > 0, questions, USUAL_QUESTIONS).astype(np.float64)
    usual = USUAL_QUESTIONS / (USUAL_QUESTIONS + PRIOR_QUESTIONS)
    return np.asarray(np.minimum(n / (n + PRIOR_QUESTIONS) / usual, 1.0))


def accuracy_weighted(
    accuracies: NDArray[np.floating[Any]],
    means: NDArray[np.floating[Any]],
    vectors: Float32Array,
    questions: NDArray[np.integer[Any]] | None = None,
) -> Float32Array:
    """Compute the representation c of the module's formula.

    Args:
        accuracies: (..., T), NaN = task not taken.
        means: (T,) mu_t, NaN = unknown.
        vectors: (T, E) k_t.
        questions: (..., T) n_t, 0 = unknown; None if all are.

    Returns:
        (..., E + 1) float32.
    """
    values = np.asarray(accuracies, dtype=np.float64)
    taken = ~np.isnan(values)
    comparable = taken & ~np.isnan(means)
    known = np.broadcast_to(means, values.shape)
    weights = np.ones(values.shape) if questions is None else question_weights(questions)
    mean = _mean(values, weights * taken)
    expected = _mean(known, weights * comparable)
    profile = np.where(taken, values - mean, 0.0)
    profile -= np.where(comparable, known - expected, 0.0)
    tasks = np.maximum(taken.sum(axis=-1, keepdims=True), 1)
    weighted = TEST_TASKS * ((weights * profile) @ vectors.astype(np.float64)) / tasks
    level = mean + (_mean(known, comparable.astype(np.float64)) - expected)
    return np.concatenate([weighted, level], axis=-1).astype(np.float32)


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted average over the last axis, which is kept; 0 if no weight is positive."""
    total = weights.sum(axis=-1, keepdims=True)
    sums = np.where(weights > 0, values * weights, 0.0).sum(axis=-1, keepdims=True)
    return np.asarray(sums / np.where(total > 0, total, 1.0))


class CapabilityEncoder:
    """Computes the embeddings of candidates; caches the vectors of tasks."""

    def __init__(
        self,
        embed: Embed,
        count_tokens: Callable[[str], int],
        max_tokens: int,
        norms: TaskNorms,
        connector: Connector,
        *,
        cut_long_tasks: bool = False,
        space: InstructionSpace | None = None,
        places: TaskPlaces | None = None,
        catalog: Sequence[Candidate] = (),
    ) -> None:
        """Create an encoder.

        Args:
            embed: N texts -> (N, E) embeddings.
            count_tokens: text -> its length in tokens.
            max_tokens: maximum length of a task's keywords.
            norms: reference values of the training candidates.
            connector: maps representations to embeddings.
            cut_long_tasks: read the first max_tokens of longer keywords, with a warning, in place
                of refusing them. `embed` must do the same.
            space, places: what tasks are matched with instructions by; None matches nothing.
            catalog: the bundle's candidates, whose results tell how hard its tasks are.
        """
        self._space = space
        self._places = places
        self._catalog = catalog
        of_tasks = {} if places is None else places.of_tasks
        self._known_places = {keyword_set(task): place for task, place in of_tasks.items()}
        self._embed = embed
        self._count_tokens = count_tokens
        self._max_tokens = max_tokens
        self._norms = norms
        self._connector = connector
        self._cut_long_tasks = cut_long_tasks
        self._cache: dict[str, Float32Array] = {}  # task -> (E,)
        self._lock = threading.Lock()  # tables are built, and candidates encoded, at the same time

    def encode(self, candidate: Candidate) -> Float32Array:
        """Return the candidate's embedding, (D,); the order of its tasks does not matter.

        Raises InvalidInputError if the keywords of a task are longer than the encoder can read.
        """
        results = sorted(candidate.aptitude, key=lambda r: r.task)
        tasks = [r.task for r in results]
        accuracies = np.array([r.accuracy for r in results])
        questions = np.array([r.questions for r in results])
        c = accuracy_weighted(
            accuracies, self._norms.of(tasks), self._task_vectors(tasks), questions
        )
        return np.asarray(c @ self._connector.weight.T + self._connector.bias, dtype=np.float32)

    def match(self, candidates: Sequence[Candidate]) -> TaskMatch | None:
        """Prepare the match of instructions with the tests of `candidates`; None if the bundle
        knows no places of tasks."""
        if self._places is None or self._space is None or not candidates:
            return None
        current = self._places.id
        outdated = [
            c.id
            for c in candidates
            if any(r.place and not r.place.startswith(current) for r in c.aptitude)
        ]
        if outdated:
            logger.warning(
                "the tasks of %s were placed by other weights, so keywords stand in;"
                " `modelsat aptitude run` with the same flags places them again without asking,"
                " and `modelsat candidates update ID --results FILE` registers that",
                ", ".join(outdated[:5]) + (" and others" if len(outdated) > 5 else ""),
            )
        return match_tasks(
            candidates, self._place, self._space, self._places, self._readable, self._catalog
        )

    def _place(self, tasks: Mapping[str, bytes]) -> tuple[Float32Array, NDArray[np.bool_]]:
        """Return the places of tasks (T, P), and whether each is estimated, (T,). tasks: keywords
        -> what TaskPlaces.pack made of their questions."""
        places = self._places
        assert places is not None
        known = self._known_places
        own = {t: places.unpack(content) if content else None for t, content in tasks.items()}
        found = [known.get(keyword_set(t)) if place is None else place for t, place in own.items()]
        estimated = np.array([place is None for place in found])
        result = np.empty((len(found), places.landmarks.shape[1]), dtype=np.float32)
        if estimated.any():
            names = [task for task, place in zip(tasks, found, strict=True) if place is None]
            result[estimated] = places.estimate(self._whole(self._task_vectors(names)))
        for i in np.flatnonzero(~estimated):
            result[i] = found[i]
        return result, estimated

    def _readable(self, tasks: Sequence[str], vectors: Float32Array) -> Float32Array:
        """Return how far the weights can read from a task's keywords what it is, (T,) in [0, 1]:
        fully if training had them, else by how near their place is to that of the questions.

        vectors: (T, P) places of the tasks.
        """
        places = self._places
        assert places is not None
        known = np.isin([keywords_id(task) for task in tasks], places.trained)
        if known.all() or not len(places.trained):
            return np.ones(len(tasks), dtype=np.float32)
        near = (places.estimate(self._whole(self._task_vectors(tasks))) * vectors).sum(axis=1)
        return np.maximum(known, ramp(near, *READABLE)).astype(np.float32)

    def _whole(self, vectors: Float32Array) -> Float32Array:
        """Return keyword embeddings (T, E) of length 1 from k_t: center + r k_t with that length,
        which undoes keyword_vectors."""
        center = self._norms.center
        along = vectors @ center
        r = np.sqrt(np.maximum(along**2 + 1 - center @ center, 0)) - along
        return normalized(center + r[:, None] * vectors)

    def _task_vectors(self, tasks: Sequence[str]) -> Float32Array:
        with self._lock:
            return self._cached_vectors(tasks)

    def _cached_vectors(self, tasks: Sequence[str]) -> Float32Array:
        new = [t for t in tasks if t not in self._cache]
        for task in new:
            if (count := self._count_tokens(task)) > self._max_tokens:
                problem = (
                    f"has a task whose keywords are {count} tokens, the limit is"
                    f" {self._max_tokens}: {task[:60]!r}..."
                )
                if not self._cut_long_tasks:
                    raise InvalidInputError(Violation("aptitude", f"{problem}; shorten them."))
                logger.warning("aptitude test %s; the rest is left out", problem)
        if new:
            vectors = keyword_vectors(self._embed(new), self._norms.center)
            if len(self._cache) > MAX_CACHED_TASKS:
                keep = {*self._norms.means, *tasks}
                self._cache = {t: v for t, v in self._cache.items() if t in keep}
            self._cache.update(zip(new, vectors, strict=True))
        return np.stack([self._cache[t] for t in tasks])
