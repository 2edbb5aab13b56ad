"""Every way to ask and every way to answer, over a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from engine.api.candidate import Candidate, TaskResult
from engine.api.errors import UnavailableError
from engine.api.policy import Policy, Session
from engine.api.proto import candidate_to
from engine.bundle.manifest import Calibration
from engine.cli.main import main as cli
from engine.inference.backend import ScoringHead
from engine.inference.batcher import Batcher, BatchLimits
from engine.inference.cache import ScoreCache
from engine.pb import candidate_service_pb2 as cpb
from engine.pb import candidate_service_pb2_grpc, router_service_pb2_grpc
from engine.pb import router_service_pb2 as rpb
from engine.registry.catalog import read_catalog
from engine.registry.stores.outcomes import OutcomeStore, read_recorded
from engine.registry.table import make_table
from engine.routing.router import Router, RouterConfig
from engine.serving.rpc.router_service import RouterService, map_unordered
from engine.serving.telemetry.metrics import Metrics
from modelsat import Client, ModelsatClientError, RouteDecision
from tests.conftest import INSTRUCTIONS
from tests.support.fake_backend import FakeBackend
from tools.processes import BUNDLE, Server, serving

CATALOG = read_catalog(BUNDLE / "zoo.json")
QUESTION = "If 3x + 7 = 22, what is x?"
# Different in their first token: nothing is answered from the cache of scores.
LONG = [f"{i} {'Sales rose in March. ' * 60}" for i in range(64)]
Stub = router_service_pb2_grpc.RouterServiceStub


@pytest.fixture
def stub(shared_server: Server) -> Iterator[Stub]:
    with grpc.insecure_channel(shared_server.address) as channel:
        yield Stub(channel)


# --- constraints, abstention, sessions ----------------------------------------------------


def test_candidates_are_chosen_by_their_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeing = replace(CATALOG[0], id="seeing", modalities=("image",), features=("tools",),
                     tags=("tier-2",), regions=("eu",))  # fmt: skip
    with serving(tmp_path / "s.sqlite") as server, Client(server.address) as client:
        client.create_candidate(seeing)
        assert client.get_candidate("seeing") == seeing
        flags = ["--modality", "image", "--feature", "tools", "--tag", "tier-2", "--region", "eu"]
        flags += [
            "--region",
            "us",
            "--min-context-window",
            "8192",
            "--max-input-usd-per-million",
            "0.5",
        ]
        asked = ["route", QUESTION, "--server", server.address, "--json", *flags]
        assert cli(asked) == 0
        shown = json.loads(capsys.readouterr().out)
        assert [r["candidate"] for r in shown["ranking"]] == ["seeing"]
        assert "missing modalities: image" in set(shown["excluded"].values())
        assert shown["kind"] == "ranked"
        assert len(shown["decision_id"]) == 32
        with pytest.raises(ModelsatClientError, match="missing features: reasoning") as refused:
            client.route(
                QUESTION, Policy(required_features=("reasoning",), required_tags=("tier-2",))
            )
        assert refused.value.code == "FAILED_PRECONDITION"
        with pytest.raises(ModelsatClientError, match=r"policy.required_tags: has 'Tier 2'"):
            client.route(QUESTION, Policy(required_tags=("Tier 2",)))
        with grpc.insecure_channel(server.address) as channel:
            update = cpb.UpdateCandidateRequest(candidate=candidate_to(seeing))
            update.candidate.features[:] = ["tools", "json_mode"]
            update.candidate.etag = ""
            update.update_mask.paths[:] = ["features", "regions"]
            candidate_service_pb2_grpc.CandidateServiceStub(channel).UpdateCandidate(update)
        changed = replace(seeing, features=("json_mode", "tools"))
        assert client.get_candidate("seeing") == changed


def test_abstention_selects_the_default(client: Client) -> None:
    usual = client.route(QUESTION)
    other = usual.ranking[3].candidate
    policy = Policy(abstain_below_probability=1.0, default_candidate=other)
    answer = client.route(QUESTION, policy)
    assert (answer.kind, answer.selected) == ("defaulted", other)
    rest = [r.candidate for r in usual.ranking if r.candidate != other]
    assert [r.candidate for r in answer.ranking] == [other, *rest]
    assert "no candidate reaches probability 1" in answer.reason
    unusual = client.route("แปลประโยคนี้เป็นภาษาอังกฤษ", Policy(max_ood_score=0.5))
    assert unusual.kind == "defaulted"
    assert unusual.selected == unusual.ranking[0].candidate
    assert "there is no default" in unusual.reason
    assert usual.kind == "ranked"


def test_a_session_stays_until_a_margin_or_a_constraint_ends_it(client: Client) -> None:
    best = client.route(QUESTION).ranking
    first, second = (r.candidate for r in best[:2])
    session, without_first = Session("turns", 1.0), Policy(denied_candidates=(first,))
    assert client.route(QUESTION, without_first, session=session).selected == best[1].candidate
    stays = client.route(QUESTION, session=session)
    assert (stays.kind, stays.selected) == ("session_affinity", best[1].candidate)
    assert stays.ranking[1].candidate == best[0].candidate
    leaves = client.route(QUESTION, session=Session("turns", 0.0), dry_run=True)
    assert (leaves.kind, leaves.selected) == ("ranked", best[0].candidate)
    still = client.route(QUESTION, session=session)
    assert still.kind == "session_affinity", "a dry run remembers nothing"
    client.route(
        QUESTION, Policy(abstain_below_probability=1.0, default_candidate=first), session=session
    )
    assert client.route(QUESTION, session=session).selected == best[1].candidate
    excluded = client.route(QUESTION, Policy(denied_candidates=(second,)), session=session)
    assert (excluded.kind, excluded.selected) == ("ranked", best[0].candidate)
    other = client.route(QUESTION, session=Session("others"))
    assert (other.kind, other.selected) == ("ranked", best[0].candidate)
    for hint in (Session(""), Session("x" * 129)):  # a name of any form fails no request
        assert client.route(QUESTION, session=hint).kind == "ranked"
    for bad in (Session("x", -1.0), Session("x", float("nan"))):
        with pytest.raises(ModelsatClientError, match=r"session\.\w+: is"):
            client.route(QUESTION, session=bad)


# --- several at a time -------------------------------------------------------------------------


def test_a_batch_answers_in_order_and_one_error_fails_no_other(client: Client, stub: Stub) -> None:
    texts = INSTRUCTIONS[:12]
    alone = [[r.candidate for r in client.route(t).ranking] for t in texts]
    results = client.route_many(texts)
    decisions = [result for result in results if isinstance(result, RouteDecision)]
    assert [[r.candidate for r in decision.ranking] for decision in decisions] == alone
    assert len({decision.decision_id for decision in decisions}) == len(texts)
    requests = [rpb.RouteRequest(text=text) for text in ("Hi", " ", "Ho")]
    requests[2].policy.budget_usd = 0
    mixed = stub.BatchRoute(rpb.BatchRouteRequest(requests=requests)).results
    assert mixed[0].response.selected
    assert (mixed[1].error.code, mixed[1].error.reason) == (3, "INVALID_INPUT")
    assert "is empty or white space" in mixed[1].error.message
    assert (mixed[2].error.code, mixed[2].error.reason) == (9, "NO_ELIGIBLE_CANDIDATE")
    for count in (0, 257):
        with pytest.raises(grpc.RpcError, match="expected 1 to 256"):
            stub.BatchRoute(rpb.BatchRouteRequest(requests=[requests[0]] * count))
    assert len(client.route_many(["Hi"] * 300)) == 300


def test_a_stream_answers_each_request_by_its_id(stub: Stub) -> None:
    asked = {f"r{i}": text for i, text in enumerate(INSTRUCTIONS[:10] * 20)}
    asked["bad"] = ""
    asked["x" * 65] = "Hi"
    requests = (
        rpb.StreamRouteRequest(id=name, request=rpb.RouteRequest(text=text))
        for name, text in asked.items()
    )
    answers = {a.id: a.result for a in stub.StreamRoute(requests)}
    assert set(answers) == {name[:64] for name in asked}
    assert answers["bad"].error.reason == "INVALID_INPUT"
    assert "id: is 65 characters" in answers["x" * 64].error.message
    for i, text in enumerate(INSTRUCTIONS[:10]):
        alone = stub.Route(rpb.RouteRequest(text=text)).selected
        assert {answers[f"r{j}"].response.selected for j in range(i, 200, 10)} == {alone}


async def test_a_stream_reads_no_more_than_is_taken_and_cancels_what_runs() -> None:
    read: list[int] = []
    cancelled: list[int] = []

    async def requests() -> AsyncIterator[int]:
        for i in range(1000):
            read.append(i)
            yield i

    async def answer(i: int) -> int:
        try:
            await (asyncio.Event().wait() if i % 2 else asyncio.sleep(0))
        except asyncio.CancelledError:
            cancelled.append(i)
            raise
        return i

    async with aclosing(map_unordered(requests(), answer, 8)) as answers:
        taken = [await anext(answers) for _ in range(4)]
        for _ in range(50):
            await asyncio.sleep(0)
    assert all(i % 2 == 0 for i in taken)
    # Three of the four were given back when the next was asked for; the last still holds its slot.
    assert len(read) == 8 + 3
    assert sorted(cancelled) == [i for i in read if i % 2]


async def test_a_stream_passes_on_what_the_transport_raises() -> None:
    async def requests() -> AsyncIterator[int]:
        yield 1
        raise ConnectionResetError

    async def answer(i: int) -> int:
        return i

    with pytest.raises(ConnectionResetError):
        _ = [each async for each in map_unordered(requests(), answer, 4)]


# --- no time to score --------------------------------------------------------------------------


@pytest.mark.parametrize("fallback", ["deadline", "overload"])
def test_a_full_queue_is_an_error_or_answered_statically(tmp_path: Path, fallback: str) -> None:
    settings = ("--max-queue-size", "1", "--fallback", fallback)
    with (
        serving(tmp_path / "s.sqlite", *settings) as server,
        Client(server.address, timeout_s=60) as client,
    ):
        results = client.route_many(LONG, Policy(denied_candidates=(CATALOG[0].id,)))
        answers = [r for r in results if isinstance(r, RouteDecision)]
        reasons = Counter(r.reason for r in results if isinstance(r, ModelsatClientError))
    kinds = Counter(answer.kind for answer in answers)
    assert kinds["ranked"] > 0
    if fallback == "deadline":
        assert set(reasons) == {"QUEUE_FULL"}
        assert kinds["fallback"] == 0
        return
    assert not reasons
    static = [a for a in answers if a.kind == "fallback"]
    assert static
    means = {c.id: c.mean_accuracy() for c in CATALOG[1:]}
    for answer in static:
        assert answer.selected == max(means, key=means.__getitem__), "and not the cheapest"
        assert answer.reason.startswith("the queue is full")
        found = {r.candidate: r.probability for r in answer.ranking}
        assert found == pytest.approx(means, abs=1e-6)


def judged(name: str, accuracy: float) -> Candidate:
    return Candidate(name, (TaskResult("anything", accuracy),), input_usd_per_million=accuracy,
                     output_usd_per_million=accuracy)  # fmt: skip


class OneToken:
    """Every text is the token 1."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(ids=[1] if sequence else [])


