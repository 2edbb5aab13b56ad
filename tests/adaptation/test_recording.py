"""Outcomes over a real socket: by decision, by text, by comparison, in a stream, and imported."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from engine.cli.main import main as cli
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from engine.registry.embedding_bytes import unpack_embedding
from engine.registry.stores.outcomes import RecordedOutcome, read_recorded
from modelsat import Client, ModelsatClientError, Outcome, RouteDecision, Usage
from tools.processes import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("recording") / "candidates.sqlite") as started:
        yield started


@pytest.fixture(scope="module")
def file(server: Server) -> Path:
    return server.log.parent / "outcomes.sqlite"


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address, timeout_s=30) as opened:
        yield opened


def instruction(file: Path, key: str = "") -> dict[str, object]:
    """The row of a decision, of the newest instruction for ""."""
    db = sqlite3.connect(file)
    db.row_factory = sqlite3.Row
    where = "WHERE key = ?" if key else "ORDER BY number DESC LIMIT 1"
    row = db.execute(f"SELECT * FROM memory_instruction {where}", [key] * bool(key)).fetchone()
    db.close()
    return dict(row)


def outcomes(file: Path, key: str) -> dict[str, RecordedOutcome]:
    return {r.candidate: r for r in read_recorded(file) if r.decision_id == key}


def test_an_outcome_by_decision_needs_no_text(client: Client, file: Path) -> None:
    decision = client.route("How many litres does a bath hold?")
    used = Usage(120, 340, 200, 0.0012, 2.5, "")
    assert client.record_outcome(decision.decision_id, decision.selected, 0.5, usage=used)
    row = instruction(file, decision.decision_id)
    assert (row["text"], bool(row["selected"]), row["explored"]) == ("", True, 0)
    embedding = unpack_embedding(row["embedding"])  # type: ignore[arg-type]
    assert embedding.shape == (576,)
    assert embedding.any()
    logits = np.frombuffer(row["logits"], dtype="<f2").astype(float)  # type: ignore[call-overload]
    ranked = sorted(decision.ranking, key=lambda r: r.candidate)
    base = [r.probability if r.base_probability is None else r.base_probability for r in ranked]
    explained = client.explain_decision(decision.decision_id).candidates
    match = [each.match for each in sorted(explained, key=lambda each: each.candidate)]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits - match)), base, atol=2e-3)
    (recorded,) = outcomes(file, decision.decision_id).values()
    assert recorded.usage == used


def test_a_text_that_was_not_routed_is_scored(client: Client, file: Path) -> None:
    a, b = (r.candidate for r in client.route("x").ranking[:2])
    assert client.record_outcome("", a, 1.0, text="Name a river in Peru.", category="places")
    row = instruction(file)
    assert (row["text"], row["selected"]) == ("Name a river in Peru.", 0)
    assert row["embedding"] is not None
    assert not client.record_outcome("", a, 1.0, text="Name a river in Peru.")
    with pytest.raises(ModelsatClientError, match="the first one is kept"):
        client.record_outcome("", a, 0.0, text="Name a river in Peru.")
    assert client.record_outcome("", b, 0.0, text="Name a river in Chile.", store_text=False)
    row = instruction(file)
    assert row["text"] == ""
    assert row["embedding"] is not None


def test_a_comparison_is_recorded_once(client: Client, file: Path) -> None:
    decision = client.route("What is the boiling point of neon?")
    names = [r.candidate for r in decision.ranking[:4]]
    scores = {name: i / 4 for i, name in enumerate(names)}
    key = decision.decision_id
    usage = {names[0]: Usage(output_tokens=17)}
    assert client.record_comparison(scores, decision_id=key, grader="numeric", usage=usage) == 4
    assert client.record_comparison(scores, decision_id=key) == 0
    found = outcomes(file, key)
    assert {name: each.score for name, each in found.items()} == scores
    assert all(each.compared and each.grader == "numeric" for each in found.values())
    assert found[names[0]].usage == usage[names[0]]
    text = "Which planet is the largest?"
    assert client.record_comparison(scores, text=text, disagreement=0.25) == 4
    row = instruction(file)
    assert row["text"] == ""
    assert row["embedding"] is not None
    assert (
        client.record_comparison({**scores, client.route("x").ranking[5].candidate: 1}, text=text)
        == 1
    )
    (first, *_) = outcomes(file, str(row["key"])).values()
    assert first.disagreement == 0.25


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": "x", "decision_id": "0" * 32}, "text"),
        ({"text": ""}, "text"),
        ({"decision_id": "nonsense", "text": ""}, "decision_id"),
        ({"scores": {"a": 1.0}}, "candidates"),
        ({"scores": {"a": 1.5, "b": 0.0}}, "candidates[0].score"),
        ({"scores": {"a": float("nan"), "b": 0.0}}, "candidates[0].score"),
        ({"scores": {"a": 1.0, "candidates/a": 0.0}}, "candidates"),
        ({"grader": "x" * 201}, "grader"),
        ({"disagreement": 2.0}, "disagreement"),
        ({"usage": {"a": Usage(output_tokens=-1)}}, "candidates[0].usage.output_tokens"),
        ({"usage": {"b": Usage(cost_usd=float("nan"))}}, "candidates[1].usage.cost_usd"),
        ({"usage": {"b": Usage(latency_s=-1.0)}}, "candidates[1].usage.latency"),
        ({"usage": {"b": Usage(error="x" * 201)}}, "candidates[1].usage.error"),
    ],
)
def test_an_invalid_comparison_names_the_field(
    client: Client, change: dict[str, object], field: str
) -> None:
    sent = {"scores": {"a": 1.0, "b": 0.0}, "text": "x", **change}
    with pytest.raises(ModelsatClientError, match=f"{field.replace('[', '.')[:10]}") as caught:
        client.record_comparison(**sent)  # type: ignore[arg-type]
    assert caught.value.code == "INVALID_ARGUMENT"
    assert f"{field}:" in str(caught.value)


def test_a_candidate_that_is_not_registered_records_nothing(client: Client, file: Path) -> None:
    decision = client.route("Is this recorded?")
    scores = {decision.selected: 1.0, "no-such-model": 0.0}
    with pytest.raises(ModelsatClientError, match="no-such-model"):
        client.record_comparison(scores, decision_id=decision.decision_id)
    assert not outcomes(file, decision.decision_id)


async def test_a_stream_takes_outcomes_between_requests(server: Server, file: Path) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = router_service_pb2_grpc.RouterServiceStub(channel).StreamRoute()
        await call.write(pb.StreamRouteRequest(id="1", request=pb.RouteRequest(text="Hi there")))
        first = await call.read()
        response = first.result.response
        sent = pb.RecordOutcomeRequest(
            decision_id=response.decision_id, candidate=response.selected, score=1
        )
        await call.write(pb.StreamRouteRequest(id="2", outcome=sent))
        answer = await call.read()
        assert (answer.id, answer.recorded.recorded) == ("2", True)
        sent.score = 0
        await call.write(pb.StreamRouteRequest(id="3", outcome=sent))
        refused = await call.read()
        assert (refused.id, refused.result.error.code) == (
            "3",
            grpc.StatusCode.ALREADY_EXISTS.value[0],
        )
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert len(outcomes(file, response.decision_id)) == 1


def test_the_client_streams_outcomes_between_instructions(client: Client, file: Path) -> None:
    known = client.route("Hi")
    good = Outcome(known.decision_id, known.selected, 1.0, usage=Usage(output_tokens=3))
    bad = Outcome("0" * 32, known.selected, 1.0)
    results = dict(client.route_stream([good, "Who wrote Faust?", bad]))
    assert sorted(results) == [1, 2]
    assert isinstance(results[1], RouteDecision)
    assert isinstance(results[2], ModelsatClientError)
    assert results[2].code == "NOT_FOUND"
    (recorded,) = outcomes(file, known.decision_id).values()
    assert recorded.usage == Usage(output_tokens=3)


def test_a_dry_run_is_not_remembered(client: Client, file: Path) -> None:
    decision = client.route("Leave no trace.", dry_run=True)
    assert client.record_outcome(decision.decision_id, decision.selected, 1.0)
    assert instruction(file, decision.decision_id)["embedding"] is None


def test_an_import_can_be_repeated(
    client: Client, server: Server, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [c.id for c in client.list_candidates()][:3]
    lines = [
        {
            "text": f"Import number {i}",
            "scores": {names[0].upper(): i % 2, "other": 1, "third": 0.5},
        }
        for i in range(12)
    ]
    source = tmp_path / "measured.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    command = ["outcomes", "import", "--server", server.address, str(source)]
    command += ["--candidate-alias", f"third={names[2]}"]
    assert cli([*command, "--limit", "5"]) == 0
    assert "10 outcomes of 5 instructions recorded, 0 were there" in capsys.readouterr().out
    assert cli(command) == 0
    said = capsys.readouterr().out
    assert "14 outcomes of 12 instructions recorded, 10 were there" in said
    assert "skipped 12 outcomes of other" in said
    assert cli([*command, "--store-text"]) == 0
    assert "--store-text adds no text to outcomes that were there" in capsys.readouterr().out
    recorded = [r for r in read_recorded(file) if r.grader == "import measured.jsonl"]
    assert len(recorded) == 24
    assert {r.candidate for r in recorded} == {names[0], names[2]}
    assert not any(r.text for r in recorded)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": 1, "scores": {"a": 1}}', "line 1"),
        ('{"text": "x", "scores": {"a": 1}}\n{"text": "y"}', "line 2"),
        ('{"text": "x", "scores": {"a": 2}}', r"scores in \[0, 1\]"),
        ("nonsense", "line 1"),
    ],
)
def test_an_import_of_a_broken_file_is_refused(
    content: str, words: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "measured.jsonl"
    source.write_text(content)
    assert cli(["outcomes", "import", "--server", server.address, str(source)]) == 1
    assert words.replace("\\", "") in capsys.readouterr().err
