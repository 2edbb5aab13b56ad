"""What a request holds besides its ask, its limits, and the same reading by another way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.conversation.body import from_body
from engine.api.conversation.conversation import MAX_PARTS, Conversation, ConversationTurn
from engine.api.conversation.reading import ConversationReading, read, read_body
from engine.api.errors import InvalidInputError
from engine.api.policy import Policy
from engine.api.proto import reading_from
from engine.client.requests import Turn, route_request
from engine.pb import router_service_pb2 as pb
from engine.replay.log import COLUMNS, PastRequest, past_request
from tests.api.test_reading import ASK, CONVERSE, GEMINI, NEEDS, PNG, REMINDER, chat, user

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


# --- context ---------------------------------------------------------------------------------

BIG = "x = compute(alpha, beta)\n" * 2000
COUNTED: dict[str, dict[str, Any]] = {
    "arguments of a call": {
        "messages": [
            user(ASK)["messages"][0],
            {"role": "assistant", "tool_calls": [{"function": {"name": "w", "arguments": BIG}}]},
        ]
    },
    "input of a tool": {
        "messages": [
            user(ASK)["messages"][0],
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "name": "w", "input": {"text": BIG}}],
            },
        ]
    },
    "thinking": {
        "messages": [
            user(ASK)["messages"][0],
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": BIG, "signature": "s"}],
            },
        ]
    },
    "a document's text": chat(
        (
            "user",
            [
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": BIG},
                },
                {"type": "text", "text": ASK},
            ],
        )
    ),
    "a document's content": chat(
        (
            "user",
            [
                {
                    "type": "document",
                    "source": {"type": "content", "content": [{"type": "text", "text": BIG}]},
                },
                {"type": "text", "text": ASK},
            ],
        )
    ),
    "a function call": {
        "input": [
            {"role": "user", "content": ASK},
            {"type": "function_call", "name": "w", "arguments": BIG},
        ]
    },
    "results of a search": {
        "input": [
            {"role": "user", "content": ASK},
            {"type": "file_search_call", "results": [{"text": BIG}]},
        ]
    },
    "a schema": chat(
        ("user", ASK), response_format={"type": "json_schema", "json_schema": {"description": BIG}}
    ),
    "a schema of responses": {
        "input": ASK,
        "text": {"format": {"type": "json_schema", "schema": {"description": BIG}}},
    },
    "a prediction": chat(("user", ASK), prediction={"type": "content", "content": BIG}),
    "a suffix": {"prompt": ASK, "suffix": BIG},
    "a refusal": {"messages": [user(ASK)["messages"][0], {"role": "assistant", "refusal": BIG}]},
    "tools": chat(("user", ASK), tools=[{"function": {"description": BIG}}]),
    "retrieved documents": chat(("user", ASK), documents=[{"text": BIG}]),
    "a field of no format": chat(("user", ASK), something_new={"deep": [{"text": BIG}]}),
    "arguments in Gemini": {
        "contents": [
            GEMINI,
            {"role": "model", "parts": [{"functionCall": {"name": "w", "args": {"t": BIG}}}]},
        ]
    },
    "a result in Gemini": {
        "contents": [
            GEMINI,
            {
                "role": "user",
                "parts": [{"functionResponse": {"name": "w", "response": {"t": BIG}}}],
            },
        ]
    },
    "a result in Converse": {
        "messages": [
            CONVERSE,
            {"role": "user", "content": [{"toolResult": {"content": [{"json": {"t": BIG}}]}}]},
        ]
    },
    "instructions": {"input": ASK, "instructions": BIG},
}


@pytest.mark.parametrize("body", COUNTED.values(), ids=COUNTED)
def test_every_string_that_the_model_reads_is_counted_once(body: dict[str, Any]) -> None:
    context = read(
        Conversation((ConversationTurn("system", (BIG,)), ConversationTurn("user", ("a",))))
    )
    found = read_body(body)
    assert found.ask == ASK
    assert found.context.tokens == pytest.approx(context.context.tokens, rel=0.1)


def test_ids_credentials_and_binary_data_are_not_counted() -> None:
    secret = "Zanzibar4711" * 500
    body = chat(
        ("user", [{"type": "text", "text": ASK}]),
        metadata={"user_id": secret},
        data_sources=[{"type": "search", "parameters": {"key": secret}}],
        mcp_servers=[{"name": "n", "url": secret, "authorization_token": secret}],
        prompt_cache_key=secret,
    )
    body["messages"].append(
        {
            "role": "assistant",
            "content": "Yes",
            "id": secret,
            "blob": f"data:image/png;base64,{secret}",
        }
    )
    found = from_body(body)
    assert not any("Zanzibar" in text for text in found.other_texts)
    assert found.uncounted == ("data sources",)


# --- no text to route by, limits ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "unknown"),
    [
        (
            chat(
                (
                    "user",
                    [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}],
                )
            ),
            (),
        ),
        (chat(("system", "Be brief."), ("user", [])), ()),
        ({"prompt": [9906, 11, 1917]}, ()),
        ({"prompt": [[9906, 11], [1917]]}, ()),
        ({"prompt": {"id": "pmpt_1", "variables": {"city": "Oslo"}}}, ("stored prompt",)),
        ({"previous_response_id": "resp_1"}, ("stored history",)),
        (
            {
                "previous_response_id": "resp_1",
                "instructions": "Be brief.",
                "input": [{"type": "function_call_output", "call_id": "c", "output": "ok"}],
            },
            ("stored history",),
        ),
        (
            {
                "previous_response_id": "resp_1",
                "input": [{"type": "mcp_approval_response", "approve": True}],
            },
            ("stored history",),
        ),
        ({"input": " "}, ()),
    ],
)
def test_without_text_to_route_by_the_kind_says_so(
    body: dict[str, Any], unknown: tuple[str, ...]
) -> None:
    found = read_body(body)
    assert (found.ask, found.kind, found.context.unknown) == ("", "none", unknown)


def test_token_ids_are_counted() -> None:
    assert read_body({"prompt": list(range(700))}).context.tokens == 700


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"model": "auto"}, {"input": ""}])
def test_what_no_upstream_would_answer_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="no text to route by"):
        read_body(body)


@pytest.mark.parametrize(("count", "parts"), [(25_000, 1), (11_000, 3), (200, 100)])
def test_a_long_conversation_is_read_from_the_end_at_every_entrance(count: int, parts: int) -> None:
    old = {"role": "assistant", "content": [{"type": "text", "text": "word word"}] * parts}
    body = {"messages": [old] * count + [{"role": "user", "content": ASK}]}
    by_body = read_body(body)
    message = pb.Message(role=pb.ROLE_ASSISTANT, text_parts=["word word"] * parts)
    asked = pb.Message(role=pb.ROLE_USER, text_parts=[ASK])
    request = pb.RouteRequest(conversation=pb.Conversation(messages=[message] * count + [asked]))
    by_rpc = reading_from(request, 1000)
    assert by_body.ask == by_rpc.ask == ASK
    whole = read_body({"messages": [old] * 1000 + [{"role": "user", "content": ASK}]})
    expected = whole.context.tokens * count / 1000
    assert by_body.context.tokens == pytest.approx(expected, rel=0.15)
    assert by_rpc.context.tokens == pytest.approx(expected, rel=0.15)
    assert count * (parts + 1) > MAX_PARTS or by_body.context.method != "estimate"


def test_half_a_character_does_not_stop_a_request() -> None:
    assert read_body(json.loads('{"prompt": "cut \\ud83d"}')).ask == "cut ?"


@given(VALUES, VALUES, VALUES)
def test_no_shape_of_a_body_fails_otherwise(a: Any, b: Any, c: Any) -> None:
    for name in ("messages", "input", "prompt", "system", "contents", "tools", "images", "plugins"):
        turn = {"role": a, "content": b, "type": c, "parts": a}
        for shape in (a, [a, b], [turn], [{"content": [b, turn]}], {"parts": c}):
            try:
                found = read_body({name: shape, "tools": b, "text": c, "max_tokens": a})
            except InvalidInputError:
                continue
            assert found.kind == ("instruction" if found.ask.strip() else "none")
            assert found.context.tokens >= 0


def test_values_nested_deeply_do_not_exhaust_the_stack() -> None:
    deep: Any = "end"
    for _ in range(900):
        deep = {"content": [deep]}
    for body in (chat(("user", deep)), chat(("user", ASK), tools=[deep]), {"input": deep}):
        assert read_body(body).kind in ("instruction", "none")


# --- the same reading by way of a client and of a log ----------------------------------------


@pytest.mark.parametrize("body", [b for b, _ in NEEDS.values()] + list(COUNTED.values()))
def test_a_client_sends_what_the_server_reads_as_a_body(body: dict[str, Any]) -> None:
    conversation = from_body(body)
    request = route_request(conversation, Policy(), None, dry_run=False)
    sent = pb.RouteRequest.FromString(request.SerializeToString())
    assert _without_needs(reading_from(sent, 1_000_000)) == _without_needs(read(conversation))
    assert set(request.policy.required_features) == set(conversation.needs.features)
    assert set(request.policy.required_modalities) == set(conversation.needs.modalities)
    assert request.policy.expected_output_tokens == conversation.needs.max_output_tokens


def _without_needs(reading: ConversationReading) -> tuple[Any, ...]:
    return reading.ask, reading.context, reading.kind, reading.in_tool_loop


def test_turns_of_a_client_are_read_as_the_body_of_a_gateway() -> None:
    body = chat(("system", "Be brief."), ("user", f"{ASK}\n{REMINDER}"), ("user", REMINDER))
    turns = [
        Turn("system", "Be brief."),
        Turn("user", f"{ASK}\n{REMINDER}"),
        Turn("user", REMINDER),
    ]
    request = route_request(turns, Policy(), None, dry_run=False)
    assert _without_needs(reading_from(request, 1000)) == _without_needs(read_body(body))


def test_a_replay_reads_the_same_turn() -> None:
    body = chat(("user", ASK), ("user", REMINDER), tools=[{"name": "f"}])
    replayed = past_request(body, COLUMNS)
    assert isinstance(replayed, PastRequest)
    assert read(replayed.conversation) == read_body(body)