def a_router(
    backend: FakeBackend, config: RouterConfig, cache: ScoreCache | None = None, **embedded: float
) -> tuple[Router, Batcher]:
    """embedded: what stands in the embedding of a candidate in place of ones."""
    entries = [
        (judged(name, a), np.full(4, embedded.get(name, 1.0), np.float32))
        for name, a in (("cheap", 0.2), ("good", 0.7), ("middling", 0.4))
    ]
    table = make_table(1, entries, 4)
    head = ScoringHead(np.ones(4, np.float32), 1e-5, Calibration(1.0, 0.0))
    batcher = Batcher(backend, head, BatchLimits())

    async def require(token: str, deadline: float) -> None:
        assert not token, "no request here demands a revision"

    registry: Any = SimpleNamespace(table=lambda: table, require=require)
    return Router(registry, batcher, OneToken(), cache=cache, config=config), batcher


async def test_a_deadline_that_cannot_be_met_is_answered_statically(tmp_path: Path) -> None:
    """A forward pass that does not end, behind a real socket: the answer comes all the same."""
    backend = FakeBackend()
    router, batcher = a_router(backend, RouterConfig("deadline"))
    outcomes = OutcomeStore(tmp_path / "o.sqlite", 10)
    server = grpc.aio.server()
    service = RouterService(router, rpb.GetServerInfoResponse, 1000, outcomes)
    router_service_pb2_grpc.add_RouterServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    batcher.start()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = Stub(channel)
        scored = await stub.Route(rpb.RouteRequest(text="x"), timeout=30)
        backend.gate.clear()
        answer = await stub.Route(rpb.RouteRequest(text="x"), timeout=3)
        floor = rpb.RouteRequest(text="x", policy=rpb.Policy(target_probability=0.3))
        cheapest = await stub.Route(floor, timeout=3)
        backend.gate.set()
    await server.stop(None)
    await batcher.stop()
    await outcomes.close()
    assert scored.kind == rpb.DECISION_KIND_RANKED
    assert (answer.kind, answer.selected) == (rpb.DECISION_KIND_FALLBACK, "candidates/good")
    assert answer.reason.startswith("the deadline is near")
    assert (cheapest.kind, cheapest.selected) == (
        rpb.DECISION_KIND_FALLBACK,
        "candidates/middling",
    )


