"""The stream of ext_proc against a real server, without Envoy: every answer, limit and refusal."""

from __future__ import annotations

import asyncio
import codecs
import itertools
import json
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.api.policy import OBJECTIVES
from engine.pb import external_processor_pb2 as pb
from engine.pb import external_processor_pb2_grpc as stubs
from engine.serving.extproc.gateway import Gateway, options_from
from engine.serving.extproc.service import ExternalProcessor
from engine.serving.settings import Settings
from engine.serving.telemetry import Telemetry
from modelsat import Client
from tests.reliability.fuzz.extproc import fuzz
from tests.support.otlp_collector import collecting
from tools.processes import Server, serving

BUFFERED, STREAMED, PARTIAL, DUPLEX = 2, 1, 3, 4
ASKED = {"model": "auto", "messages": [{"role": "user", "content": "Why?"}]}
BODY = json.dumps(ASKED).encode()
SMALL = ("--max-text-bytes", "50000")
LIMIT = 10 * 1024 * 1024  # of one body
PATIENCE_S = 20.0
# What the server alone may set.
OWN_HEADERS = [
    "x-selected-model",
    "x-modelsat-decision-id",
    *(f"x-modelsat-fallback-{i}" for i in range(1, 9)),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("extproc")
    models = folder / "models.json"
    models.write_text('{"yi-6b-chat": "01-ai/Yi-6B-Chat"}')
    flags = ("--extproc-address", "127.0.0.1:0", "--extproc-on-unparsable", "reject")
    flags += ("--extproc-model-map", str(models), "--extproc-model-alias", "auto, best")
    flags += ("--metrics-address", "127.0.0.1:0")
    with serving(folder / "s.sqlite", *flags, *SMALL) as running:
        yield running


def headers(mode: int = BUFFERED, ends: bool = False, **more: str) -> Any:
    message = pb.ProcessingRequest()
    message.protocol_config.request_body_mode = mode
    message.request_headers.end_of_stream = ends
    defaults = {":path": "/v1/chat/completions", "content-type": "application/json"}
    for key, value in (defaults | more).items():
        name = key.replace("_", "-")
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    return message


def body(content: bytes = BODY, ends: bool = True) -> Any:
    return pb.ProcessingRequest(request_body={"body": content, "end_of_stream": ends})


def talk(server: Server, *messages: Any) -> list[Any]:
    whole = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.extproc_address, whole) as channel:
        return list(stubs.ExternalProcessorStub(channel).Process(iter(messages), timeout=30))


def set_by(common: Any) -> dict[str, str]:
    changed = common.header_mutation.set_headers
    assert all(h.append_action == h.OVERWRITE_IF_EXISTS_OR_ADD for h in changed)
    return {h.header.key: h.header.raw_value.decode() for h in changed}


def refusal(answer: Any) -> tuple[int, str]:
    refused = answer.immediate_response
    values = {h.header.key: h.header.raw_value for h in refused.headers.set_headers}
    assert values["content-type"] == b"application/json"
    return refused.status.code, json.loads(refused.body)["error"]["code"]


def test_a_buffered_body_is_answered_with_everything_at_once(server: Server) -> None:
    length = {"content-length": str(len(BODY)), "x-modelsat-allowed-candidates": "yi-6b-chat"}
    first, second = talk(server, headers(**length), body())
    stripped = first.request_headers.response.header_mutation
    assert not stripped.set_headers
    assert list(stripped.remove_headers) == OWN_HEADERS
    common, expected = second.request_body.response, BODY.replace(b"auto", b"01-ai/Yi-6B-Chat")
    assert common.body_mutation.body == expected
    assert common.clear_route_cache
    changed = set_by(common)
    assert changed["x-selected-model"] == "01-ai/Yi-6B-Chat"
    assert changed["content-length"] == str(len(expected))
    metadata = second.dynamic_metadata["modelsat"]
    assert metadata["selected"] == "candidates/yi-6b-chat"
    assert metadata["decision_id"] == changed["x-modelsat-decision-id"]
    assert 0 < metadata["probability"] < 1


