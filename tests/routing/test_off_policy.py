"""Off-policy estimates against simulated logs, whose policies and outcomes are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api.candidate import Candidate
from engine.routing.decision import Decision, PromptInfo, RankingEntry
from engine.routing.exploration import Exploration, explore
from engine.routing.off_policy import LoggedOutcomes, OffPolicyEstimates, estimate

CANDIDATES = 4


@dataclass(frozen=True)
class World:
    """truth: (N, M) probabilities of success. logging: (N, M) probabilities of each choice.
    target: (N,) the other policy's choices."""

    truth: np.ndarray
    logging: np.ndarray
    target: np.ndarray

    @property
    def value(self) -> float:
        """What the other policy gives on average."""
        return float(self.truth[np.arange(len(self.target)), self.target].mean())

    def simulate(self, random: np.random.Generator, model: np.ndarray) -> OffPolicyEstimates:
        """Estimate from one log, with `model` (N, M) for predictions."""
        rows = np.arange(len(self.truth))
        chosen = (self.logging.cumsum(1) < random.random((len(rows), 1))).sum(1)
        chosen = np.minimum(chosen, CANDIDATES - 1)
        outcome = (random.random(len(rows)) < self.truth[rows, chosen]).astype(np.float64)
        logged = LoggedOutcomes(outcome, self.logging[rows, chosen], model[rows, chosen])
        return estimate(logged, chosen == self.target, model[rows, self.target])


def a_world(seed: int, share: float = 0.4, rows: int = 400) -> World:
    """The log explores evenly in a share of the requests; the other policy chooses at random."""
    random = np.random.default_rng(seed)
    truth = random.uniform(0.05, 0.95, (rows, CANDIDATES))
    favorite = random.integers(CANDIDATES, size=rows)
    logging = np.full((rows, CANDIDATES), share / (CANDIDATES - 1))
    logging[np.arange(rows), favorite] = 1 - share
    return World(truth, logging, random.integers(CANDIDATES, size=rows))


def draws(world: World, model: np.ndarray, count: int = 300) -> list[OffPolicyEstimates]:
    random = np.random.default_rng(9)
    return [world.simulate(random, model) for _ in range(count)]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.2, 0.7), st.sampled_from(["true", "constant", "wrong"]))
def test_both_estimates_are_unbiased_whatever_the_model(seed: int, share: float, kind: str) -> None:
    world = a_world(seed, share)
    models = {"true": world.truth, "constant": np.full_like(world.truth, 0.5)}
    found = draws(world, models.get(kind, 1 - world.truth))
    for values in (
        np.array([e.inverse_propensity.value for e in found]),
        np.array([e.doubly_robust.value for e in found]),
    ):
        error_of_mean = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(values.mean() - world.value) < 5 * error_of_mean + 1e-3


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.2, 0.7))
def test_standard_errors_are_those_of_repeated_logs(seed: int, share: float) -> None:
    """Requests are redrawn with the log, so that all that varies is in the estimate."""
    random = np.random.default_rng(seed)
    whole = a_world(seed, share, rows=20_000)
    found = []
    for _ in range(300):
        rows = random.integers(20_000, size=400)
        part = World(whole.truth[rows], whole.logging[rows], whole.target[rows])
        found.append(part.simulate(random, np.clip(part.truth + 0.1, 0, 1)))
    for name in ("inverse_propensity", "doubly_robust"):
        estimates = [getattr(e, name) for e in found]
        spread = np.std([e.value for e in estimates], ddof=1)
        assert np.mean([e.standard_error for e in estimates]) == pytest.approx(spread, rel=0.25)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.05, 0.6))
def test_doubly_robust_varies_less_with_a_good_model(seed: int, share: float) -> None:
    world = a_world(seed, share)
    noise = np.random.default_rng(seed).normal(0, 0.05, world.truth.shape)
    found = draws(world, np.clip(world.truth + noise, 0, 1))
    robust = np.std([e.doubly_robust.value for e in found])
    assert robust < np.std([e.inverse_propensity.value for e in found])


@pytest.mark.parametrize("explored", [0, 1, 3])
def test_coverage_is_the_share_of_choices_that_could_have_been_logged(explored: int) -> None:
    """The log chooses candidate 0 or one of the next `explored`; the other policy any of four."""
    world = a_world(3, rows=20_000)
    logging = np.zeros_like(world.logging)
    logging[:, : explored + 1] = 1 / (explored + 1)
    partial = World(world.truth, logging, world.target)
    found = partial.simulate(np.random.default_rng(1), world.truth)
    assert found.coverage == pytest.approx((explored + 1) / CANDIDATES, abs=0.03)
    assert found.doubly_robust.value == pytest.approx(world.value, abs=0.02)
    assert 1 < found.effective_outcomes <= found.rows


def test_the_log_of_an_exploring_router_tells_what_its_ranking_gives_alone() -> None:
    """Through explore() itself: of the logged rows, the draws are weighted away."""
    random = np.random.default_rng(5)
    truth, outcome, propensity, same = [], [], [], []
    for _ in range(20_000):
        utility = np.sort(random.uniform(0.5, 0.6, 3))[::-1]
        right = {"c0": 0.8, "c1": 0.3, "c2": 0.1}
        ranking = tuple(
            RankingEntry(Candidate(f"c{i}", ()), float(u), None, float(u))
            for i, u in enumerate(utility)
        )
        info = PromptInfo(3, truncated=False, ood_score=None)
        made = Decision(ranking[0].candidate, "", ranking, {}, 1, info, "ranked", {})
        drawn = explore(made, Exploration(0.3, 0.05), random.random())
        truth.append(right["c0"])
        same.append(drawn.kind == "ranked")
        propensity.append(drawn.propensity)
        outcome.append(float(random.random() < right[drawn.selected.id]))
    logged = LoggedOutcomes(np.array(outcome), np.array(propensity), np.full(len(outcome), 0.5))
    found = estimate(logged, np.array(same), np.full(len(outcome), 0.5))
    assert np.mean(outcome) < 0.75
    for value in (found.inverse_propensity, found.doubly_robust):
        assert value.value == pytest.approx(0.8, abs=4 * value.standard_error)
        assert value.standard_error < 0.01
    assert found.coverage == pytest.approx(1, abs=0.02)


def test_a_rare_choice_counts_no_more_than_the_root_of_the_rows() -> None:
    outcome, p = np.array([1.0] + [0.0] * 99), np.full(100, 0.2)
    propensity = np.array([1e-9] + [1.0] * 99)
    logged = LoggedOutcomes(outcome, propensity, p)
    found = estimate(logged, np.ones(100, bool), p)
    assert found.inverse_propensity.value == pytest.approx(10 / 109)
    assert found.doubly_robust.value == pytest.approx(0.2 + (10 * 0.8 - 99 * 0.2) / 100)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_give_no_figure(rows: int) -> None:
    none = np.ones(rows)
    found = estimate(LoggedOutcomes(none, none, none), none.astype(bool), none)
    assert math.isnan(found.inverse_propensity.value)
    assert math.isnan(found.doubly_robust.standard_error)
    never = estimate(
        LoggedOutcomes(np.ones(9), np.ones(9), np.ones(9)), np.zeros(9, bool), np.full(9, 0.4)
    )
    assert math.isnan(never.inverse_propensity.value)
    assert never.coverage == 0
    assert never.doubly_robust.value == pytest.approx(0.4)