async def test_without_a_deadline_the_scores_are_waited_for() -> None:
    backend = FakeBackend()
    router, batcher = a_router(backend, RouterConfig("overload", default_candidate="good"))
    batcher.start()
    decision = await router.route("x", Policy(abstain_below_probability=1.0))
    assert (decision.kind, decision.selected.id) == ("defaulted", "good")
    late = await router.route("y", Policy(), deadline=time.monotonic() - 1)
    assert late.kind == "fallback"
    await batcher.stop()


async def test_a_score_that_is_not_finite_excludes_its_candidate_alone() -> None:
    """As where float16 overflows; the others are ranked and measured without it."""
    cache, metrics = ScoreCache(1 << 20), Metrics()
    router, batcher = a_router(FakeBackend(), RouterConfig(), cache, good=np.nan)
    batcher.start()
    decision = await router.route("x", Policy(abstain_below_probability=0.1))
    assert (decision.kind, decision.selected.id) == ("ranked", "cheap")
    assert [r.candidate.id for r in decision.ranking] == ["cheap", "middling"]
    cheap, middling = (r.expected_cost_usd for r in decision.ranking)
    assert cheap is not None
    assert middling == pytest.approx(2 * cheap), "costs stay with their candidates"
    assert decision.excluded == {"good": "score is not finite"}
    assert cache.size == 0
    metrics.decided(decision)
    mean = metrics.registry.get_sample_value("modelsat_probability_sum", {"population": "eligible"})
    assert mean == decision.ranking[0].probability
    with pytest.raises(UnavailableError, match="finite"):
        await router.route("x", Policy(allowed_candidates=("good",)))
    await batcher.stop()


