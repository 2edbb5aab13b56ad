"""Correct the probabilities of one request by an adaptation.

Shapes: E eligible candidates, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.bundle.types import Float32Array


@dataclass(frozen=True)
class CorrectedScores:
    """Probabilities after a correction.

    p: (E,). standard_error: (E,) of p. similar_outcomes: (E,) effective number of remembered
    outcomes of each candidate on similar instructions. offset, common, relative: (E,) parts of the
    correction in log-odds: by the candidate's outcomes on all instructions, by all candidates'
    outcomes on similar ones, and by the candidate's own on similar ones. coverage: how far the
    instruction is one of those that are remembered, in [0, 1]; at 0, p is that of the weights.
    """

    p: Float32Array
    standard_error: Float32Array
    similar_outcomes: Float32Array
    offset: Float32Array
    common: Float32Array
    relative: Float32Array
    coverage: float = 1.0


@dataclass(frozen=True)
class FitFigures:
    """What a fit was made from, and how well it does on outcomes that were left out of it.

    instructions: N. outcomes: provenance -> number. log_loss_before, log_loss_after: mean log loss
    of left-out outcomes without and with the correction; standard_error: of their difference.
    as_of: when the newest outcome was recorded, in seconds since 1970. seconds: of the fit.
    """

    instructions: int
    outcomes: Mapping[str, int]
    log_loss_before: float
    log_loss_after: float
    standard_error: float
    as_of: float
    seconds: float


class Adaptation(Protocol):
    """An immutable fit. `active` is false if it is not better than the weights alone; correct()
    then changes nothing. `decides` is true if decisions are to use it: if it is active, or if the
    weights' choices scored less than the best candidate on average, so that the guard is needed.
    The reason is in sentences. `id` is OutcomeMatrix.id with the version of the method.
    """

    @property
    def id(self) -> str: ...
    @property
    def active(self) -> bool: ...
    @property
    def decides(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def figures(self) -> FitFigures: ...

    def correct(
        self, embedding: Float32Array, p: Float32Array, candidates: Sequence[str]
    ) -> CorrectedScores:
        """Correct the probabilities p (E,) of an instruction with `embedding` (D,).

        Takes under half a millisecond with 10,000 remembered instructions. Thread-safe.
        """

    def mean_probabilities(self, candidates: Sequence[str]) -> Float32Array:
        """Return the mean probability of each of E candidates over the remembered instructions,
        corrected by what holds on all of them: without the relative parts. (E,), NaN if nothing but
        choices of the router's own is known."""

    def without(self, candidates: Collection[str]) -> Adaptation:
        """Return the same fit with nothing learned of these candidates alone."""

    def nearest(self, embedding: Float32Array, count: int) -> list[tuple[int, float]]:
        """Return the rows of the nearest remembered instructions with their cosines, nearest
        first."""
