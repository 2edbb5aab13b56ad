"""End to end with a real Envoy and deploy/envoy/hosted.yaml: TLS, keys, paths, names, fallbacks.

The upstreams are fakes on this machine with certificates for the names of the real ones. Kinds: a
key reaches the wrong upstream; an alias reaches an upstream; an upstream that fails, in any way
before it answers, fails a request.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.api.candidate import Candidate
from engine.registry.catalog import read_catalog
from modelsat import Client
from tests.serving.test_extproc_envoy import CHAT, Reply, ask, raw
from tests.support.hosted import RunningFakes, hosted_fakes
from tests.support.optional_tools import ENVOY, missing, needs
from tools.envoy import Envoy, hosted_envoy
from tools.processes import BUNDLE, Server, serving

pytestmark = [pytest.mark.integration, needs(missing(ENVOY))]
MESSAGES = "/v1/messages"
# Candidate ID -> (the upstream's name, its upstream, its APIs), best first.
MODELS = {
    "gpt-mini": ("gpt-5-mini", "openai", ("openai.chat", "openai.responses")),
    "haiku": ("claude-haiku-4-5", "anthropic", ("anthropic.messages",)),
    "llama-70b": ("meta-llama/Llama-3.3-70B-Instruct", "vllm", ("openai.chat",)),
    "qwen-32b": ("qwen/qwen3-32b", "openrouter", ("openai.chat",)),
    "sonnet": ("claude-sonnet-4-5", "anthropic", ("anthropic.messages",)),
}
UPSTREAMS = {name: upstream for name, upstream, _ in MODELS.values()}
ATTEMPTS = "x-envoy-attempt-count"


def candidates() -> list[Candidate]:
    model = read_catalog(BUNDLE / "zoo.json")[0]
    return [
        replace(
            model,
            id=name,
            features=(*apis, "tools"),
            aptitude=[replace(r, accuracy=0.9 - 0.15 * i) for r in model.aptitude],
        )
        for i, (name, (_, _, apis)) in enumerate(MODELS.items())
    ]


@dataclass(frozen=True)
class Stack:
    server: Server
    envoy: Envoy
    fakes: RunningFakes

    def ask(self, sent: bytes, path: str = CHAT, headers: Mapping[str, str] = {}) -> Reply:
        return ask(self.envoy.port, sent, headers, path)


@contextmanager
def stack(folder: Path, changes: Mapping[str, str] = {}, *more: str) -> Iterator[Stack]:
    models = folder / "models.json"
    models.write_text(json.dumps({i: name for i, (name, _, _) in MODELS.items()}))
    flags = ("--extproc-address", "127.0.0.1:0", "--extproc-timeout-ms", "20000")
    flags += ("--extproc-fallbacks", "2", "--extproc-model-map", str(models))
    patient = {"message_timeout: 1s": "message_timeout: 30s", **changes}
    with serving(folder / "s.sqlite", *flags, *more) as server, hosted_fakes(folder) as fakes:
        with Client(server.address, timeout_s=60) as client:
            client.replace_candidates(candidates())
        with hosted_envoy(folder, server, fakes.hosted, patient) as running:
            yield Stack(server, running, fakes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack in which nothing is killed or set aside; tests put back what they change."""
    steady = {"consecutive_5xx: 3": "consecutive_5xx: 1000"}
    never = ("--set-aside-failures", "0")
    with stack(tmp_path_factory.mktemp("hosted"), steady, *never) as running:
        yield running


def assert_answered(reply: Reply, sent: bytes, name: str, attempts: int = 1) -> Any:
    """By the model of that name, at its upstream, with every other byte of the body as it was."""
    assert reply.status == 200, reply.body
    assert reply.headers["x-selected-model"] == name
    assert reply.headers[ATTEMPTS] == str(attempts)
    echoed = reply.json
    assert (echoed["model"], echoed["upstream"]) == (name, UPSTREAMS[name])
    expected = sent.replace(b'"model": "auto"', f'"model": "{name}"'.encode(), 1)
    assert echoed["sha256"] == hashlib.sha256(expected).hexdigest()
    private = [h for h in echoed["headers"] if h.startswith(("x-modelsat-", "x-envoy-attempt"))]
    assert private == []
    return echoed