def test_without_a_length_none_is_set(server: Server) -> None:
    """A chunked body has none."""
    _, second = talk(server, headers(), body(BODY.replace(b"auto", b"best")))
    assert "content-length" not in set_by(second.request_body.response)
    assert "x-selected-model" in set_by(second.request_body.response)


@pytest.mark.parametrize("trailers", [False, True])
def test_a_streamed_body_is_answered_once_it_is_whole(server: Server, trailers: bool) -> None:
    padded = json.dumps({**ASKED, "padding": "x" * 90_000}).encode()
    pieces = [padded[at : at + 30_000] for at in range(0, len(padded), 30_000)]
    messages = [body(piece, piece is pieces[-1] and not trailers) for piece in pieces]
    ending = [pb.ProcessingRequest(request_trailers={})] if trailers else []
    first, *chunks = talk(server, headers(DUPLEX), *messages, *ending)
    model = set_by(first.request_headers.response)["x-selected-model"]
    assert first.request_headers.response.clear_route_cache
    if trailers:
        assert chunks.pop().WhichOneof("response") == "request_trailers"
    echoed = [c.request_body.response.body_mutation.streamed_response for c in chunks]
    assert b"".join(e.body for e in echoed) == padded.replace(b'"auto"', json.dumps(model).encode())
    assert max(len(e.body) for e in echoed) <= 62_000
    assert [e.end_of_stream for e in echoed] == [False] * (len(echoed) - 1) + [not trailers]


def test_overrides_in_metadata_take_precedence_over_headers(server: Server) -> None:
    first = headers(x_modelsat_allowed_candidates="yi-6b-chat")
    first.metadata_context.filter_metadata["modelsat"].update(
        {"allowed_candidates": ["mathstral-7b-v0.1"]}
    )
    _, second = talk(server, first, body())
    assert set_by(second.request_body.response)["x-selected-model"] == "mathstral-7b-v0.1"


def overriding(values: dict[str, Any], **more: str) -> Any:
    message = headers(**more)
    message.metadata_context.filter_metadata["modelsat"].update(values)
    return message


@pytest.mark.parametrize("header", OBJECTIVES)
def test_an_objective_in_metadata_goes_before_any_in_headers(server: Server, header: str) -> None:
    def chosen(*messages: Any) -> str:
        _, second = talk(server, *messages)
        return set_by(second.request_body.response)["x-selected-model"]

    cheap = chosen(headers(x_modelsat_cost_sensitivity="100"), body())
    assert chosen(headers(), body()) != cheap
    sent = {f"x_modelsat_{header}": "0.9", "x_modelsat_target_probability": "0.9"}
    assert chosen(overriding({"cost_sensitivity": 100}, **sent), body()) == cheap


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (
            overriding({"allowed_candidates": []}, x_modelsat_allowed_candidates="yi-6b-chat"),
            "modelsat.allowed_candidates: is empty",
        ),
        (
            overriding({"allowed_candidates": None}),
            "modelsat.allowed_candidates: is empty",
        ),
        (overriding({"allowed_candidates": ""}), "policy.allowed_candidates[0]"),
        (overriding({"budget_usd": 1, "target_probability": 1}), "set one objective"),
        (overriding({"deny": ["yi-6b-chat"]}), "was renamed; send denied_candidates"),
        (headers(x_modelsat_confidence="sure"), "x-modelsat-confidence: is not a number"),
        (overriding({"confidence": -1}, x_modelsat_confidence="1"), "policy.confidence: is -1"),
        (headers(x_modelsat_deny="yi-6b-chat"), "was renamed; send denied_candidates"),
        # Kind: a mistyped restriction was ignored, and so lifted.
        (headers(x_modelsat_denied_candidate="yi-6b-chat"), "did you mean denied_candidates?"),
        (headers(x_modelsat_wilingness_to_pay_usd="1"), "did you mean willingness_to_pay_usd?"),
        (headers(x_modelsat_candidates_allowed="yi-6b-chat"), "is not a setting of a request"),
        (headers(x_modelsat_region="eu"), "x-modelsat-region: is not a setting of a request"),
        (overriding({"allowed_candidate": ["yi-6b-chat"]}), "did you mean allowed_candidates?"),
        (
            headers(x_modelsat_budget_usd="1", x_modelsat_target_probability="0.5"),
            "set one objective",
        ),
    ],
)
def test_empty_or_contradicting_overrides_are_refused(
    server: Server, message: Any, word: str
) -> None:
    answer = talk(server, message, body())[-1]
    assert refusal(answer) == (400, "invalid_input")
    assert word in json.loads(answer.immediate_response.body)["error"]["message"]


