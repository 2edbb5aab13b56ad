"""End to end over a real socket: a serving process, the client, the command line, raw bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from engine.api.candidate import Candidate, TaskResult, validate
from engine.api.errors import InvalidInputError, Violation
from engine.api.policy import Policy
from engine.api.proto import candidate_to
from engine.cli.main import main as cli
from engine.pb import candidate_pb2, candidate_service_pb2_grpc, router_service_pb2_grpc
from engine.pb import candidate_service_pb2 as cpb
from engine.pb import router_service_pb2 as rpb
from engine.registry.catalog import parse_catalog, read_catalog
from engine.serving.rpc.status import to_status
from modelsat import Client, ModelsatClientError
from tests.conftest import INSTRUCTIONS
from tools.processes import BUNDLE, ROOT, Server, await_ready, launch, serving

CATALOG = read_catalog(BUNDLE / "zoo.json")
NEW = replace(CATALOG[0], id="newcomer", display_name="A newcomer")
QUESTION = "If 3x + 7 = 22, what is x?"


def status_of(error: grpc.RpcError) -> tuple[str, str, dict[str, Any]]:
    """(code, message, details by type) of a failed call."""
    status = rpc_status.from_call(error)
    details: dict[str, Any] = {}
    for packed in status.details if status else ():
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.ResourceInfo,
            error_details_pb2.PreconditionFailure,
            error_details_pb2.RetryInfo,
        ):
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                details[kind.__name__] = message
    return error.code().name, error.details(), details


# --- routing ---------------------------------------------------------------------------------


def test_route_ranks_every_candidate_of_the_zoo(client: Client) -> None:
    answer = client.route(QUESTION)
    assert {r.candidate for r in answer.ranking} == {c.id for c in CATALOG}
    assert answer.selected == answer.ranking[0].candidate
    p = [r.probability for r in answer.ranking]
    assert p == sorted(p, reverse=True)
    assert all(0 < x < 1 for x in p)
    assert answer.selected in answer.reason
    has_cost = {r.candidate: r.expected_cost_usd is not None for r in answer.ranking}
    assert has_cost == {c.id: c.input_usd_per_million is not None for c in CATALOG}


def test_different_instructions_give_different_rankings(client: Client) -> None:
    rankings = {
        tuple(r.candidate for r in client.route(text).ranking) for text in INSTRUCTIONS[:12]
    }
    assert len(rankings) > 1


def test_policies_reach_the_choice(client: Client) -> None:
    alike = tuple(c.id for c in CATALOG[:15])
    worthless = Policy("willingness_to_pay_usd", 1e-7, allowed_candidates=alike)
    cheap = client.route(QUESTION, worthless)
    known = {r.candidate: r.expected_cost_usd for r in cheap.ranking if r.expected_cost_usd}
    assert cheap.selected == min(known, key=known.__getitem__)
    two = ("yi-6b-chat", "command-r-v01")
    pair = client.route(QUESTION, Policy(allowed_candidates=two, ranking_size=1))
    assert len(pair.ranking) == 1
    assert len(pair.excluded) == len(CATALOG) - 2
    alone = client.route(QUESTION, Policy(allowed_candidates=(two[0],)))
    among = {r.candidate: r.probability for r in client.route(QUESTION).ranking}
    assert alone.ranking[0].probability == pytest.approx(among[two[0]], abs=1e-4)


def test_the_last_user_turn_of_a_conversation_is_read(shared_server: Server) -> None:
    def turn(role: int, text: str) -> rpb.Message:
        return rpb.Message(role=role, text_parts=[text])  # type: ignore[arg-type]

    turns = [
        turn(rpb.ROLE_SYSTEM, "Be brief."),
        turn(rpb.ROLE_USER, "Who are you?"),
        turn(rpb.ROLE_ASSISTANT, "A language model."),
        turn(rpb.ROLE_USER, QUESTION),
    ]
    with grpc.insecure_channel(shared_server.address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        spoken = stub.Route(rpb.RouteRequest(conversation=rpb.Conversation(messages=turns)))
        plain = stub.Route(rpb.RouteRequest(text=QUESTION))
    assert [r.candidate for r in spoken.ranking] == [r.candidate for r in plain.ranking]
    assert spoken.input_tokens > plain.input_tokens


def test_a_long_instruction_is_read_in_head_and_tail(client: Client) -> None:
    answer = client.route("Summarise this report. " + "Sales rose in March. " * 20_000)
    assert answer.truncated
    assert answer.input_tokens > 50_000
    assert "context window is 4096 tokens" in answer.excluded["phi-3-mini-4k-instruct"]


def test_an_answer_says_how_unlike_the_training_instructions_its_own_is(client: Client) -> None:
    usual = client.route(QUESTION)
    unusual = client.route("แปลประโยคนี้เป็นภาษาอังกฤษ: ฝนตกหนักตั้งแต่เช้า")
    assert usual.ood_score is not None
    assert unusual.ood_score is not None
    assert usual.ood_score < unusual.ood_score
    assert unusual.ood_score > 0.98


# --- bad input -------------------------------------------------------------------------------

BAD_ROUTES: dict[str, tuple[rpb.RouteRequest, str, str]] = {
    "empty": (rpb.RouteRequest(text=""), "INVALID_ARGUMENT", "is empty"),
    "white space": (rpb.RouteRequest(text=" \n\t "), "INVALID_ARGUMENT", "is empty or white"),
    "nothing": (rpb.RouteRequest(), "INVALID_ARGUMENT", "instruction: is not set"),
    "1 MB": (rpb.RouteRequest(text="x" * 1_000_000), "INVALID_ARGUMENT", "the limit is 524288"),
    "no user": (
        rpb.RouteRequest(conversation=rpb.Conversation()),
        "INVALID_ARGUMENT",
        "has no messages",
    ),
    "no role": (
        rpb.RouteRequest(conversation=rpb.Conversation(messages=[rpb.Message(text_parts=["x"])])),
        "INVALID_ARGUMENT",
        "messages[0].role: is 0",
    ),
    "unknown id": (
        rpb.RouteRequest(text="x", policy=rpb.Policy(allowed_candidates=["candidates/no-one"])),
        "INVALID_ARGUMENT",
        "candidates/no-one, which is not registered",
    ),
    "no name": (
        rpb.RouteRequest(text="x", policy=rpb.Policy(denied_candidates=["no-one"])),
        "INVALID_ARGUMENT",
        "expected candidates/{id}",
    ),
    "NaN": (
        rpb.RouteRequest(text="x", policy=rpb.Policy(cost_sensitivity=float("nan"))),
        "INVALID_ARGUMENT",
        "policy.cost_sensitivity: is nan",
    ),
    "negative": (
        rpb.RouteRequest(text="x", policy=rpb.Policy(budget_usd=-1)),
        "INVALID_ARGUMENT",
        "policy.budget_usd: is -1.0",
    ),
    "no candidate left": (
        rpb.RouteRequest(text="x", policy=rpb.Policy(budget_usd=0)),
        "FAILED_PRECONDITION",
        "No candidate is eligible",
    ),
}


@pytest.mark.parametrize("case", BAD_ROUTES)
def test_an_invalid_route_request_lists_every_violation(shared_server: Server, case: str) -> None:
    request, code, words = BAD_ROUTES[case]
    with grpc.insecure_channel(shared_server.address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Route(request)
        found, message, details = status_of(refused.value)
        assert (found, words in message) == (code, True), message
        assert details["ErrorInfo"].domain == "modelsat"
        assert "BadRequest" in details or "PreconditionFailure" in details
        assert stub.Route(rpb.RouteRequest(text="still there?")).selected


@pytest.mark.parametrize("raw", [b"\x0a\x02\xff\xfe", b"\xff\xff\xff", b"\x0a\x7fshort"])
def test_bytes_that_are_no_request_are_refused(shared_server: Server, raw: bytes) -> None:
    """0a 02 ff fe is a text field of invalid UTF-8."""
    with grpc.insecure_channel(shared_server.address) as channel:
        call = channel.unary_unary("/modelsat.v1.RouterService/Route")
        with pytest.raises(grpc.RpcError) as refused:
            call(raw)
    code, message, details = status_of(refused.value)
    assert code == "INVALID_ARGUMENT"
    assert "UTF-8" in message
    assert {"ErrorInfo", "BadRequest"} <= set(details)


def with_figures(change: Callable[[list[TaskResult]], Any]) -> Candidate:
    results = list(NEW.aptitude)
    change(results)
    return replace(NEW, aptitude=tuple(results))


BAD_CANDIDATES: dict[str, tuple[Candidate, str]] = {
    "no figures": (with_figures(lambda r: r.clear()), "has 0 accuracies, expected 1 to 50"),
    "51 figures": (
        with_figures(lambda r: r.append(TaskResult("x", 0.5))),
        "has 51 accuracies, expected 1 to 50",
    ),
    "above 1": (
        with_figures(lambda r: r.__setitem__(3, TaskResult("x", 1.01))),
        "candidate.aptitude[3].accuracy: is 1.01",
    ),
    "NaN": (
        with_figures(lambda r: r.__setitem__(0, TaskResult("x", float("nan")))),
        "candidate.aptitude[0].accuracy: is nan",
    ),
    "negative price": (
        replace(NEW, input_usd_per_million=-0.1),
        "candidate.input_usd_per_million: is -0.1",
    ),
    "NaN price": (
        replace(NEW, output_usd_per_million=float("nan")),
        "candidate.output_usd_per_million: is nan",
    ),
    "no window": (replace(NEW, context_window=0), "candidate.context_window: is 0"),
    "bad id": (replace(NEW, id="Bad Id"), "expected candidates/{id}"),
}


@pytest.mark.parametrize("case", BAD_CANDIDATES)
def test_a_bad_candidate_is_refused_and_changes_nothing(client: Client, case: str) -> None:
    candidate, words = BAD_CANDIDATES[case]
    before = client.server_info().revision
    with pytest.raises(ModelsatClientError) as refused:
        client.create_candidate(candidate)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert words in str(refused.value)
    with pytest.raises(ModelsatClientError):
        client.replace_candidates([*CATALOG, candidate])
    assert client.server_info().revision == before
    assert [c.id for c in client.list_candidates()] == sorted(c.id for c in CATALOG)


@pytest.mark.parametrize(
    "tested",
    [
        {"college_mathematics": 0.55},
        {"philosophy": 0.4, "Law, Legal Cases, Torts, Contracts, Criminal Procedure": 0.6},
        {"invoices and receipts": 0.7, "sagas in Old Norse": 0.2, "virology": 0.5},
    ],
)
def test_a_partial_test_is_completed_as_that_of_a_file(
    client: Client, tested: dict[str, float]
) -> None:
    """Kind: the API wanted all 50 tasks, where the documentation welcomes a part of them."""
    (expected,) = parse_catalog({"id": "part", "aptitude": {t: [a, 40] for t, a in tested.items()}})
    given = replace(expected, aptitude=tuple(TaskResult(t, a, 40) for t, a in tested.items()))
    sent = replace(given, tags=())
    assert client.create_candidate(sent, validate_only=True) == expected
    assert client.create_candidate(sent) == expected
    client.update_candidate(replace(NEW, id="part"), ["aptitude", "tags"])
    assert client.update_candidate(sent, ["aptitude"]) == expected
    client.replace_candidates([*CATALOG, sent])
    assert client.get_candidate("part") == expected
    client.delete_candidate("part")


def test_duplicate_names_in_a_replacement_are_refused(client: Client) -> None:
    with pytest.raises(ModelsatClientError, match=r"names are unique") as refused:
        client.replace_candidates([*CATALOG, CATALOG[0]])
    assert refused.value.code == "INVALID_ARGUMENT"
    with pytest.raises(ModelsatClientError, match="already registered") as taken:
        client.create_candidate(CATALOG[0])
    assert taken.value.code == "ALREADY_EXISTS"
    with pytest.raises(ModelsatClientError, match="not registered") as missing:
        client.delete_candidate("no-one")
    assert missing.value.code == "NOT_FOUND"


def test_an_error_with_much_to_say_keeps_its_code(shared_server: Server) -> None:
    """Trailers above 8 KB are dropped at random; CJK text takes nine bytes of one for three."""
    wrong = replace(NEW, aptitude=(TaskResult("\u4e2d" * 300, 2.0),) * 50)
    with grpc.insecure_channel(shared_server.address) as channel:
        stub = candidate_service_pb2_grpc.CandidateServiceStub(channel)
        for _ in range(10):
            with pytest.raises(grpc.RpcError) as refused:
                stub.CreateCandidate(cpb.CreateCandidateRequest(candidate=candidate_to(wrong)))
            code, message, details = status_of(refused.value)
            assert code == "INVALID_ARGUMENT"
            assert "is 2.0, expected a share" in message
            assert len(details["BadRequest"].field_violations) > 3


def test_a_huge_list_is_refused_before_it_is_read(shared_server: Server) -> None:
    names = ["candidates/no-one"] * 500_000
    with grpc.insecure_channel(shared_server.address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="allowed_candidates: has more than 50000 entries"):
            stub.Route(rpb.RouteRequest(text="x", policy=rpb.Policy(allowed_candidates=names)))


def test_a_multitude_of_figures_is_one_problem(shared_server: Server) -> None:
    wrong = replace(NEW, aptitude=(TaskResult("", 2.0),) * 100_000)
    with grpc.insecure_channel(shared_server.address) as channel:
        stub = candidate_service_pb2_grpc.CandidateServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="aptitude: has more than 50000 entries") as refused:
            stub.CreateCandidate(cpb.CreateCandidateRequest(candidate=candidate_to(wrong)))
    (violation,) = status_of(refused.value)[2]["BadRequest"].field_violations
    assert violation.field == "candidate.aptitude"
    assert len(validate(wrong)) == 1
    many = InvalidInputError(*[Violation("long", "x" * 300)] * 20, Violation("late", "short"))
    assert b"late" not in to_status(many).details[1].value, "the first that does not fit ends it"


# --- candidates ------------------------------------------------------------------------------


def test_the_life_of_a_candidate(tmp_path: Path) -> None:
    with serving(tmp_path / "s.sqlite") as server, grpc.insecure_channel(server.address) as channel:
        stub = candidate_service_pb2_grpc.CandidateServiceStub(channel)
        message = candidate_to(NEW)
        create = cpb.CreateCandidateRequest(candidate=message, request_id="r1")
        stub.CreateCandidate(cpb.CreateCandidateRequest(candidate=message, validate_only=True))
        created = stub.CreateCandidate(create)
        assert stub.CreateCandidate(create) == created, "a repeated request id"
        other = cpb.CreateCandidateRequest(candidate=message, candidate_id="x", request_id="r1")
        with pytest.raises(grpc.RpcError, match="used for a different request"):
            stub.CreateCandidate(other)
        assert stub.GetCandidate(cpb.GetCandidateRequest(name=NEW.name)) == created

        change = candidate_pb2.Candidate(name=NEW.name, display_name="Renamed", etag=created.etag)
        update = cpb.UpdateCandidateRequest(candidate=change)
        update.update_mask.paths[:] = ["display_name", "context_window"]
        updated = stub.UpdateCandidate(update)
        assert updated.display_name == "Renamed"
        assert not updated.HasField("context_window")
        assert list(updated.aptitude) == list(created.aptitude)
        with pytest.raises(grpc.RpcError) as stale:
            stub.UpdateCandidate(update)
        assert status_of(stale.value)[0] == "ABORTED"
        update.candidate.etag = ""
        update.update_mask.paths[:] = ["etag"]
        with pytest.raises(grpc.RpcError) as unknown:
            stub.UpdateCandidate(update)
        assert status_of(unknown.value)[0] == "INVALID_ARGUMENT"

        names: list[str] = []
        token = ""
        while True:
            page = stub.ListCandidates(cpb.ListCandidatesRequest(page_size=4, page_token=token))
            names += [c.name for c in page.candidates]
            token = page.next_page_token
            if not token:
                break
        assert names == sorted([NEW.name, *(c.name for c in CATALOG)])
        stub.DeleteCandidate(cpb.DeleteCandidateRequest(name=NEW.name))
        update = cpb.UpdateCandidateRequest(candidate=created, allow_missing=True)
        with pytest.raises(grpc.RpcError) as deleted:
            stub.UpdateCandidate(update)
        assert status_of(deleted.value)[0] == "ABORTED", "an etag asks for what was read"
        with pytest.raises(grpc.RpcError, match="not a next_page_token"):
            stub.ListCandidates(cpb.ListCandidatesRequest(page_token="a b"))
        with pytest.raises(grpc.RpcError) as gone:
            stub.GetCandidate(cpb.GetCandidateRequest(name=NEW.name))
        code, _, details = status_of(gone.value)
        assert code == "NOT_FOUND"
        assert details["ResourceInfo"].resource_name == NEW.name


# --- the process -----------------------------------------------------------------------------


def test_health_reflection_and_info(shared_server: Server, client: Client) -> None:
    with grpc.insecure_channel(shared_server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "readiness", "modelsat.v1.RouterService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        for version in ("v1", "v1alpha"):
            reflect = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            (listed,) = reflect(iter([request]))
            names = {s.name for s in listed.list_services_response.service}
            assert {"modelsat.v1.RouterService", "modelsat.v1.CandidateService"} <= names
    info = client.server_info()
    assert info.candidates == len(CATALOG)
    assert info.backend.startswith(("fused forward", "onnxruntime"))
    assert info.prompt_layout == "candidate_last"


def test_the_serving_process_imports_no_training_framework(tmp_path: Path) -> None:
    """-X importtime names every module the process ever imported."""
    server = await_ready(launch(tmp_path / "s.sqlite", python=("-X", "importtime")))
    with Client(server.address) as client:
        client.route(QUESTION)
        client.create_candidate(NEW)
    assert server.terminate() == 0
    lines = server.printed().splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if "|" in line}
    assert "onnxruntime" in imported
    heavy = {"torch", "transformers", "peft", "onnx", "training", "export"}
    assert not {name.split(".")[0] for name in imported} & heavy


def test_the_command_line_prints_a_decision(
    shared_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["route", QUESTION, "--server", shared_server.address, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["selected"] == shown["ranking"][0]["candidate"]
    learned = {"base_probability", "standard_error", "similar_outcomes"}
    always = {"candidate", "probability", "expected_cost_usd", "utility"}
    assert set(shown["ranking"][0]) == always | learned
    assert {shown["ranking"][0][name] for name in learned} == {None}, "no outcome was recorded"
    assert len(shown["ranking"]) == len(CATALOG)
    assert {"tokenize", "queue", "inference", "scoring", "selection", "total"} == set(
        shown["timing_ms"]
    )
    assert shown["timing_ms"]["total"] > 0
    assert isinstance(shown["revision"], int)
    assert cli(["route", QUESTION, "--server", shared_server.address]) == 0
    table = capsys.readouterr().out
    assert all(c.id in table for c in CATALOG)
    assert "revision" in table
    assert cli(["route", " ", "--server", shared_server.address]) == 1
    assert "is empty or white space" in capsys.readouterr().err
    assert cli(["route", "\udcff hi", "--server", shared_server.address]) == 1
    assert "is not valid UTF-8" in capsys.readouterr().err
    assert cli(["route", "x", "--server", "127.0.0.1:1"]) == 1
    assert "Cannot connect to 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle", "nowhere"], "there is no such folder; name another one by --bundle"),
        (
            ["--max-queue-size", "0", "--inference-threads", "-1"],
            "--max-queue-size: is 0; expected 1 to",
        ),
        (["--address", "127.0.0.1"], "expected HOST:PORT"),
        (["--address", "256.0.0.1:1", "--allow-anonymous"], "cannot listen on"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    command = [sys.executable, "-m", "engine.cli.main", "serve", "--bundle", str(BUNDLE)]
    command += ["--candidates-db", str(tmp_path / "s.sqlite"), "--address", "127.0.0.1:0"]
    command += ["--outcomes-db", str(tmp_path / "o.sqlite"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