def only(candidate: str) -> dict[str, str]:
    return {"x-modelsat-allowed-candidates": candidate}


@pytest.mark.parametrize("candidate", MODELS)
def test_each_upstream_gets_its_own_key_host_path_and_name(whole: Stack, candidate: str) -> None:
    name, upstream, apis = MODELS[candidate]
    path = CHAT if "openai.chat" in apis else MESSAGES
    mine = {"Authorization": "Bearer mine", "x-api-key": "mine", **only(candidate)}
    sent = raw("Why?", max_tokens=9)
    echoed = assert_answered(whole.ask(sent, path, mine), sent, name)
    headers = echoed["headers"]
    keys = [v for k, v in headers.items() if k in ("authorization", "x-api-key")]
    expected = {
        "openai": (["Bearer key-of-openai"], "api.openai.com", path),
        "anthropic": (["key-of-anthropic"], "api.anthropic.com", path),
        "openrouter": (["Bearer key-of-openrouter"], "openrouter.ai", "/api" + path),
        "vllm": ([], headers["host"], path),
    }
    assert (keys, headers["host"], echoed["path"]) == expected[upstream]
    assert ("anthropic-version" in headers) == (upstream == "anthropic")


def test_a_clients_own_key_stays_where_it_belongs_on_other_paths(whole: Stack) -> None:
    reply = ask(
        whole.envoy.port, None, {"Authorization": "Bearer mine"}, "/v1/models", method="GET"
    )
    assert reply.status == 200
    assert "authorization" not in reply.json["headers"]


def test_uploads_of_any_size_pass(whole: Stack) -> None:
    upload = {"Content-Type": "multipart/form-data; boundary=x"}
    chunks = (b"x" * 1_000_000 for _ in range(20))
    reply = ask(whole.envoy.port, chunks, upload, "/v1/files")
    assert (reply.status, reply.json["bytes"]) == (200, 20_000_000)


def test_forged_choices_are_removed(whole: Stack) -> None:
    forged = {
        "x-selected-model": "claude-sonnet-4-5",
        "x-modelsat-fallback-1": "claude-sonnet-4-5",
        ATTEMPTS: "2",
    }
    sent = raw("Why?")
    assert_answered(whole.ask(sent, headers=forged), sent, "gpt-5-mini")


def test_a_model_that_is_named_keeps_or_gets_its_upstreams_name(whole: Stack) -> None:
    for named, name in (("qwen-32b", "qwen/qwen3-32b"), ("gpt-5-mini", "gpt-5-mini")):
        echoed = whole.ask(raw("Why?", named)).json
        assert (echoed["model"], echoed["upstream"]) == (name, UPSTREAMS[name])


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, 529])
def test_an_upstream_that_refuses_is_followed_by_the_next_candidate(
    whole: Stack, status: int
) -> None:
    sent = raw("Why?", tools=[{"type": "function", "function": {"name": "f"}}])
    whole.fakes["openai"].status = status
    try:
        reply = whole.ask(sent)
    finally:
        whole.fakes["openai"].status = 200
    assert_answered(reply, sent, "meta-llama/Llama-3.3-70B-Instruct", 2)


def test_the_third_candidate_is_tried_as_well(whole: Stack) -> None:
    sent = raw("Why?", stream=False)
    whole.fakes["openai"].status = whole.fakes["vllm"].status = 500
    try:
        reply = whole.ask(sent)
    finally:
        whole.fakes["openai"].status = whole.fakes["vllm"].status = 200
    assert_answered(reply, sent, "qwen/qwen3-32b", 3)


def test_a_request_that_is_wrong_is_not_repeated(whole: Stack) -> None:
    whole.fakes["openai"].status = 400
    try:
        reply = whole.ask(raw("Why?"))
    finally:
        whole.fakes["openai"].status = 200
    assert (reply.status, reply.headers[ATTEMPTS]) == (400, "1")


def hang_up(running: Stack, sent: bytes) -> None:
    """Ask the slow upstream, and go away before it answers."""
    fake = running.fakes["openai"]
    received, end = len(fake.bodies), time.monotonic() + 30
    with socket.create_connection(("127.0.0.1", running.envoy.port)) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent)
        while len(fake.bodies) == received and time.monotonic() < end:
            time.sleep(0.01)


