"""Corrections fade with the distance to everything that is remembered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.adaptation.fit import fit
from engine.adaptation.kernel import Landmarks
from engine.adaptation.outcome_matrix import OutcomeMatrix
from engine.bundle.instruction_space import InstructionSpace

WIDTH = 32
SPACE = InstructionSpace.unknown(WIDTH)
NAMES = ("a", "b", "c")
P = np.array([0.9, 0.8, 0.7], dtype=np.float32)


def instructions(kind: int, count: int, seed: int) -> NDArray[np.float32]:
    """Return embeddings (count, WIDTH) of a kind, each kind around an axis of its own."""
    noise = 0.15 * np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (np.eye(WIDTH)[kind] * 3 + noise).astype(np.float32)


def coverage(remembered: NDArray[np.float32], others: NDArray[np.float32]) -> list[float]:
    """Return how far a memory covers each of some other instructions."""
    landmarks = Landmarks.of(SPACE, remembered, SPACE.center_of(remembered))
    return [landmarks.compare(each)[1] for each in others]


def failing(embeddings: NDArray[np.float32], name: str = "a") -> OutcomeMatrix:
    """Return comparisons in which `name` fails, although the weights think most of it."""
    count = len(embeddings)
    scores = np.ones((count, len(NAMES)), dtype=np.float32)
    scores[:, NAMES.index(name)] = 0
    logits = np.tile(np.log(P / (1 - P)), (count, 1)).astype(np.float32)
    known = np.zeros(scores.shape, dtype=np.int8)
    principals = ("",) * count
    propensity = np.ones_like(scores)
    at = np.arange(count, dtype=np.float64)
    return OutcomeMatrix(embeddings, NAMES, logits, scores, known, propensity, principals, at)


@given(st.integers(0, 50), st.integers(12, 60), st.integers(1, 31))
def test_a_memory_of_one_kind_covers_it_and_no_other(seed: int, count: int, other: int) -> None:
    remembered = instructions(0, count, seed)
    assert np.mean(coverage(remembered, instructions(0, 40, seed + 1000))) > 0.7
    assert set(coverage(remembered, instructions(other, 20, seed))) == {0.0}


@pytest.mark.parametrize("kinds", [(0, 1), (0, 1, 2, 3)])
def test_a_memory_of_several_kinds_covers_each(kinds: tuple[int, ...]) -> None:
    remembered = np.concatenate([instructions(kind, 30, kind) for kind in kinds])
    for kind in kinds:
        assert np.mean(coverage(remembered, instructions(kind, 40, 99))) > 0.7
    assert max(coverage(remembered, instructions(9, 40, 99))) == 0.0


@given(st.integers(0, 20), st.integers(1, 31))
def test_what_fails_at_one_kind_keeps_its_probability_at_others(seed: int, other: int) -> None:
    fitted = fit(failing(instructions(0, 60, seed)), SPACE)
    assert fitted.active, fitted.reason
    inside = fitted.correct(instructions(0, 1, seed + 1000)[0], P, NAMES)
    assert inside.p[0] < min(inside.p[1:])
    for each in instructions(other, 10, seed):
        outside = fitted.correct(each, P, NAMES)
        assert outside.coverage == 0
        np.testing.assert_allclose(outside.p, P, atol=1e-6)


@pytest.mark.parametrize("count", [60, 200])
def test_standard_errors_are_wide_far_from_what_is_remembered(count: int) -> None:
    fitted = fit(failing(instructions(0, count, 3)), SPACE)
    inside = fitted.correct(instructions(0, 1, 1003)[0], P, NAMES)
    outside = fitted.correct(instructions(5, 1, 3)[0], P, NAMES)
    unknown = fitted.correct(instructions(5, 1, 3)[0], P, ("new",) * len(P))
    assert (outside.standard_error > 0.95 * unknown.standard_error).all()
    logit_errors = inside.standard_error / (inside.p * (1 - inside.p))
    assert (logit_errors < 0.8 * outside.standard_error / (outside.p * (1 - outside.p))).all()


def test_one_instruction_alone_is_covered() -> None:
    alone = instructions(0, 1, 0)
    assert coverage(alone, alone) == [1.0]
