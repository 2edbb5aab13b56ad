"""Check that synthetic candidates are consistent: accuracies and outcomes agree."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.datasets.aptitude_test import AptitudeTest
from training.data.augment import KINDS, resample_accuracies, sample_candidates, synthesize

M, T, Q, B = 5, 6, 20, 7
SUBJECTS = [f"s{t % 3}" for t in range(T)]


def random_test(random: np.random.Generator, missing: float) -> AptitudeTest:
    answers = (random.random((M, T, Q)) < 0.5).astype(np.float32)
    answers[random.random(answers.shape) < missing] = np.nan
    answers[:, :, 0] = 1.0  # everyone answered something
    accuracies = np.nanmean(answers, axis=2)
    return AptitudeTest([f"k{t}" for t in range(T)], SUBJECTS, accuracies, answers)


def agrees_with_itself(random: np.random.Generator, test: AptitudeTest, kind: str) -> bool:
    """True if the outcomes on a task's items have the mean that the task's accuracy says.

    A blend is an exception: it takes other items from each parent.
    """
    for task in range(T):
        items, subjects = test.answers[:, task], [SUBJECTS[task]] * Q
        accuracies, outcomes = synthesize(random, test, items, subjects, kind)
        if kind != "blend" and not np.isclose(outcomes.mean(), accuracies[task]):
            return False
    return True


@given(st.integers(0, 2**32 - 1))
def test_synthetic_candidates_are_as_their_kind_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    test = random_test(random, missing=0.0)
    real = (random.random((M, B)) < 0.5).astype(np.float32)
    rows = [SUBJECTS[i % T] for i in range(B)]
    best, worst = test.accuracies.max(axis=0), test.accuracies.min(axis=0)
    for kind in KINDS:
        accuracies, outcomes = synthesize(random, test, real, rows, kind)
        assert ((accuracies >= 0) & (accuracies <= 1)).all()
        assert set(outcomes.tolist()) <= {0.0, 1.0}
        assert agrees_with_itself(random, test, kind)
        if kind == "union":
            assert (accuracies >= worst).all()
            assert accuracies.mean() >= np.sort(test.accuracies.mean(axis=1))[0]
        elif kind == "intersection":
            assert (accuracies <= best).all()
        elif kind == "blend":
            # At most as good as the best answers of all candidates, at least as the worst ones.
            upper, lower = test.answers.max(axis=0).mean(axis=1), test.answers.min(axis=0)
            assert (accuracies <= upper + 1e-6).all()
            assert (accuracies >= lower.mean(axis=1) - 1e-6).all()
            assert all(o in real[:, b] for b, o in enumerate(outcomes))
        else:
            assert all(a in test.accuracies[:, t] for t, a in enumerate(accuracies))
            assert all(o in real[:, b] for b, o in enumerate(outcomes))


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_every_sampled_candidate_has_an_accuracy(seed: int, synthetic: int) -> None:
    random = np.random.default_rng(seed)
    test = random_test(random, missing=0.5)
    outcomes = (random.random((M, B)) < 0.5).astype(np.float32)
    sample = sample_candidates(random, test, outcomes, [SUBJECTS[0]] * B, synthetic, 0.5)
    assert sample.accuracies.shape == (M + synthetic, T)
    assert sample.outcomes.shape == (M + synthetic, B)
    assert not np.isnan(sample.accuracies).all(axis=1).any()
    np.testing.assert_array_equal(sample.outcomes[:M], outcomes)


def test_resampled_accuracies_scatter_around_the_measured_ones() -> None:
    random = np.random.default_rng(0)
    test = random_test(random, missing=0.1)
    resampled = np.stack([resample_accuracies(random, test) for _ in range(2000)])
    np.testing.assert_allclose(resampled.mean(axis=0), test.accuracies, atol=0.02)
    unknown = np.where(np.arange(T)[:, None] == 0, np.nan, test.answers).astype(np.float32)
    once = AptitudeTest(test.keywords, test.subjects, test.accuracies, unknown)
    assert len(np.unique([resample_accuracies(random, once)[0, 0] for _ in range(200)])) > 4
    bare = AptitudeTest(
        test.keywords, test.subjects, np.where(test.accuracies > 0.6, np.nan, 0.4), None
    )
    assert (np.isnan(resample_accuracies(random, bare)) == np.isnan(bare.accuracies)).all()
