"""Made candidates agree with themselves: what their figures say is what their outcomes are."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.datasets.aptitude_test import AptitudeTest
from training.data.augment import KINDS, another_sitting, draw, make

M, T, Q, B = 5, 6, 20, 7
SUBJECTS = [f"s{t % 3}" for t in range(T)]


def sat(random: np.random.Generator, missing: float) -> AptitudeTest:
    answers = (random.random((M, T, Q)) < 0.5).astype(np.float32)
    answers[random.random(answers.shape) < missing] = np.nan
    answers[:, :, 0] = 1.0  # everyone answered something
    figures = np.nanmean(answers, axis=2)
    return AptitudeTest([f"k{t}" for t in range(T)], SUBJECTS, figures, answers)


def agreement(random: np.random.Generator, test: AptitudeTest, kind: str) -> bool:
    """Whether the outcomes on the items of a task are what its figure says, but for a blend, which
    takes others of them from either parent."""
    for task in range(T):
        figures, made = make(random, test, test.answers[:, task], [SUBJECTS[task]] * Q, kind)
        if kind != "blend" and not np.isclose(made.mean(), figures[task]):
            return False
    return True


@given(st.integers(0, 2**32 - 1))
def test_made_candidates_lie_where_their_kind_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    test = sat(random, missing=0.0)
    outcomes = (random.random((M, B)) < 0.5).astype(np.float32)
    rows = [SUBJECTS[i % T] for i in range(B)]
    best, worst = test.figures.max(axis=0), test.figures.min(axis=0)
    for kind in KINDS:
        figures, made = make(random, test, outcomes, rows, kind)
        assert ((figures >= 0) & (figures <= 1)).all()
        assert set(made.tolist()) <= {0.0, 1.0}
        assert agreement(random, test, kind)
        if kind == "either":
            assert (figures >= worst).all()
            assert figures.mean() >= np.sort(test.figures.mean(axis=1))[0]
        elif kind == "both":
            assert (figures <= best).all()
        elif kind == "blend":
            # No more right than the best answers of all together, no less than the worst.
            either, both = test.answers.max(axis=0).mean(axis=1), test.answers.min(axis=0)
            assert (figures <= either + 1e-6).all()
            assert (figures >= both.mean(axis=1) - 1e-6).all()
            assert all(m in outcomes[:, b] for b, m in enumerate(made))
        else:
            assert all(f in test.figures[:, t] for t, f in enumerate(figures))
            assert all(m in outcomes[:, b] for b, m in enumerate(made))


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_every_drawn_candidate_sat_something(seed: int, made: int) -> None:
    random = np.random.default_rng(seed)
    test = sat(random, missing=0.5)
    outcomes = (random.random((M, B)) < 0.5).astype(np.float32)
    drawn = draw(random, test, outcomes, [SUBJECTS[0]] * B, made, 0.5)
    assert drawn.figures.shape == (M + made, T)
    assert drawn.outcomes.shape == (M + made, B)
    assert not np.isnan(drawn.figures).all(axis=1).any()
    np.testing.assert_array_equal(drawn.outcomes[:M], outcomes)


def test_another_sitting_scatters_about_the_figures() -> None:
    random = np.random.default_rng(0)
    test = sat(random, missing=0.1)
    sittings = np.stack([another_sitting(random, test) for _ in range(2000)])
    np.testing.assert_allclose(sittings.mean(axis=0), test.figures, atol=0.02)
    unknown = np.where(np.arange(T)[:, None] == 0, np.nan, test.answers).astype(np.float32)
    once = AptitudeTest(test.keywords, test.subjects, test.figures, unknown)
    assert len(np.unique([another_sitting(random, once)[0, 0] for _ in range(200)])) > 4
    bare = AptitudeTest(
        test.keywords, test.subjects, np.where(test.figures > 0.6, np.nan, 0.4), None
    )
    assert (np.isnan(another_sitting(random, bare)) == np.isnan(bare.figures)).all()
