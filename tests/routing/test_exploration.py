"""Exploration draws with the probability that it reports, within the stated loss, and only where
the ranking decides."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.candidate import Candidate, TaskResult
from engine.api.policy import DecisionKind, Policy, Session
from engine.inference.batcher import ScoreResult
from engine.pb import router_service_pb2, router_service_pb2_grpc
from engine.registry.table import make_table
from engine.routing.decision import Decision, PromptInfo, RankingEntry
from engine.routing.exploration import Exploration, explore
from engine.routing.router import Router, RouterConfig
from engine.routing.sessions import SessionStore
from engine.serving.components import build
from engine.serving.rpc.router_service import response_from
from engine.serving.server import AuthConfig, start_server
from engine.serving.settings import Settings
from engine.serving.telemetry import Telemetry
from tools.processes import BUNDLE

INFO = PromptInfo(7, truncated=False, ood_score=None)


def decision(utilities: list[float], kind: DecisionKind = "ranked") -> Decision:
    """A decision whose ranking has these utilities, the selected candidate first."""
    ranking = tuple(
        RankingEntry(Candidate(f"c{i}", ()), 0.5, None, utility)
        for i, utility in enumerate(utilities)
    )
    return Decision(ranking[0].candidate, "Because.", ranking, {}, 3, INFO, kind, {})


UTILITIES = st.lists(st.floats(-1, 1, allow_nan=False), min_size=1, max_size=12)


@given(UTILITIES, st.floats(0.001, 1), st.floats(0, 2))
def test_drawn_shares_are_the_reported_propensities_and_sum_to_one(
    utilities: list[float], share: float, max_loss: float
) -> None:
    """Draws evenly spaced in [0, 1) give each candidate its propensity, whatever the kind of
    objective, and with the selected one first or, as the guard may leave it, not of the highest
    utility."""
    made, count = decision(utilities), 2000
    results = [explore(made, Exploration(share, max_loss), i / count) for i in range(count)]
    shares = Counter(result.selected.id for result in results)
    propensities = {result.selected.id: result.propensity for result in results}
    for name, times in shares.items():
        assert propensities[name] is not None
        assert times / count == pytest.approx(propensities[name], abs=2 / count)
    assert sum(p for p in propensities.values() if p) == pytest.approx(1, abs=12 * 2 / count)
    for result in results:
        first = result.ranking[0]
        assert first.candidate is result.selected
        assert first.utility >= utilities[0] - max_loss
        assert sorted(e.candidate.id for e in result.ranking) == sorted(
            e.candidate.id for e in made.ranking
        )
        rest = [e for e in made.ranking if e is not first]
        assert list(result.ranking[1:]) == rest, "the others keep their order"
        assert (result.kind == "explored") == (result.selected.id != "c0")


@pytest.mark.parametrize("kind", ["session_affinity", "defaulted", "fallback"])
def test_what_the_ranking_did_not_decide_is_never_drawn(kind: DecisionKind) -> None:
    made = decision([0.5, 0.5, 0.49], kind)
    for draw in (0.0, 0.3, 0.99):
        assert explore(made, Exploration(1.0, 1.0), draw) == replace(made, propensity=1.0)


@pytest.mark.parametrize(
    ("utilities", "max_loss", "draw", "selected", "propensity"),
    [
        ([0.8, 0.76, 0.7], 0.05, 0.05, "c1", 0.1),
        ([0.8, 0.76, 0.7], 0.05, 0.1, "c0", 0.9),
        ([0.8, 0.76, 0.75], 0.1, 0.05, "c2", 0.05),
        ([0.8, 0.7], 0.05, 0.0, "c0", 1.0),
        ([-0.2, -0.21], 0.05, 0.0, "c1", 0.1),
        ([0.3], 1.0, 0.0, "c0", 1.0),
        ([0.5, 0.5], 0.0, 0.0, "c1", 0.1),
    ],
)
def test_a_tenth_of_requests_goes_to_candidates_within_the_loss(
    utilities: list[float], max_loss: float, draw: float, selected: str, propensity: float
) -> None:
    found = explore(decision(utilities), Exploration(0.1, max_loss), draw)
    assert (found.selected.id, found.propensity) == (selected, pytest.approx(propensity))


def test_the_reason_says_what_was_drawn_in_place_of_what() -> None:
    found = explore(decision([0.8, 0.76, 0.7]), Exploration(0.1, 0.05), 0.0)
    assert found.reason == (
        "c1 was drawn to learn how well it does: the only other candidate within 0.05 of the"
        " utility of c0, from which it differs by -0.040."
    )
    both = explore(decision([0.8, 0.76, 0.79]), Exploration(0.1, 0.05), 0.09)
    assert "one of 2 other candidates within 0.05 of the utility of c0" in both.reason


class OneToken:
    """Every text is the token 1."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(ids=[1] if sequence else [])