@pytest.mark.parametrize(
    "message",
    [
        headers(x_modelsat_session=""),
        headers(x_modelsat_session="s" * 100_000),
        headers(x_modelsat_session="сессия " * 9),
        headers(x_modelsat_allowed_candidates="", x_modelsat_denied_candidates=" , "),
        headers(x_modelsat_cost_sensitivity=" ", x_modelsat_budget_usd=""),
        headers(x_modelsat_deny=""),
        headers(x_modelsat_decision_id="0123", x_modelsat_kind="ranked", x_modelsat_fallback_1="x"),
        overriding({"selected": "x", "decision_id": "0123", "probability": 0.5}),
        headers(traceparent="not a trace", tracestate=";;;"),
        overriding({"session": None}),
        overriding({"session": ""}),
        overriding({"session": "s" * 100_000}),
        overriding({"session": 17}),
    ],
)
def test_a_hint_never_fails_a_request(server: Server, message: Any) -> None:
    answer = talk(server, message, body())[-1]
    assert set_by(answer.request_body.response)["x-selected-model"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (codecs.BOM_UTF8 + b'{"model": "auto", "prompt": "hi"}', "(BOM) of UTF-8"),
        ('{"model": "auto", "prompt": "hi"}'.encode("utf-16"), "(BOM) of UTF-16"),
        (codecs.BOM_UTF16_BE + b"\0{", "(BOM) of UTF-16"),
        (codecs.BOM_UTF8, "(BOM) of UTF-8"),
    ],
)
def test_a_byte_order_mark_is_named(server: Server, raw: bytes, words: str) -> None:
    answer = talk(server, headers(), body(raw))[-1]
    assert refusal(answer) == (400, "invalid_input")
    assert words in json.loads(answer.immediate_response.body)["error"]["message"]


def test_what_is_not_asked_for_is_answered_at_once(server: Server) -> None:
    (answer,) = talk(server, headers(ends=True))
    common = answer.request_headers.response
    assert not common.header_mutation.set_headers
    assert list(common.header_mutation.remove_headers) == OWN_HEADERS
    answers = talk(
        server,
        pb.ProcessingRequest(response_headers={}),
        pb.ProcessingRequest(response_body={"body": b"data: 1\n\n"}),
        pb.ProcessingRequest(response_trailers={}),
    )
    assert [a.ByteSize() for a in answers] == [2, 2, 2]


@pytest.mark.parametrize(
    ("messages", "status", "code"),
    [
        ((headers(), body(b"{")), 400, "invalid_input"),
        ((headers(), body(b'{"model": "auto"}')), 400, "invalid_input"),
        ((headers(x_modelsat_budget_usd="0"), body()), 400, "no_eligible_candidate"),
        ((headers(content_length=str(LIMIT + 1)), body()), 413, "body_too_large"),
        ((headers(), body(b" " * (LIMIT + 1))), 413, "body_too_large"),
        ((headers(DUPLEX), *[body(b" " * 4_000_000, False)] * 3), 413, "body_too_large"),
        (
            (headers(), body(b'{"model": "auto", "prompt": "' + b"x" * 60_000 + b'"}')),
            400,
            "invalid_input",
        ),
        ((headers(content_encoding="gzip"), body()), 415, "unsupported_media_type"),
        ((headers(DUPLEX, content_type="image/png"), body()), 415, "unsupported_media_type"),
        ((headers(STREAMED), body()), 500, "unsupported_body_mode"),
        ((headers(PARTIAL), body()), 500, "unsupported_body_mode"),
        ((body(),), 500, "protocol_error"),
    ],
)
def test_errors_are_immediate_responses(
    server: Server, messages: tuple[Any, ...], status: int, code: str
) -> None:
    assert refusal(talk(server, *messages)[-1]) == (status, code)