# --- outcomes ----------------------------------------------------------------------------------


def test_acknowledged_outcomes_survive_a_kill(tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    with serving(store) as server, Client(server.address) as client:
        answer = client.route(QUESTION)
        name, other = answer.selected, answer.ranking[1].candidate
        record = client.record_outcome
        assert record(answer.decision_id, name, 1.0, text=QUESTION, category="maths")
        assert record(answer.decision_id, other, 0.25)
        server.kill()
    with serving(store) as server, Client(server.address) as client:
        assert not client.record_outcome(answer.decision_id, name, 1.0)
        with pytest.raises(ModelsatClientError, match=r"has score 1.0, the request") as refused:
            client.record_outcome(answer.decision_id, name, 0.5)
        assert refused.value.code == "ALREADY_EXISTS"
    kept = list(read_recorded(tmp_path / "outcomes.sqlite"))
    assert [(k.candidate, k.score, k.text, k.category) for k in kept] == [
        (name.removeprefix("candidates/"), 1.0, QUESTION, "maths"),
        (other.removeprefix("candidates/"), 0.25, "", ""),
    ]


def test_an_invalid_outcome_lists_every_violation(stub: Stub) -> None:
    request = rpb.RecordOutcomeRequest(
        decision_id="guess", candidate="no-one", score=1.5, category="c" * 201
    )
    with pytest.raises(grpc.RpcError) as refused:
        stub.RecordOutcome(request)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    for field in ("decision_id: is 'guess'", "candidate: is 'no-one'", "score: is 1.5",
                  "category: is 201"):  # fmt: skip
        assert field in refused.value.details()
    request = rpb.RecordOutcomeRequest(
        decision_id="0" * 32, candidate="candidates/x", score=float("nan"), text="x" * 600_000
    )
    with pytest.raises(grpc.RpcError, match=r"text: is 600000 bytes.* score: is nan"):
        stub.RecordOutcome(request)