def a_router(exploration: Exploration, seed: int = 0) -> Router:
    """A router whose candidates have these probabilities for every request."""
    p = {"a": 0.6, "b": 0.58, "c": 0.3}
    table = make_table(
        1, [(Candidate(n, (TaskResult("task", 0.5),)), np.ones(4, np.float32)) for n in p], 4
    )

    async def submit(tokens: Any, table: Any, rows: Any, *_: Any, **__: Any) -> ScoreResult:
        return ScoreResult(np.array([*p.values()], np.float32)[rows], 0.0, 0.0, 0.0)

    batcher: Any = SimpleNamespace(submit=submit, check_admission=lambda size, deadline: None)
    registry: Any = SimpleNamespace(table=lambda: table)
    return Router(
        registry,
        batcher,
        OneToken(),
        sessions=SessionStore(100, 1e9),
        config=RouterConfig(exploration=exploration),
        draw=random.Random(seed).random,
    )


async def test_decisions_are_the_same_under_the_same_seed() -> None:
    async def choices(seed: int) -> list[str]:
        router = a_router(Exploration(0.5, 0.05), seed)
        return [(await router.route("x", Policy())).selected.id for _ in range(40)]

    first = await choices(1)
    assert first == await choices(1)
    assert first != await choices(2)
    assert set(first) == {"a", "b"}


async def test_a_server_that_does_not_explore_reports_no_propensity() -> None:
    found = await a_router(Exploration()).route("x", Policy())
    assert (found.selected.id, found.propensity, found.kind) == ("a", None, "ranked")
    assert not response_from(found).HasField("propensity")


async def test_every_answer_has_a_propensity_while_the_server_explores() -> None:
    router = a_router(Exploration(1.0, 0.05))
    drawn = await router.route("x", Policy())
    assert (drawn.selected.id, drawn.kind, drawn.propensity) == ("b", "explored", 1.0)
    assert response_from(drawn).propensity == 1.0
    dry = await router.route("x", Policy(), dry_run=True)
    assert (dry.selected.id, dry.kind, dry.propensity) == ("a", "ranked", 1.0)
    denied = await router.route("x", Policy(denied_candidates=("b",)))
    assert (denied.selected.id, denied.kind, denied.propensity) == ("a", "ranked", 1.0)
    abstained = await router.route("x", Policy(abstain_below_probability=0.9))
    assert (abstained.kind, abstained.propensity) == ("defaulted", 1.0)
    silent = await router.route("", Policy())
    assert (silent.kind, silent.propensity) == ("fallback", 1.0)


async def test_a_session_stays_with_the_candidate_that_was_drawn_for_its_first_request() -> None:
    router, session = a_router(Exploration(1.0, 0.05)), Session("s", margin=0.05)
    first = await router.route("x", Policy(), session=session)
    again = [await router.route("x", Policy(), session=session) for _ in range(5)]
    assert (first.selected.id, first.kind) == ("b", "explored")
    assert {(d.selected.id, d.kind, d.propensity) for d in again} == {
        ("b", "session_affinity", 1.0)
    }


async def test_a_server_with_the_settings_explores(tmp_path: Path) -> None:
    settings = Settings(
        bundle=BUNDLE,
        address="127.0.0.1:0",
        candidates_db=str(tmp_path / "c.sqlite"),
        last_table_file=Path(),
        outcomes_db=str(tmp_path / "o.sqlite"),
        exploration_share=1.0,
        exploration_max_loss=0.9,
    )
    running = await start_server(build(settings, Telemetry()), AuthConfig(None, None))
    async with grpc.aio.insecure_channel(running.listeners[0].address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        answer = await stub.Route(router_service_pb2.RouteRequest(text="What is 2 + 2?"))
        dry = await stub.Route(router_service_pb2.RouteRequest(text="Hi", dry_run=True))
    await running.stop(1)
    assert answer.kind == router_service_pb2.DECISION_KIND_EXPLORED
    assert answer.propensity == pytest.approx(1 / (len(answer.ranking) - 1))
    assert answer.ranking[0].candidate == answer.selected
    assert "within 0.9 of the utility" in answer.reason
    assert (dry.kind, dry.propensity) == (router_service_pb2.DECISION_KIND_RANKED, 1.0)