EMBEDDINGS = {":path": "/v1/embeddings"}


def test_ollamas_paths_take_any_content_type_as_ollama_does(server: Server) -> None:
    for declared in ("application/x-www-form-urlencoded", "text/plain", ""):
        sent = headers(content_type=declared, **{":path": "/api/chat"})
        _, second = talk(server, sent, body())
        assert "x-selected-model" in set_by(second.request_body.response)
    form = headers(content_type="application/x-www-form-urlencoded")
    assert refusal(talk(server, form, body())[-1]) == (415, "unsupported_media_type")


def test_a_body_that_comes_twice_is_answered_once(server: Server) -> None:
    for mode in (BUFFERED, DUPLEX):
        answers = talk(server, headers(mode), body(), body(), body(b"x"))
        kinds = [answer.WhichOneof("response") for answer in answers]
        assert kinds == ["request_headers", "request_body"]


def test_what_is_not_routed_passes_however_large(server: Server) -> None:
    (answer,) = talk(server, headers(content_length=str(LIMIT + 1), **EMBEDDINGS))
    assert not set_by(answer.request_headers.response)
    _, answer = talk(server, headers(**EMBEDDINGS), body(b" " * (LIMIT + 1)))
    assert not set_by(answer.request_body.response)
    named = b'{"model": "named"}'
    _, answer = talk(server, headers(**EMBEDDINGS), body(named))
    assert set_by(answer.request_body.response)["x-selected-model"] == "named"
    pieces = [named, b" " * LIMIT, b"x" * 70_000, b"y"]
    messages = [body(piece, piece is pieces[-1]) for piece in pieces]
    first, *chunks = talk(server, headers(DUPLEX, **EMBEDDINGS), *messages)
    assert not set_by(first.request_headers.response)
    echoed = [c.request_body.response.body_mutation.streamed_response for c in chunks]
    assert b"".join(e.body for e in echoed) == b"".join(pieces)
    assert [e.end_of_stream for e in echoed] == [False] * (len(echoed) - 1) + [True]


def test_envoy_does_not_hold_a_body_that_passes(server: Server) -> None:
    """Without it an upload beyond Envoy's buffer was answered with 413 on a busy machine."""
    upload = {":path": "/v1/files", "content-type": "multipart/form-data; boundary=x"}
    (answer,) = talk(server, headers(**upload))
    assert answer.HasField("mode_override")
    assert answer.mode_override.request_body_mode == pb.NONE
    for others in (
        talk(server, headers(), body()),
        talk(server, headers(DUPLEX, **upload), body()),
    ):
        assert not any(each.HasField("mode_override") for each in others)


COUNTED = b'{"model": "auto", "input": ["a", "b"], "messages": [{"role": "user", "content": "a"}]}'


