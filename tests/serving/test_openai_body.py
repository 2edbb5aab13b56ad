"""Reading and splicing request bodies: every other byte survives, whatever the body looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.api.conversation.reading import read_body
from engine.api.errors import InvalidInputError
from engine.serving.extproc.body import is_routed, parse, with_model

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
        key = draw(KEYS.filter(lambda k: k.casefold() != "model"))
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
@example(b'{"model": null, "Model": null}')  # upstreams that ignore capitals take the last
def test_what_is_accepted_is_what_json_accepts(raw: bytes | str) -> None:
    raw = raw.encode() if isinstance(raw, str) else raw
    try:
        expected = json.loads(raw.decode())
    except (ValueError, RecursionError):
        expected = None
    try:
        assert parse(raw).members == expected
    except InvalidInputError:
        refused = b"NaN" in raw or b"Infinity" in raw or raw.lower().count(b'"model"') > 1
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
        (b'{"a": NaN}', "NaN, Infinity, or a number of more than 4,300 digits"),
        (b'{"a": ' + b"1" * 5000 + b"}", "NaN, Infinity, or a number of more than 4,300 digits"),
        (b'{"a": ' + b"[" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'\xef\xbb\xbf{"model": "auto"}', "byte order mark"),
        (b'{"model": "auto", "mod\\u0065l": "secret"}', "appears 2 times"),
        (b'{"model": "auto", "model": "auto"}', "appears 2 times"),
        (b'{"model": "auto", "Model": "secret"}', "appears 2 times"),
        (b'{"MODEL": "secret", "x": 1, "model": "auto"}', "appears 2 times"),
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
    parsed = parse(json.dumps({"messages": [{"role": "user", "content": text}]}).encode())
    assert read_body(parsed.members).ask == text.strip()


def test_a_model_that_is_no_string_is_none() -> None:
    assert parse(b'{"model": {"model": "auto"}}').model is None


def test_paths() -> None:
    routed = ("/v1/chat/completions", "/v1/messages?beta=true", "/openai/deployments/x/responses/")
    assert all(map(is_routed, routed))
    others = ("/v1/models", "/v1/embeddings", "/v1/messages/count_tokens", "", "/")
    assert not any(map(is_routed, others))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat%2Fcompletions",
        "/v1/chat/completion%73?beta=true",
        "/v1/chat/completion%2573",
        "/v1//chat//completions//",
        "/V1/Chat/Completions",
        "/v1/chat;a=b/completions;c",
        "/v1/messages#x",
        "/openai/deployments/a%3Fb/chat/completions",
        "/v1beta/models/m:generatecontent",
    ],
)
def test_another_spelling_of_a_path_gets_around_no_list(path: str) -> None:
    """Kind: the gateway's allow list binds named models too. Else such a body passes unread."""
    assert is_routed(path)
