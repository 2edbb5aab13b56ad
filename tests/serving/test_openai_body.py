"""Reading and splicing request bodies: every other byte survives, whatever the body looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.api.errors import InvalidInputError
from engine.api.openai import MAX_PARTS, turns
from engine.api.policy import Policy
from engine.api.proto import instruction_from
from engine.client.requests import Turn, route_request
from engine.pb import router_service_pb2 as pb
from engine.replay.log import COLUMNS, PastRequest, past_request
from engine.serving.extproc.body import (
    BodyInstruction,
    instruction,
    is_routed,
    parse,
    with_model,
)

SPACE = st.text(alphabet=" \t\n\r", max_size=3)
KEYS = st.sampled_from(["model", "Model", "models", 'mo"del', "\\", "", "é", "😀"]) | st.text()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
).map(lambda v: json.loads(json.dumps(v)) if not isinstance(v, float) else v)
# The same key, as different clients may write it.
MODEL_KEYS = st.sampled_from(['"model"', '"mod\\u0065l"', '"\\u006dodel"'])


@st.composite
def bodies(draw: Any) -> tuple[str, str, str]:
    """(before, value of model, after): a JSON object in pieces."""

    def literal(value: Any) -> str:
        return json.dumps(value, ensure_ascii=draw(st.booleans()))

    def member() -> str:
        key = draw(KEYS.filter(lambda k: k != "model"))
        value = draw(VALUES | st.just({"model": "nested"}) | st.just('{"model": "text"}'))
        return f"{literal(key)}{draw(SPACE)}:{draw(SPACE)}{literal(value)}{draw(SPACE)}"

    before = [member() for _ in range(draw(st.integers(0, 3)))]
    after = [member() for _ in range(draw(st.integers(0, 3)))]
    head = f"{draw(SPACE)}{{{draw(SPACE)}" + "".join(f"{m}," for m in before)
    head += f"{draw(SPACE)}{draw(MODEL_KEYS)}{draw(SPACE)}:{draw(SPACE)}"
    tail = "".join(f",{draw(SPACE)}{m}" for m in after) + f"{draw(SPACE)}}}{draw(SPACE)}"
    return head, literal(draw(st.text())), tail


def utf8(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


@given(bodies().filter(lambda parts: utf8("".join(parts))), st.text().filter(utf8))
def test_only_the_value_of_model_changes(parts: tuple[str, str, str], name: str) -> None:
    before, model, after = parts
    raw = (before + model + after).encode()
    body = parse(raw)
    assert body.model == json.loads(model)
    assert body.members == json.loads(raw)
    assert (
        with_model(raw, body.model_position, name) == (before + json.dumps(name) + after).encode()
    )


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode) | VALUES.map(json.dumps))
@example(b'{"a": Infinity}')  # which json.loads takes, and JSON has not
@example(b'{"a": [NaN, -Infinity]}')
def test_what_is_accepted_is_what_json_accepts(raw: bytes | str) -> None:
    raw = raw.encode() if isinstance(raw, str) else raw
    try:
        expected = json.loads(raw.decode())
    except (ValueError, RecursionError):
        expected = None
    try:
        assert parse(raw).members == expected
    except InvalidInputError:
        refused = b"NaN" in raw or b"Infinity" in raw or raw.count(b'"model"') > 1
        assert refused or not isinstance(expected, dict)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "expected '{'"),
        (b"[1]", "expected '{'"),
        (b'{"model": "auto"} {}', "expected the end"),
        (b'{"model": "auto",}', "expected a key"),
        (b'{"model" "auto"}', "expected ':'"),
        (b'{"a": [1, 2}', "not a valid JSON object"),
        (b'{"a": NaN}', "a number that cannot be parsed"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number that cannot be parsed"),
        (b'{"a": ' + b"[" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'\xef\xbb\xbf{"model": "auto"}', "expected '{'"),
        (b'{"model": "auto", "mod\\u0065l": "secret"}', "appears 2 times"),
        (b'{"model": "auto", "model": "auto"}', "appears 2 times"),
        (b'{"model": "auto"' + b', "a": 1' * 1000 + b"}", "more than 1000 members"),
        (b'{"a": [' + b"[]," * 250_000 + b"[]]}", "more than 250000 values"),
        (b'{"a": [' + b'"\\"",' * 150_000 + b"[]]}", "more than 250000 values"),
        (b'"' * 1_000_000, "more than 250000 values"),
        (b'{"a": "' + b"," * 300_000 + b"}", "not a valid JSON object"),
    ],
)
def test_unparsable_bodies_are_refused_without_quoting_them(raw: bytes, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        parse(raw)
    assert "secret" not in str(caught.value)


def test_a_long_text_is_no_multitude_of_values() -> None:
    text = 'a, [b], {c: "d\\n"} ' * 100_000
    assert chat(("user", text)).text == text


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{}] * 10_001},
        {"input": [7] * 10_001},
        {"prompt": ["a"] * 10_001},
        {"messages": [{"role": "user", "content": ["a"] * 100}] * 100},
        {"messages": [{"content": [{"type": "tool_result", "content": ["a"] * 10_000}]}]},
        {"system": [{"text": [{}] * 10_000}], "prompt": "Hi"},
    ],
)
def test_more_parts_than_anyone_sends_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="turns and parts"):
        instruction(parse(json.dumps(body).encode()))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([pb.Message()] * (MAX_PARTS + 1), "has 10001 turns; at most 10000 are read"),
        ([pb.Message(text_parts=["a"] * 101)] * 100, "has 10100 texts in its turns; at most 10000"),
    ],
)
def test_more_turns_than_anyone_sends_are_refused_before_they_are_read(
    given: list[pb.Message], why: str
) -> None:
    """Their roles are wrong too, which is found only by walking through them."""
    request = pb.RouteRequest(conversation=pb.Conversation(messages=given))
    with pytest.raises(InvalidInputError, match=why):
        instruction_from(request, 1_000_000)


def test_a_model_that_is_no_string_is_none() -> None:
    assert parse(b'{"model": {"model": "auto"}}').model is None


def chat(*turns: tuple[str, Any], **more: Any) -> BodyInstruction:
    messages = [{"role": role, "content": content} for role, content in turns]
    return instruction(parse(json.dumps({"messages": messages, **more}).encode()))


def test_chat_completions() -> None:
    found = chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?"))
    assert (found.text, found.context_chars) == ("Why?", len("Be brief.HiYes?"))
    assert (found.modalities, found.features, found.answer_tokens) == ((), (), 0)
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": "data:..."}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "text", "text": "this?"},
    ]
    tool = {"type": "function", "function": {"name": "f"}}
    schema = {"type": "json_schema"}
    found = chat(("user", parts), tools=[tool], response_format=schema, max_tokens=9)
    assert found == BodyInstruction(
        "What is\nthis?", len(json.dumps([tool])), ("audio", "image"), ("json_mode", "tools"), 9
    )


def test_a_tool_result_is_not_the_question_and_is_counted() -> None:
    result = [{"type": "tool_result", "content": [{"type": "text", "text": "42 degrees"}]}]
    asked = [{"role": "user", "content": "How warm is it?"}, {"role": "tool", "content": "42"}]
    assert instruction(parse(json.dumps({"messages": asked}).encode())).text == "How warm is it?"
    anthropic = {"system": [{"type": "text", "text": "Be brief."}], "messages": asked[:1]}
    found = instruction(parse(json.dumps(anthropic).encode()))
    assert (found.text, found.context_chars) == ("How warm is it?", 9)
    assert chat(("user", result)).text == "42 degrees"
    found = chat(("user", "How warm is it?"), ("assistant", []), ("user", result))
    assert (found.text, found.context_chars) == ("How warm is it?", len("42 degrees"))


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "Why?"},
        {"prompt": ["Why?"]},
        {"input": "Why?", "instructions": "Be brief."},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Why?"}]}]},
        {"input": [{"role": "user", "content": "Why?"}, {"type": "reasoning", "id": "r1"}]},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "user", "content": []}]},
        {"messages": [7, None, {"role": "user"}, {"role": "user", "content": "Why?"}]},
        {"messages": [{"role": "system", "content": "Why?"}]},
    ],
)
def test_other_bodies(body: dict[str, Any]) -> None:
    assert instruction(parse(json.dumps(body).encode())).text == "Why?"


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}]},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"text": "now?"}]},
        {"role": "user", "content": [{"type": "tool_result", "content": [{"text": "42"}]}]},
        {"role": "developer", "content": [{"content": [{"text": "Be "}, {"text": "brief."}]}]},
    ],
)
def test_a_gateway_route_and_a_replay_read_the_same_turn(last: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "Why?"}, last]}
    found = instruction(parse(json.dumps(body).encode()))
    said = [Turn(role, text) for role, text in turns(body)]
    request = route_request(said, Policy(), None, dry_run=False)
    assert instruction_from(request, 100) == (found.text, found.context_chars)
    replayed = past_request(body, COLUMNS)
    assert isinstance(replayed, PastRequest)
    assert (replayed.text, replayed.context_chars) == (found.text, found.context_chars)


@pytest.mark.parametrize("body", [{}, {"prompt": [1, 2]}, {"messages": []}, {"input": " "}])
def test_nothing_to_read_is_refused(body: dict[str, Any]) -> None:

    with pytest.raises(InvalidInputError, match="no text to route by"):
        instruction(parse(json.dumps(body).encode()))


def test_half_a_character_does_not_stop_a_request() -> None:
    assert instruction(parse(b'{"prompt": "cut \\ud83d"}')).text == "cut ?"


@given(VALUES, VALUES, VALUES)
def test_no_shape_of_a_body_fails_otherwise(a: Any, b: Any, c: Any) -> None:
    for name in ("messages", "input", "prompt", "system"):
        turn = {"role": a, "content": b, "type": c}
        shapes = (a, [a, b], [turn], [{"content": [b, turn]}])
        for shape in shapes:
            try:
                raw = json.dumps({name: shape, "tools": b, "text": c, "max_tokens": a}).encode()
                found = instruction(parse(raw))
            except InvalidInputError:
                continue
            assert found.text.strip()
            assert found.context_chars >= 0


def test_paths() -> None:
    routed = ("/v1/chat/completions", "/v1/messages?beta=true", "/openai/deployments/x/responses/")
    assert all(map(is_routed, routed))
    others = ("/v1/models", "/v1/embeddings", "/v1/messages/count_tokens", "", "/")
    assert not any(map(is_routed, others))