def test_a_killed_upstream_fails_no_request(tmp_path: Path) -> None:
    with stack(tmp_path, {"stream_idle_timeout: 300s": "stream_idle_timeout: 1s"}) as running:
        sent = [raw(f"Why {i}?", padding="é" * 1000 * i) for i in range(40)]
        for each in sent[:5]:
            assert_answered(running.ask(each), each, "gpt-5-mini")
        llama = "meta-llama/Llama-3.3-70B-Instruct"
        running.fakes["openai"].delay_s = 3.0  # it stays silent
        for each in sent[:4]:
            hang_up(running, each)
        time.sleep(0.5)  # the gateway sends its log every 0.2 s
        # That clients went away has set nothing aside.
        assert_answered(running.ask(sent[0]), sent[0], llama, 2)
        running.fakes["openai"].delay_s = 0.0
        assert_answered(running.ask(sent[1]), sent[1], "gpt-5-mini")
        running.fakes.kill("openai")
        first = running.ask(sent[5])
        assert_answered(first, sent[5], llama, 2)
        attempts = [running.ask(each) for each in sent[6:]]
        time.sleep(0.5)  # the gateway sends its log every 0.2 s
        assert {(a.status, a.headers["x-selected-model"]) for a in attempts} == {(200, llama)}
        # modelsat has read of it in the access log, and no longer chooses that upstream.
        stream = running.ask(raw("Why?", stream=True))
        assert stream.body.endswith(b"data: [DONE]\n\n")
        assert stream.headers[ATTEMPTS] == "1"
        with Client(running.server.address, timeout_s=30) as client:
            reason = client.route("Why?").excluded["gpt-mini"]
        assert re.fullmatch(
            r"set aside for \d+ s more: 3 failures in a row, the last with HTTP 503", reason
        )
        running.server.kill()
        # The first default is of the upstream that was killed.
        for each in sent[:20]:
            assert_answered(running.ask(each), each, llama, 2)


ODD = (
    b'{"model": "auto", "messages": []}',
    b'{"messages": [{"role": "user", "content": "a \\"model\\": \\\\"}], "model": "auto"}',
    b'{"a": {"model": "x"}, "b": ["model", "auto", {"model": "y"}], "c": "model", "model": "auto"}',
    b'{"x": "\\\\\\"", "y": {}, "model"\n:\t"auto" , "z": 1.50}',
)


def test_without_modelsat_an_alias_becomes_a_default_model(tmp_path: Path) -> None:
    with stack(tmp_path) as running:
        running.server.kill()
        for sent in (raw("Why?"), raw("Why?", padding="x" * 3_000_000), *ODD):
            compact = sent.replace(b'"model"\n:\t"auto"', b'"model": "auto"')
            reply = running.ask(sent)
            assert reply.json["model"] == "gpt-5-mini", sent[:200]
            if compact == sent:
                assert_answered(reply, sent, "gpt-5-mini")
        sent = raw("Why?", max_tokens=9)
        for path in (MESSAGES, MESSAGES + "?beta=true", MESSAGES + "/count_tokens"):
            assert_answered(running.ask(sent, path), sent, "claude-haiku-4-5")
        # A body that names its model reaches that model's upstream as it is.
        sent = raw("Why?", "qwen/qwen3-32b")
        assert_answered(running.ask(sent), sent, "qwen/qwen3-32b")
        # Uploads are not held to look for a model, once the health check has seen that it is down.
        until = time.monotonic() + 20
        while "health_flags::/failed_active_hc" not in running.envoy.clusters():
            assert time.monotonic() < until
            time.sleep(0.1)
        upload = {"Content-Type": "multipart/form-data; boundary=x"}
        chunks = (b"x" * 1_000_000 for _ in range(20))
        reply = ask(running.envoy.port, chunks, upload, "/v1/files")
        assert (reply.status, reply.json["bytes"]) == (200, 20_000_000)
        for sent in (b"", b"[]", b"x", b'{"a": {"model": "auto"}}', b'{"model": "au', b"{" * 1000):
            assert running.ask(sent).json["upstream"] == "vllm"
        injected = b'{"model": "a\r\nx-injected: 1"}'
        assert "x-injected" not in running.ask(injected).json["headers"]
