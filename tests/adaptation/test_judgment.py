"""What is done with a correction that is not shown to help, and with those who contradict others.

Means over worlds, because in single ones chance decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.adaptation.fit import fit
from engine.adaptation.fitted import FittedAdaptation
from engine.adaptation.outcome_matrix import OutcomeMatrix
from engine.adaptation.regression import sigmoid
from tests.adaptation.test_fit import CANDIDATES, NAMES, SPACE, WORLDS, World, chosen

Scores = NDArray[np.float32]


def served(fitted: FittedAdaptation, matrix: OutcomeMatrix) -> NDArray[np.int64]:
    """The choices of a server with the shipped confidence."""
    return chosen(fitted, matrix) if fitted.decides else matrix.logits.argmax(axis=1)


def accuracy(choices: NDArray[np.int64], matrix: OutcomeMatrix) -> float:
    return float(matrix.scores[np.arange(len(choices)), choices].mean())


def imagined(world: World, matrix: OutcomeMatrix, seed: int) -> OutcomeMatrix:
    """The same with weights that believe in strengths that no candidate has."""
    noise = np.random.default_rng(seed).normal(size=matrix.logits.shape)
    return replace(matrix, logits=(world.known + noise).astype(np.float32))


def test_rejected_fits_leave_the_weights_where_the_default_did_better() -> None:
    gains, unguarded = [], []
    for seed in range(4 * WORLDS):
        world = World.of(seed, strength=0.0)
        drawn = imagined(world, world.draw(15, seed), seed)
        new = imagined(world, world.draw(200, seed + 1), seed + 1)
        fitted = fit(drawn, SPACE)
        if fitted.active or not fitted.decides:
            continue
        p = sigmoid(new.logits[0].astype(np.float64)).astype(np.float32)
        np.testing.assert_allclose(fitted.correct(new.embeddings[0], p, NAMES).p, p, atol=1e-4)
        constant = new.scores[:, drawn.scores.mean(axis=0).argmax()].mean()
        gains.append(accuracy(served(fitted, new), new) - constant)
        unguarded.append(accuracy(new.logits.argmax(axis=1), new) - constant)
    assert len(gains) > 10
    assert np.mean(gains) > 0.5 * np.mean(unguarded)
    assert np.mean(unguarded) < -0.03


def test_rejected_fits_leave_right_weights_alone() -> None:
    """Worlds whose weights know who is strong at what, so that there is nothing to learn."""
    losses, active = [], []
    for seed in range(2 * WORLDS):
        world = World.of(seed)
        drawn, new = world.draw(30, seed), world.draw(200, seed + 1)
        drawn, new = (replace(m, logits=right(world, m)) for m in (drawn, new))
        fitted = fit(drawn, SPACE)
        active.append(fitted.active)
        losses.append(accuracy(new.logits.argmax(axis=1), new) - accuracy(served(fitted, new), new))
    assert np.mean(active) < 0.2
    assert np.mean(losses) < 0.02


def right(world: World, matrix: OutcomeMatrix) -> Scores:
    kinds = (matrix.embeddings @ world.directions.T).argmax(axis=1)
    return world.logits[kinds].astype(np.float32)


def favorite_wrong(scores: Scores) -> Scores:
    favorite = scores.mean(axis=0).argmax()
    return np.where(np.arange(CANDIDATES) == favorite, 0, scores)


def rival_pushed(scores: Scores) -> Scores:
    rival = scores.mean(axis=0).argsort()[-2]
    return np.broadcast_to(np.arange(CANDIDATES) == rival, scores.shape)


def weakest_pushed(scores: Scores) -> Scores:
    weakest = scores.mean(axis=0).argmin()
    return np.where(np.arange(CANDIDATES) == weakest, 1, scores)


@pytest.mark.parametrize(
    ("lie", "one_kind"),
    [
        (favorite_wrong, False),
        (rival_pushed, False),
        (favorite_wrong, True),
        (weakest_pushed, True),
    ],
)
def test_a_liar_moves_no_more_choices_than_its_share(
    lie: Callable[[Scores], Scores], one_kind: bool
) -> None:
    """5 % of the outcomes, spread or on one kind of instructions, and what is chosen without."""
    moved = []
    for seed in range(5):
        world = World.of(seed)
        drawn, new = world.draw(400, seed), world.draw(200, seed + 1)
        kind = (drawn.embeddings @ world.directions.T).argmax(axis=1)
        liar = np.flatnonzero(kind == 0)[:20] if one_kind else np.arange(0, 400, 20)
        names = np.array([f"caller-{i % 3}" for i in range(400)])
        names[liar] = "liar"
        poisoned = drawn.scores.copy()
        poisoned[liar] = lie(drawn.scores)[liar]
        lied = replace(drawn, scores=poisoned, principals=tuple(names.tolist()))
        honest = without(drawn, liar)
        moved.append(served(fit(lied, SPACE), new) != served(fit(honest, SPACE), new))
    assert np.mean(moved) <= 0.05


def without(matrix: OutcomeMatrix, rows: NDArray[np.int64]) -> OutcomeMatrix:
    kept = np.setdiff1d(np.arange(len(matrix)), rows)
    return replace(
        matrix,
        embeddings=matrix.embeddings[kept],
        logits=matrix.logits[kept],
        scores=matrix.scores[kept],
        provenance=matrix.provenance[kept],
        propensity=matrix.propensity[kept],
        principals=tuple(matrix.principals[i] for i in kept),
        recorded_at=matrix.recorded_at[kept],
    )


def test_who_reports_on_a_kind_of_its_own_is_believed() -> None:
    """The weights are as wrong there as the reports of a liar would be elsewhere."""
    changed = []
    for seed in range(5):
        world = World.of(seed)
        kinds = world.draw(300, seed)
        specialist = (kinds.embeddings @ world.directions.T).argmax(axis=1) == 0
        names = tuple("sql" if is_sql else f"caller-{i % 3}" for i, is_sql in enumerate(specialist))
        new = world.draw(200, seed + 1, kinds=(0,))
        both = (fit(replace(kinds, principals=p), SPACE) for p in (names, ("",) * 300))
        one, other = (served(fitted, new) for fitted in both)
        changed.append(one != other)
    assert np.mean(changed) < 0.02
