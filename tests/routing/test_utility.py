"""The cost objective: what a candidate costs the choice does not hang on its neighbours, and moves
smoothly with what a success is worth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.policy import OBJECTIVES, RECOMMENDED_WILLINGNESS_USD, Policy
from engine.api.proto import policy_from, policy_to
from engine.bundle.arrays import load_arrays
from engine.bundle.types import FloatArray
from engine.cli.calibrate.solve import evenly_moving, expected_point, switch_points
from engine.inference.offline import score_candidates
from engine.pb import router_service_pb2 as pb
from engine.registry.catalog import read_catalog
from engine.registry.onnx_encoder import load_encoder
from engine.routing import tradeoff
from engine.routing.guard import Evidence
from engine.routing.ranking import DecisionContext, decide, rank
from tests.support.mixed_prompts import mixed_prompts
from tools.processes import BUNDLE

Pool = list[tuple[float, float | None]]
COSTS = st.none() | st.floats(0, 0.2) | st.sampled_from([0.0, 1e-4, 1e-3, 0.01])
CANDIDATE = st.tuples(st.floats(0, 1), COSTS)
POOL = st.lists(CANDIDATE, min_size=1, max_size=10)
WILLINGNESS = st.floats(1e-4, 10) | st.just(math.inf)
PLAIN = DecisionContext()
STEPS, MAX_STEP = 50, 0.15
TEN = 10


def ids(pool: Pool) -> list[str]:
    return [f"c{i:02}" for i in range(len(pool))]


def chosen(pool: Pool, policy: Policy, context: DecisionContext = PLAIN) -> str:
    p, costs = zip(*pool, strict=True)
    names = ids(pool)
    return names[decide(names, np.array(p), costs, policy, context).order[0]]


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(POOL, CANDIDATE, st.floats(1e-4, 1), st.integers(0, 9))
def test_a_candidate_that_is_not_chosen_changes_no_choice_and_no_utility(
    objective: str, pool: Pool, other: tuple[float, float | None], value: float, session: int
) -> None:
    """Also of a session, whose margin is in utility: it stays, or leaves for the same one."""
    policy = Policy(objective, value)  # type: ignore[arg-type]
    context = DecisionContext(session_candidate=f"c{session:02}", switching_margin=0.05)
    for each in (PLAIN, context):
        alone, together = chosen(pool, policy, each), chosen([*pool, other], policy, each)
        assert together in (alone, ids([*pool, other])[-1])
    p, costs = zip(*[*pool, other], strict=True)
    utility = rank(ids([*pool, other]), np.array(p), costs, policy).utility
    assert utility[:-1] == rank(ids(pool), np.array(p[:-1]), costs[:-1], policy).utility


@given(POOL, WILLINGNESS, WILLINGNESS)
def test_paying_more_for_a_success_gets_no_less_probability_and_saves_nothing(
    pool: Pool, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    priced = [each for each in pool if each[1] is not None] or [(0.5, 0.001)]
    p, costs = zip(*priced, strict=True)
    frugal, lavish = (
        ids(priced).index(chosen(priced, Policy("willingness_to_pay_usd", usd)))
        for usd in (low, high)
    )
    assert (costs[frugal] or 0.0) <= (costs[lavish] or 0.0) + 1e-12
    assert p[frugal] <= p[lavish] + 1e-12


@given(POOL, st.floats(1e-6, 10))
def test_utility_is_the_probability_less_the_successes_that_the_cost_would_buy(
    pool: Pool, usd: float
) -> None:
    p, costs = zip(*pool, strict=True)
    utility = rank(ids(pool), np.array(p), costs, Policy("willingness_to_pay_usd", usd)).utility
    for probability, cost, each in zip(p, costs, utility, strict=True):
        if cost is not None:
            assert each == pytest.approx(probability - cost / usd)
        else:
            assert each < -1e9, "a candidate without a price comes last"


@given(POOL, st.floats(1e-3, 1e3))
def test_the_earlier_knob_is_a_willingness_to_pay(pool: Pool, sensitivity: float) -> None:
    newer = Policy("willingness_to_pay_usd", 0.01 / sensitivity)
    assert chosen(pool, Policy("cost_sensitivity", sensitivity)) == chosen(pool, newer)


def test_the_guard_compares_utilities_too() -> None:
    """The costlier one is better on average by .1, which is not worth $.01 at $.05 a success."""
    evidence = Evidence(np.array([0.6, 0.7]), np.array([0.001, 0.001]))
    p, costs = np.array([0.6, 0.7]), (0.0, 0.01)
    context = DecisionContext(confidence=1.0)
    for usd, first in ((0.05, 0), (0.5, 1)):
        policy = Policy("willingness_to_pay_usd", usd)
        assert decide(["cheap", "dear"], p, costs, policy, context, evidence).order[0] == first


def test_a_policy_without_an_objective_takes_the_servers() -> None:
    unset = policy_from(pb.Policy())
    assert unset.or_willingness(0.1) == Policy("willingness_to_pay_usd", 0.1)
    assert unset.or_willingness(math.inf) == Policy()
    for objective in OBJECTIVES:
        own = policy_from(policy_to(Policy(objective, 0.5)))
        assert own.or_willingness(0.1) == own == Policy(objective, 0.5)
    quality = policy_from(policy_to(Policy("willingness_to_pay_usd", math.inf)))
    assert quality.or_willingness(0.1).willingness == math.inf
    assert not policy_to(Policy()).WhichOneof("objective")


def test_candidates_without_a_price_keep_their_order_in_the_precision_of_scores() -> None:
    p = np.array([[0.5, 0.9, 0.2]], dtype=np.float32)
    unknown = np.full((1, 3), np.nan)
    assert tradeoff.select(p, unknown, 0.01).tolist() == [1]
    assert tradeoff.select(p, np.array([[np.nan, np.nan, 0.1]]), 0.01).tolist() == [2]


@pytest.fixture(scope="module")
def scored() -> tuple[FloatArray, FloatArray]:
    """Probabilities and costs (B, M) of mixed prompts for the catalog's candidates with prices."""
    catalog = [c for c in read_catalog(BUNDLE / "zoo.json") if c.expected_cost_usd(1, 1)]
    found = score_candidates(BUNDLE, mixed_prompts(), catalog)
    costs = [[c.expected_cost_usd(int(t), 400) for c in catalog] for t in found.input_tokens]
    return found.p.astype(np.float64), np.array(costs, dtype=np.float64)


