"""What callers and gateways report of calls sets candidates aside, and every answer says so."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from engine.api.policy import Policy
from engine.pb import access_log_pb2 as pb
from engine.pb import access_log_pb2_grpc as stubs
from engine.serving.auth.tokens import new_token
from modelsat import Client, Credentials, ModelsatClientError, RouteDecision, Usage
from tests.serving.test_extproc_upstreams import candidates
from tools.processes import Server, serving

CALLERS = {"alice": "route", "bob": "route", "judge": "outcomes", "root": "admin"}


@dataclass(frozen=True)
class Running:
    """A server, a client for each caller, and the token of the judge."""

    server: Server
    clients: dict[str, Client]
    judge: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("aside")
    made = {name: new_token(role, name) for name, role in CALLERS.items()}
    tokens, models = folder / "tokens.json", folder / "models.json"
    tokens.write_text(json.dumps({"tokens": [vars(entry) for _, entry in made.values()]}))
    models.write_text('{"gpt": "gpt-5-mini", "claude": "gpt-5-mini"}')
    flags = ["--auth-tokens-file", str(tokens), "--metrics-address", "127.0.0.1:0"]
    flags += ["--extproc-address", "127.0.0.1:0", "--extproc-model-map", str(models)]
    with serving(folder / "s.sqlite", *flags, "--set-aside-s", "1.5") as server:
        clients = {
            name: Client(server.address, 30, Credentials(token=text))
            for name, (text, _) in made.items()
        }
        clients["root"].replace_candidates([replace(c, features=()) for c in candidates()])
        yield Running(server, clients, made["judge"][0])
        for client in clients.values():
            client.close()


def call(client: Client, error: str, reporter: Client | None = None) -> RouteDecision:
    """Route, and report how the call of the selected candidate ended."""
    decision = client.route("Why?")
    usage = Usage(latency_s=0.5, error=error)
    (reporter or client).record_outcome(
        decision.decision_id, decision.selected, float(not error), usage=usage
    )
    return decision


def test_failures_of_one_caller_set_aside_for_it_alone(running: Running) -> None:
    server, clients = running.server, running.clients
    chosen = [call(clients["alice"], "HTTP 529").selected for _ in range(3)]
    assert chosen == ["gpt"] * 3
    decision = clients["alice"].route("Why?")
    assert decision.selected == "claude"
    assert re.fullmatch(
        r"set aside for [12] s more: 3 failures in a row, the last with HTTP 529",
        decision.excluded["gpt"],
    )
    assert clients["bob"].route("Why?").selected == "gpt"
    assert clients["root"].set_aside() == {}  # lists what holds for its own requests
    page = metrics(server)
    assert 'modelsat_candidate_set_aside{candidate="gpt"} 1.0' in page
    assert 'modelsat_candidate_failures_total{candidate="gpt"} 3.0' in page
    printed = server.printed()
    assert "candidates/gpt is set aside for 1.5 s, for 'alice' alone: 3 failures in" in printed
    # If nothing else is allowed, it is tried all the same.
    only = clients["alice"].route("Why?", Policy(allowed_candidates=("gpt",)))
    assert (only.selected, "gpt" in only.excluded) == ("gpt", False)
    time.sleep(1.6)
    assert call(clients["alice"], "").selected == "gpt"
    assert 'set_aside{candidate="gpt"}' not in metrics(server)


def test_a_judges_reports_count_for_everyone(running: Running) -> None:
    clients = running.clients
    for _ in range(3):
        call(clients["bob"], "timed out", clients["judge"])
    assert {clients[name].route("Why?").selected for name in ("alice", "bob")} == {"claude"}
    aside = clients["root"].set_aside()
    assert list(aside) == ["gpt"]
    assert "3 failures in a row, the last with timed out" in aside["gpt"]
    time.sleep(1.6)
    assert call(clients["bob"], "", clients["judge"]).selected == "gpt"


def test_errors_of_requests_set_nothing_aside(running: Running) -> None:
    clients = running.clients
    assert {call(clients["alice"], "HTTP 400").selected for _ in range(5)} == {"gpt"}


def test_latency_is_registered_and_then_measured(running: Running) -> None:
    """The first token after 200 ms and 100 tokens a second: 4.2 s for 400 tokens."""
    clients = running.clients
    quick = {"time_to_first_token_ms": 200.0, "output_tokens_per_s": 100.0}
    table = [replace(c, mean_output_tokens=None, features=()) for c in candidates()]
    table[1] = replace(table[1], **quick)
    clients["root"].replace_candidates(table)
    assert clients["root"].get_candidate("claude").output_tokens_per_s == 100

    def chosen(limit_ms: float) -> tuple[str, dict[str, str]]:
        decision = clients["bob"].route("Why?", Policy(max_latency_ms=limit_ms))
        return decision.selected, decision.excluded

    selected, excluded = chosen(4200)
    assert (selected, excluded["qwen"]) == ("claude", "latency unknown; policy sets a maximum")
    with pytest.raises(ModelsatClientError, match="the expected latency is above"):
        chosen(4000)
    for _ in range(5):
        decision = clients["bob"].route("Why?", Policy(allowed_candidates=("qwen", "claude")))
        for name, latency_s in (("qwen", 0.2), ("claude", 0.9)):
            usage = Usage(latency_s=latency_s)
            clients["bob"].record_outcome(decision.decision_id, name, 1.0, usage=usage)
    assert {chosen(limit_ms)[0] for limit_ms in (300, 800)} == {"qwen"}
    selected, excluded = chosen(1000)
    assert (selected, set(excluded)) == ("claude", {"gpt", "claude-thinking", "anything"})
    with pytest.raises(ModelsatClientError, match="max_latency_ms: is -1"):
        chosen(-1)


CHAT = "/v1/chat/completions?x=1"


def entry(
    name: str, status: int, *, gone: str = "", path: str = CHAT, latency_s: int = 0
) -> pb.HttpLogEntry:
    headers = {"x-selected-model": name}
    found = pb.HttpLogEntry(request={"request_headers": headers, "path": path})
    if status:
        found.response.response_code.value = status
    if gone:
        setattr(found.common_properties.response_flags, gone, True)
    found.common_properties.time_to_last_upstream_rx_byte.seconds = latency_s
    return found


def log(running: Running, *entries: pb.HttpLogEntry) -> None:
    """Send entries as Envoy does, with the token of a judge."""
    message = pb.StreamAccessLogsMessage(http_logs={"log_entry": entries})
    with grpc.insecure_channel(running.server.extproc_address) as channel:
        stub = stubs.AccessLogServiceStub(channel)
        metadata = (("authorization", f"Bearer {running.judge}"),)
        stub.StreamAccessLogs(iter([message]), timeout=10, metadata=metadata)


def test_an_access_log_reports_every_candidate_of_an_upstreams_name(
    running: Running,
) -> None:
    clients = running.clients
    harmless = [entry("gpt-5-mini", status) for status in (400, 404, 422, 302)]
    for flag in ("downstream_connection_termination", "downstream_remote_reset"):
        harmless += [entry("gpt-5-mini", status, gone=flag) for status in (0, 503)]
    for path in ("/v1/messages/count_tokens", "/v1/embeddings", "/v1/models"):
        harmless.append(entry("gpt-5-mini", 500, path=path))
    harmless += [entry("other", 503), entry("", 503)]
    log(running, *harmless * 3)
    assert clients["alice"].route("Why?").selected == "gpt"
    log(running, *[entry("gpt-5-mini", status) for status in (503, 0, 429)])
    assert clients["alice"].route("Why?").selected == "claude-thinking"
    excluded = clients["bob"].route("Why?").excluded
    assert {"gpt", "claude"} == set(excluded)
    time.sleep(1.6)
    log(running, entry("gpt-5-mini", 200))
    assert clients["alice"].route("Why?").selected == "gpt"


def test_only_answers_end_a_row_of_failures_and_are_timed(running: Running) -> None:
    """Not tokens that were counted, nor scores of texts of any time."""
    clients = running.clients
    log(running, entry("claude-thinking", 200))
    for i in range(3):
        log(running, entry("claude-thinking", 529, path="/v1/messages"))
        log(running, entry("claude-thinking", 200, path="/v1/messages/count_tokens", latency_s=9))
        clients["judge"].record_outcome("", "claude-thinking", 1.0, text=f"of last year {i}")
    excluded = clients["alice"].route("Why?").excluded
    assert "3 failures" in excluded["claude-thinking"]
    time.sleep(1.6)
    for _ in range(5):
        log(running, entry("claude-thinking", 200, path="/v1/messages", latency_s=2))
    quick = Policy(allowed_candidates=("claude-thinking",), max_latency_ms=2500)
    assert clients["alice"].route("Why?", quick).selected == "claude-thinking"


def test_an_access_log_of_too_many_entries_is_refused(running: Running) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        log(running, *[pb.HttpLogEntry()] * 10_001)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    log(running, *[pb.HttpLogEntry()] * 10_000)


def test_an_open_log_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    def forever() -> Iterator[pb.StreamAccessLogsMessage]:
        yield pb.StreamAccessLogsMessage()
        time.sleep(20)

    with (
        serving(tmp_path / "s.sqlite", "--extproc-address", "127.0.0.1:0") as server,
        grpc.insecure_channel(server.extproc_address) as channel,
    ):
        answer = stubs.AccessLogServiceStub(channel).StreamAccessLogs.future(forever())
        time.sleep(0.3)
        server.process.terminate()
        assert server.process.wait(8) == 0
        assert answer.result(5) == pb.StreamAccessLogsResponse()


def metrics(server: Server) -> str:
    port = re.search(r"metrics on port (\d+)", server.printed())
    assert port is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=30) as page:
        return str(page.read().decode())