def model_on(server: Server, path: str, raw: bytes = COUNTED, **more: str) -> str:
    """Return the model that a body has after ext_proc; every other byte is as before."""
    common = talk(server, headers(**{":path": path}, **more), body(raw))[-1].request_body.response
    model = str(json.loads(common.body_mutation.body)["model"])
    assert common.body_mutation.body == raw.replace(b'"auto"', json.dumps(model).encode())
    changed = set_by(common)
    assert changed["x-selected-model"] == model
    assert "x-modelsat-decision-id" not in changed
    return model


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages/count_tokens",
        "/v1/messages/count_tokens?beta=true",
        "/v1/responses/compact",
        "/v1/responses/input_tokens",
        "/v1/responses/resp_123",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/images/generations",
        "/v1/audio/speech",
        "/v1/moderations",
        "/v1/batches",
    ],
)
def test_a_path_without_a_choice_gets_a_model_that_exists(server: Server, path: str) -> None:
    names = {"01-ai/Yi-6B-Chat" if n == "yi-6b-chat" else n for n in registered(server)}
    assert model_on(server, path) in names
    allowed = {"x_modelsat_allowed_candidates": "yi-6b-chat"}
    assert model_on(server, path, **allowed) == "01-ai/Yi-6B-Chat"


def test_a_path_without_a_choice_gets_the_model_of_its_session(server: Server) -> None:
    session = {"x_modelsat_session": "counts as it goes"}
    for wanted in ("yi-6b-chat", "mathstral-7b-v0.1"):
        chosen = {"x_modelsat_allowed_candidates": wanted}
        _, second = talk(server, headers(**session, **chosen), body())
        model = set_by(second.request_body.response)["x-selected-model"]
        assert model_on(server, "/v1/messages/count_tokens", **session) == model


def test_a_path_without_a_choice_is_refused_for_an_invalid_policy(server: Server) -> None:
    sent = headers(**EMBEDDINGS, x_modelsat_budget_usd="-1")
    assert refusal(talk(server, sent, body(COUNTED))[-1]) == (400, "invalid_input")


def registered(server: Server) -> list[str]:
    with Client(server.address) as client:
        return [candidate.id for candidate in client.list_candidates()]


def test_a_large_body_is_read_within_the_timeout(tmp_path: Path) -> None:
    flags = ("--extproc-address", "127.0.0.1:0", "--extproc-timeout-ms", "1")
    large = b'{"model": "named", "padding": "' + b"\\n" * 2_000_000 + b'"}'
    with serving(tmp_path / "s.sqlite", *flags) as server:
        answers = talk(server, headers(**EMBEDDINGS), body(large))
    assert refusal(answers[-1]) == (504, "deadline_exceeded")


def test_a_wrong_configuration_does_not_fill_the_log(server: Server) -> None:
    with grpc.insecure_channel(server.extproc_address) as channel:
        for _ in range(100):
            list(stubs.ExternalProcessorStub(channel).Process(iter([headers(PARTIAL)]), timeout=30))
    assert server.printed().count("request_body_mode is BUFFERED_PARTIAL") < 100


async def test_a_body_that_does_not_arrive_is_408() -> None:
    async def half() -> AsyncIterator[Any]:
        yield headers(DUPLEX)
        yield body(BODY[:10], False)
        await asyncio.sleep(60)

    router: Any = None  # nothing is routed
    gateway = Gateway(router, options_from(Settings()))
    processor = ExternalProcessor(gateway, Telemetry(), body_timeout_s=0.1)
    context = SimpleNamespace(invocation_metadata=tuple)
    answers = [answer async for answer in processor.Process(half(), context)]
    assert [refusal(a) for a in answers] == [(408, "body_timeout")]
    assert gateway.memory.used_bytes == 0