def test_a_bystander_of_the_catalog_moves_no_probability() -> None:
    """So that one that is never chosen changes no choice, however near the tie: bitwise."""
    catalog, arrays = read_catalog(BUNDLE / "zoo.json"), load_arrays(BUNDLE)
    encoder = load_encoder(BUNDLE, arrays)
    assert arrays.instruction_space is not None
    mean = arrays.instruction_space.mean
    noise = np.random.default_rng(0).standard_normal((200, len(mean)))
    prompts = (mean + noise * np.abs(mean).mean()).astype(np.float32)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(catalog))[: TEN + 1].tolist()
        pool = [catalog[i] for i in order]
        without, together = encoder.match(pool[:TEN]), encoder.match(pool)
        assert without is not None
        assert together is not None
        found = without.log_odds(prompts)
        np.testing.assert_array_equal(together.log_odds(prompts)[:, :TEN], found)
        assert np.abs(found).max() > 0.1


@pytest.mark.parametrize("seed", range(5))
def test_no_step_of_the_recommended_range_moves_over_15_points_of_the_traffic(
    scored: tuple[FloatArray, FloatArray], seed: int
) -> None:
    p, costs = scored
    ten = np.random.default_rng(seed).choice(p.shape[1], TEN, replace=False)
    range_usd = np.geomspace(*RECOMMENDED_WILLINGNESS_USD, STEPS + 1)
    points = [tradeoff.operating_point(p[:, ten], p[:, ten], costs[:, ten], w) for w in range_usd]
    steps = np.abs(np.diff([x.shares for x in points], axis=0))
    assert steps.max() <= MAX_STEP
    assert (np.diff([x.cost for x in points]) >= -1e-12).all()
    assert points[0].cost < 0.5 * points[-1].cost, "the range spans a choice"


@pytest.mark.parametrize("seed", [60, 78, 122, 156, 160, 162, 172, 276])
def test_steps_that_calibrate_spreads_move_equal_parts_of_the_traffic(
    scored: tuple[FloatArray, FloatArray], seed: int
) -> None:
    """Of 300 draws, those whose steps are the largest in equal ratios."""
    p, costs = scored
    ten = np.random.default_rng(seed).choice(p.shape[1], TEN, replace=False)
    values = evenly_moving(p[:, ten], costs[:, ten], STEPS + 1)
    points = [expected_point(p[:, ten], costs[:, ten], usd) for usd in values]
    assert (values[0], values[-1]) == RECOMMENDED_WILLINGNESS_USD
    assert 3 < len(values) <= STEPS + 1
    assert np.abs(np.diff([x.shares for x in points], axis=0)).max() < 0.1 < MAX_STEP
    assert (np.diff([x.cost for x in points]) >= -1e-12).all()


@given(POOL)
def test_nothing_moves_between_two_switch_points(pool: Pool) -> None:
    p, costs = (np.array([column], dtype=float) for column in zip(*pool, strict=True))
    switches = switch_points(p, costs)
    for low, high in itertools.pairwise([1e-9, *switches.tolist(), 1e9]):
        if low > 0 and high > 1.001 * low:
            inside = [low * 1.0001, math.sqrt(low * high), high * 0.9999]
            assert len({int(tradeoff.select(p, costs, each)[0]) for each in inside}) == 1
