"""Expect the length of a candidate's answer from what its calls on similar instructions used.

Shapes: N instructions with a known answer length, M candidates, E eligible ones, D width, P axes,
R landmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.adaptation.kernel import choose_landmarks, kernel_of
from engine.api.candidate import DEFAULT_OUTPUT_TOKENS, Candidate
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.types import Float32Array

MAX_INSTRUCTIONS = 4000  # the newest ones
MAX_LANDMARKS = 256  # a decision looks at all of them
MEAN_WEIGHT = 2.0  # of the candidate's mean, in similar instructions
PRIOR_WEIGHT = 10.0  # of the length that the candidate states, or of 400 tokens, in calls
HIGHEST_QUANTILE = 0.95  # longer answers of a candidate count as that: one report moves little


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """Output tokens of calls, reasoning included.

    embeddings: (N, D). candidates: M IDs. tokens: (N, M), NaN where unknown.
    """

    embeddings: Float32Array
    candidates: tuple[str, ...]
    tokens: Float32Array


@dataclass(frozen=True, eq=False)
class AnswerLengths:
    """Expected output tokens, by similarity to landmarks among the instructions.

    landmarks: (R, P) unit vectors. center: (D,) of the embeddings. near: (R, 2 M) of the
    instructions around each landmark, the output tokens of each candidate and then its number of
    calls. columns: ID -> column. sums, counts: M of the tokens and of the calls over all N.
    """

    space: InstructionSpace
    center: Float32Array
    landmarks: Float32Array
    near: Float32Array
    columns: dict[str, int]
    sums: list[float]
    counts: list[float]

    @classmethod
    def of(cls, answers: AnswerTokens, space: InstructionSpace) -> AnswerLengths | None:
        """Prepare the expectation; None if no length is known."""
        if not len(answers.tokens):
            return None
        center = space.center_of(answers.embeddings)
        known = ~np.isnan(answers.tokens)
        tokens = np.where(known, answers.tokens, 0).astype(np.float32)
        for column in np.flatnonzero(known.any(axis=0)):
            rows = known[:, column]
            highest = np.quantile(tokens[rows, column], HIGHEST_QUANTILE, method="nearest")
            tokens[rows, column] = np.minimum(tokens[rows, column], highest)
        vectors = space.unit_vectors(answers.embeddings, center)
        landmarks = vectors[choose_landmarks(vectors, MAX_LANDMARKS)]
        nearest = (vectors @ landmarks.T).argmax(axis=1)
        near = np.zeros((len(landmarks), 2 * len(answers.candidates)), dtype=np.float32)
        np.add.at(near, nearest, np.concatenate([tokens, known], axis=1))
        return cls(
            space,
            center,
            landmarks,
            near,
            {name: i for i, name in enumerate(answers.candidates)},
            tokens.sum(axis=0).tolist(),
            known.sum(axis=0, dtype=np.float32).tolist(),
        )

    def expected(
        self, embedding: Float32Array, candidates: Sequence[Candidate]
    ) -> list[float | None]:
        """Return the expected output tokens of E candidates on an instruction (D,), None for those
        of which no call is known.

        The mean over similar instructions is drawn to the candidate's mean over all, and that to
        the length that the candidate states, or 400 tokens.
        """
        if not np.isfinite(embedding).all():
            return [None] * len(candidates)
        vector = self.space.unit_vectors(embedding, self.center)
        near: list[float] = (kernel_of(self.landmarks @ vector) @ self.near).tolist()
        lengths: list[float | None] = []
        for candidate in candidates:
            mean = self.mean(candidate)
            if mean is None:
                lengths.append(None)
                continue
            column = self.columns[candidate.id]
            total, count = near[column], near[column + len(self.counts)]
            lengths.append((total + MEAN_WEIGHT * mean) / (count + MEAN_WEIGHT))
        return lengths

    def mean(self, candidate: Candidate) -> float | None:
        """Return the expected output tokens of a candidate on any instruction, None if no call of
        it is known."""
        column = self.columns.get(candidate.id)
        if column is None or not self.counts[column]:
            return None
        stated = candidate.mean_output_tokens
        prior = DEFAULT_OUTPUT_TOKENS if stated is None else stated
        total = self.sums[column] + PRIOR_WEIGHT * prior
        return total / (self.counts[column] + PRIOR_WEIGHT)
