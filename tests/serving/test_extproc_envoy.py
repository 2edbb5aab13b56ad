"""End to end with the real Envoy and deploy/envoy/envoy.yaml, a real server, fake upstreams."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import re
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.api.policy import Policy
from engine.registry.catalog import read_catalog
from modelsat import Client
from tests.conftest import INSTRUCTIONS
from tests.support.optional_tools import ENVOY, missing, needs
from tools.envoy import FULL_DUPLEX, Envoy, envoy
from tools.fake_upstream import chat_events, upstream
from tools.processes import BUNDLE, Server, serving

pytestmark = [pytest.mark.integration, needs(missing(ENVOY))]
CATALOG = read_catalog(BUNDLE / "zoo.json")
# As the routes have it.
LARGE = re.compile(r".*-70b-.*|.*-72b-.*|.*-large|.*-pro(-.*)?|.*-opus-.*|gpt-5.*")
CHAT = "/v1/chat/completions"
HEADER, DECISION = "x-selected-model", "x-modelsat-decision-id"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What the upstream, or an error, says."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Stack:
    server: Server
    envoy: Envoy

    def ask(
        self, body: Any = None, headers: Mapping[str, str] = {}, path: str = CHAT, **more: Any
    ) -> Reply:
        return ask(self.envoy.port, body, headers, path, **more)


def ask(
    port: int,
    body: Any,
    headers: Mapping[str, str] = {},
    path: str = CHAT,
    *,
    method: str = "POST",
    connection: http.client.HTTPConnection | None = None,
) -> Reply:
    """body: bytes, or an iterable of them for a chunked one."""
    all_headers = {"Content-Type": "application/json", **headers}
    client = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request(method, path, body, all_headers)
        answer = client.getresponse()
        found = {k.lower(): v for k, v in answer.getheaders()}
        return Reply(answer.status, found, answer.read())
    finally:
        if connection is None:
            client.close()


def raw(text: str, model: str = "auto", **more: Any) -> bytes:
    return json.dumps(
        {"stop": None, "model": model, "messages": [{"role": "user", "content": text}], **more}
    ).encode()


@contextmanager
def stack(folder: Path, changes: Mapping[str, str] = {}, *arguments: str) -> Iterator[Stack]:
    flags = ("--extproc-address", "127.0.0.1:0", "--extproc-timeout-ms", "20000", *arguments)
    patient = {"message_timeout: 1s": "message_timeout: 30s", **changes}
    with (
        serving(folder / "s.sqlite", *flags) as server,
        upstream("large") as large,
        upstream("small") as small,
        envoy(folder, server, large, small, patient) as running,
    ):
        yield Stack(server, running)


@pytest.fixture(scope="module", params=["BUFFERED", "FULL_DUPLEX_STREAMED"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    changes = FULL_DUPLEX if request.param != "BUFFERED" else {}
    with stack(tmp_path_factory.mktemp("envoy"), changes) as running:
        yield running


def upstream_of(model: str) -> str:
    return "large" if LARGE.fullmatch(model) else "small"


def assert_routed(reply: Reply, sent: bytes) -> str:
    """The chosen model: in the header, in the body whose other bytes came through, and at the
    upstream that serves it."""
    assert reply.status == 200, reply.body
    model = reply.headers[HEADER]
    assert model in {c.id for c in CATALOG}
    echoed = reply.json
    assert echoed["model"] == model == echoed["headers"][HEADER]
    assert re.fullmatch(r"[0-9a-f]{32}", echoed["headers"][DECISION])
    expected = sent.replace(b'"model": "auto"', b'"model": "%s"' % model.encode(), 1)
    assert (echoed["bytes"], echoed["sha256"]) == (
        len(expected),
        hashlib.sha256(expected).hexdigest(),
    )
    assert echoed["upstream"] == upstream_of(model)
    return model


def test_the_choice_is_routes_own(both: Stack) -> None:
    with Client(both.server.address, timeout_s=30) as client:
        for text in INSTRUCTIONS[:8]:
            chosen = assert_routed(both.ask(raw(text)), raw(text))
            assert client.route(text).selected == chosen


@pytest.mark.parametrize("size", [1000, 61_000, 62_000, 70_000, 1_000_000, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_of_any_size(both: Stack, size: int, chunked: bool) -> None:
    sent = raw(INSTRUCTIONS[0], padding="é" * (size // 8) + "x" * (size // 2))
    body = (sent[at : at + 50_001] for at in range(0, len(sent), 50_001)) if chunked else sent
    assert_routed(both.ask(body), sent)


@pytest.mark.parametrize("sent", [b"x", b"{", b"[]", b"\xff" * 100])
def test_what_is_no_json_is_refused_where_a_model_is_expected(both: Stack, sent: bytes) -> None:
    reply = both.ask(sent)
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert reply.json["error"]["code"] == "invalid_input"


def test_everything_else_passes_untouched(both: Stack) -> None:
    for sent, headers, path, upstream_name, model in (
        (raw("Hi", "jamba-1.5-large"), {}, CHAT, "large", "jamba-1.5-large"),
        (raw("Hi", "some/other"), {}, "/v1/embeddings", "small", "some/other"),
        (b"1", {"Content-Type": "text/plain"}, CHAT, "small", None),
        (b"7", {}, "/v1/files", "small", None),
        (b"", {}, "/v1/files", "small", None),
        (b"7", {"Content-Encoding": "br"}, CHAT, "small", None),
        (
            b"--x--" * 50_000,
            {"Content-Type": "multipart/form-data"},
            CHAT,
            "small",
            None,
        ),
    ):
        reply = both.ask(sent, headers, path)
        echoed = reply.json
        assert (reply.status, echoed["upstream"]) == (200, upstream_name)
        assert echoed["sha256"] == hashlib.sha256(sent).hexdigest()
        assert echoed["headers"].get(HEADER) == model
        assert DECISION not in echoed["headers"]


ZSTD_MAGIC = bytes.fromhex("28b52ffd")


def zstd(content: bytes) -> bytes:
    """Return a zstd frame of one raw block, of at most 128 KiB."""
    size = len(content).to_bytes(4, "little")
    block = (len(content) << 3 | 1).to_bytes(3, "little")  # the last one, not compressed
    return ZSTD_MAGIC + b"\xa0" + size + block + content


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_compressed_bodies_are_routed(both: Stack, encoding: str) -> None:
    for text in INSTRUCTIONS[:2]:
        sent = raw(text, padding="é" * 1000)
        packed = gzip.compress(sent) if encoding == "gzip" else zstd(sent)
        reply = both.ask(packed, {"Content-Encoding": encoding})
        assert_routed(reply, sent)
        assert "content-encoding" not in reply.json["headers"]
    assert both.ask(b"no frame", {"Content-Encoding": encoding}).status == 400


def test_a_body_over_the_limit_passes_where_nothing_is_routed(both: Stack) -> None:
    sent = raw("Hi", "some/other", padding="x" * 11_000_000)
    reply = both.ask(sent, {HEADER: "jamba-1.5-large"}, "/v1/embeddings")
    echoed = reply.json
    assert (reply.status, echoed["upstream"]) == (200, "small")
    assert echoed["sha256"] == hashlib.sha256(sent).hexdigest()
    assert HEADER not in echoed["headers"]


def test_requests_without_a_body_pass(both: Stack) -> None:
    assert both.ask(path="/v1/models", method="GET").json["path"] == "/v1/models"


def test_a_forged_choice_is_stripped(both: Stack) -> None:
    forged = {HEADER: "jamba-1.5-large", DECISION: "0" * 32}
    for reply in (
        both.ask(raw("Hi", "yi-6b-chat"), forged),
        both.ask(b"1", {**forged, "Content-Type": "text/plain"}),
        both.ask(None, forged, "/v1/models", method="GET"),
    ):
        assert reply.json["upstream"] == "small"
        assert reply.json["headers"].get(HEADER) in (None, "yi-6b-chat")
        assert DECISION not in reply.json["headers"]


def test_other_bodies_and_overrides(both: Stack) -> None:
    with Client(both.server.address, timeout_s=30) as client:
        cheap = client.route("Why?", Policy("cost_sensitivity", 100.0)).selected
    for path, body in (
        ("/v1/completions", {"prompt": "Why?"}),
        ("/v1/responses", {"input": "Why?"}),
        ("/v1/messages", {"max_tokens": 100, "messages": [{"role": "user", "content": "Why?"}]}),
    ):
        sent = json.dumps({"model": "auto", **body}).encode()
        chosen = assert_routed(both.ask(sent, {"x-modelsat-cost-sensitivity": "100"}, path), sent)
        assert cheap == chosen
    allow = {"x-modelsat-allowed-candidates": "yi-6b-chat, candidates/mathstral-7b-v0.1"}
    sent = raw("Why?")
    assert assert_routed(both.ask(sent, allow), sent) in ("yi-6b-chat", "mathstral-7b-v0.1")
    for headers, body, word in (
        ({"x-modelsat-allowed-candidates": "no-one"}, sent, "no-one, which is not registered"),
        ({"x-modelsat-cost-sensitivity": "much"}, sent, "is not a number"),
        (
            {"x-modelsat-allowed-candidates": "yi-6b-chat"},
            raw("Why?", tools=[{"type": "function"}]),
            "missing features: tools",
        ),
    ):
        refused = both.ask(body, headers)
        assert refused.status == 400
        assert word in refused.json["error"]["message"]


def test_a_streamed_answer_comes_untouched(both: Stack) -> None:
    sent = raw("Hi", stream=True)
    reply = both.ask(sent)
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.body == streamed(reply.headers[HEADER])


def test_a_body_over_the_limit_is_413(both: Stack) -> None:
    sent = raw("Hi", padding="x" * 11_000_000)
    connection = http.client.HTTPConnection("127.0.0.1", both.envoy.port, timeout=30)
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(sent)))
    connection.endheaders()
    # From the length alone: the body need not be sent.
    assert connection.getresponse().status == 413
    connection.close()
    chunks = (b"x" * 1_000_000 for _ in range(11))
    with suppress(OSError):  # Envoy may close before it has read the rest
        assert both.ask(chunks).status == 413


def test_a_thousand_requests_over_twenty_connections(both: Stack) -> None:
    def fifty(worker: int) -> list[str]:
        connection = http.client.HTTPConnection("127.0.0.1", both.envoy.port, timeout=60)
        chosen = []
        for i in range(50):
            text = f"{INSTRUCTIONS[(worker * 50 + i) % len(INSTRUCTIONS)]} ({worker}, {i % 5})"
            sent = raw(text)
            reply = ask(both.envoy.port, sent, connection=connection)
            chosen.append(assert_routed(reply, sent))
        connection.close()
        return chosen

    with ThreadPoolExecutor(20) as pool:
        chosen = [model for each in pool.map(fifty, range(20)) for model in each]
    assert len(chosen) == 1000
    assert len(set(chosen)) > 1


def test_a_candidate_is_chosen_once_it_is_registered(both: Stack) -> None:
    strong = [replace(r, accuracy=1.0) for r in CATALOG[0].aptitude]
    newcomer = replace(CATALOG[0], id="newcomer", aptitude=tuple(strong))
    headers = {"x-modelsat-allowed-candidates": "newcomer"}
    assert both.ask(raw("Hi"), headers).status == 400
    with Client(both.server.address, timeout_s=30) as client:
        client.create_candidate(newcomer)
        try:
            reply = both.ask(raw("Hi"), headers)
            assert (reply.status, reply.json["model"]) == (200, "newcomer")
        finally:
            client.delete_candidate("newcomer")
    assert both.ask(raw("Hi"), headers).status == 400


def streamed(model: str) -> bytes:
    return b"".join(chat_events(f"{upstream_of(model)} answers", model))


def assert_by_default(reply: Reply) -> None:
    assert (reply.status, reply.json["upstream"]) == (200, "small")
    assert (reply.json["model"], reply.headers.get(HEADER)) == ("auto", None)


FORGED = {HEADER: "jamba-1.5-large"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["down", "hung"])
def test_without_the_processor_requests_take_the_default_route(
    tmp_path: Path, how: signal.Signals
) -> None:
    with stack(tmp_path, {"message_timeout: 1s": "message_timeout: 0.3s"}) as running:
        running.server.process.send_signal(how)
        for _ in range(3):
            assert_by_default(running.ask(raw("Hi"), FORGED))
        running.server.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["down", "hung"])
def test_in_full_duplex_they_do_once_the_health_check_has_seen_it(
    tmp_path: Path, how: signal.Signals
) -> None:
    """A body that is under way to the processor cannot be taken back."""
    with stack(tmp_path, FULL_DUPLEX) as running:
        running.server.process.send_signal(how)
        until = time.monotonic() + 20
        while "health_flags::/failed_active_hc" not in running.envoy.clusters():
            assert time.monotonic() < until
            time.sleep(0.1)
        for _ in range(3):
            assert_by_default(running.ask(raw("Hi"), FORGED))
        running.server.kill()


def test_a_server_that_stops_leaves_no_request_unrouted(tmp_path: Path) -> None:
    """Half of a chunked body is there at SIGTERM; the request is still routed."""
    sent = raw("Hi")
    with stack(tmp_path, FULL_DUPLEX) as running:

        def halves() -> Iterator[bytes]:
            yield sent[:20]
            time.sleep(0.3)
            running.server.process.send_signal(signal.SIGTERM)
            time.sleep(1.5)  # the notice of the drain is one second
            yield sent[20:]

        assert_routed(running.ask(halves()), sent)
        assert running.server.process.wait(20) == 0


def test_a_mode_that_cannot_work_is_named(tmp_path: Path) -> None:
    streamed = {"request_body_mode: BUFFERED": "request_body_mode: STREAMED"}
    with stack(tmp_path, streamed) as running:
        reply = running.ask(raw("Hi"))
        assert reply.status == 500
        assert "set BUFFERED or FULL_DUPLEX_STREAMED" in reply.json["error"]["message"]


def test_a_token_is_needed_where_the_server_has_tokens(tmp_path: Path) -> None:
    from engine.serving.auth.tokens import new_token

    token, entry = new_token("route", "envoy")
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"tokens": [vars(entry)]}))
    line = '# initial_metadata: [{key: authorization, value: "Bearer TOKEN"}]'
    given = {line: line[2:].replace("TOKEN", token)}
    with stack(tmp_path, given, "--auth-tokens-file", str(file)) as running:
        assert_routed(running.ask(raw("Hi")), raw("Hi"))


def test_responses_that_are_sent_to_it_come_through(tmp_path: Path) -> None:
    """An operator who leaves the response phases on: the stream has ended, Envoy goes on."""
    phases = {
        "response_header_mode: SKIP": "response_header_mode: SEND",
        "response_body_mode: NONE": "response_body_mode: STREAMED",
    }
    with stack(tmp_path, phases) as running:
        for stream in (True, False):
            reply = running.ask(raw("Hi", stream=stream))
            assert reply.status == 200
            if stream:
                assert reply.body == streamed(reply.headers[HEADER])