def test_all_bodies_together_are_bounded_and_counted_exactly(tmp_path: Path) -> None:
    """Two of 9 MB do not fit into 16 MiB; however the first one ends, it is given back."""
    padded = json.dumps({**ASKED, "padding": "x" * 9_000_000}).encode()
    flags = ("--extproc-address", "127.0.0.1:0", "--extproc-max-buffered-mb", "16")
    flags += ("--extproc-timeout-ms", "20000")
    with (
        serving(tmp_path / "s.sqlite", *flags) as server,
        grpc.insecure_channel(server.extproc_address) as channel,
    ):

        def last(*messages: Any) -> Any:
            return talk(server, *messages)[-1]

        def routed() -> bool:
            answer = last(headers(), body(padded))
            if answer.HasField("immediate_response"):
                assert refusal(answer) == (503, "too_many_bodies")
                changed = answer.immediate_response.headers.set_headers
                assert "retry-after" in {h.header.key for h in changed}
                return False
            return True

        def attempts() -> Iterator[int]:
            deadline = time.monotonic() + PATIENCE_S
            yield from itertools.takewhile(lambda _: time.monotonic() < deadline, itertools.count())

        def assert_room() -> None:
            assert any(routed() for _ in attempts())

        ended = threading.Event()

        def half() -> Iterator[Any]:
            yield headers(DUPLEX)
            yield body(padded, False)
            ended.wait(PATIENCE_S)

        def assert_held_until_cancelled() -> None:
            for _ in attempts():
                call = stubs.ExternalProcessorStub(channel).Process(half())
                time.sleep(0.2)  # or it comes while the other one is there, and is refused
                refused = not routed()
                call.cancel()
                if refused:
                    return
            raise AssertionError("two of them fit")

        assert_room()
        for _ in range(3):
            assert_held_until_cancelled()
            assert_room()
            assert refusal(last(headers(), body(b"{" * 9_000_000))) == (400, "invalid_input")
            assert_room()
        ended.set()


def test_overload_and_deadline_have_their_status(tmp_path: Path) -> None:
    flags = ("--extproc-address", "127.0.0.1:0", "--score-cache-mb", "0", "--max-queue-size", "1")
    with serving(tmp_path / "s.sqlite", *flags, "--extproc-timeout-ms", "1") as server:
        assert refusal(talk(server, headers(), body())[-1])[0] in (429, 504)


def test_answers_are_counted_by_their_code(server: Server) -> None:
    port = re.search(r"metrics on port (\d+)", server.printed())
    assert port is not None

    def counted() -> Counter[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=30) as page:
            text = page.read().decode()
        line = r'^modelsat_extproc_responses_total{code="(\w+)"} (\S+)$'
        return Counter({c: int(float(n)) for c, n in re.findall(line, text, re.MULTILINE)})

    before = counted()
    talk(server, headers(), body())
    talk(server, headers(DUPLEX), body())
    talk(server, headers(ends=True))
    talk(server, headers(), body(b'{"model": "named"}'))
    talk(server, headers(), body(b"{"))
    talk(server, headers(content_length=str(LIMIT + 1)))
    talk(server, headers())
    expected = {"routed": 2, "passed": 2, "invalid_input": 1, "body_too_large": 1}
    assert counted() - before == expected


def test_health_reflects_the_service(server: Server) -> None:
    name = "envoy.service.ext_proc.v3.ExternalProcessor"
    with grpc.insecure_channel(server.extproc_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_decision_joins_the_trace_of_the_http_request(tmp_path: Path) -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collecting() as collector:
        flags = ("--extproc-address", "127.0.0.1:0", "--otlp-endpoint", collector.address)
        with serving(tmp_path / "s.sqlite", *flags) as server:
            talk(server, headers(traceparent=f"00-{trace}-{span}-01"), body())
            talk(server, headers(x_modelsat_budget_usd="0"), body())
            ours, refused = collector.await_spans(lambda s: s.name.endswith("/Process"), 2)
            phases = collector.await_spans(lambda s: s.parent_span_id == ours.span_id, 5)
    assert (ours.trace_id.hex(), ours.parent_span_id.hex()) == (trace, span)
    assert ours.status.code == ours.status.STATUS_CODE_UNSET
    assert (refused.status.code, refused.status.message) == (
        refused.status.STATUS_CODE_ERROR,
        "FAILED_PRECONDITION",
    )
    assert {p.name for p in phases} == {"tokenize", "queue", "inference", "scoring", "selection"}


async def test_random_sequences_of_messages(server: Server) -> None:
    result = await fuzz(server.extproc_address, 7, range(600))
    assert result.failures == []
    assert {"OK", "INVALID_ARGUMENT", "request_headers", "request_body"} <= set(result.responses)
    assert server.process.poll() is None
