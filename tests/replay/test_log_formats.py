"""Logs of other programs by name: the same ask, candidate, cost, time and outcome as they recorded.

A column that holds JSON as text is decoded; a value of an optional column never costs the request.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.errors import InvalidInputError
from engine.api.policy import Policy
from engine.datasets.rows import read_rows
from engine.registry.catalog import read_catalog
from engine.replay.formats import COLUMNS, NAMES, FormatReader, detect, log_format
from engine.replay.log import PastRequest, columns_with, past_request
from engine.replay.scoring import candidate_names
from tests.replay.test_replay import TABLE, quick, write_jsonl
from tools.processes import BUNDLE

Record = dict[str, Any]
ASK = "What is 2+2?"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK}]
CHAT_TEXT = json.dumps(CHAT)
NOON = 1780308000.0  # 2026-06-01T10:00:00Z


def read(record: Record, *, columns: Any = COLUMNS) -> PastRequest:
    """The one request of a record."""
    ((form, single),) = FormatReader().requests(record)
    found = past_request(single, columns, None, form)
    assert isinstance(found, PastRequest), found
    return found


def attributes(**values: Any) -> list[Record]:
    """OTLP's attributes; two underscores stand for a dot."""
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue"}
    return [
        {"key": k.replace("__", "."), "value": {kinds[type(v)]: str(v) if type(v) is int else v}}
        for k, v in values.items()
    ]


def otlp(*spans: Record) -> Record:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def event(name: str, **values: Any) -> Record:
    return {"name": name, "attributes": attributes(**values)}


def span(events: list[Record] | None = None, **values: Any) -> Record:
    return {
        "name": "chat",
        "startTimeUnixNano": str(int(NOON * 1e9)),
        "endTimeUnixNano": str(int(NOON * 1e9) + 1_500_000_000),
        "attributes": attributes(gen_ai__request__model="gpt-4o", **values),
        "events": events or [],
    }


NEW_MESSAGES = json.dumps(
    [
        {"role": "user", "parts": [{"type": "text", "content": ASK}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "1", "name": "add"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": "4"}]},
    ]
)
DETAILS = "gen_ai.client.inference.operation.details"
LITELLM = {
    "request_id": "r",
    "call_type": "acompletion",
    "model": "openai/gpt-4o",
    "model_group": "gpt-4o",
    "spend": "0.0001",
    "startTime": "2026-06-01 10:00:00 UTC",
    "prompt_tokens": "12",
    "session_id": "s",
}
LANGFUSE = {
    "id": "o",
    "traceId": "t",
    "type": "GENERATION",
    "startTime": "2026-06-01T10:00:00.000Z",
    "model": "gpt-4o",
    "usageDetails": {"input": 12, "output": 3},
    "costDetails": {"total": 0.0001},
}
HELICONE = {
    "request_created_at": "2026-06-01 10:00:00.000",
    "response_created_at": "2026-06-01 10:00:01.500",
    "request_model": "gpt-4o",
    "costUSD": 0.0001,
    "delay_ms": "1500",
    "prompt_tokens": 12,
}
CASES: list[tuple[str, Record]] = [
    (
        "litellm",  # the handed case: '{}' is no messages, and the time has a zone's name
        {
            **LITELLM,
            "messages": "{}",
            "proxy_server_request": json.dumps({"messages": CHAT, "model": "gpt-4o"}),
        },
    ),
    ("litellm", {**LITELLM, "messages": CHAT_TEXT, "response": '{"choices": []}'}),
    ("litellm", {**LITELLM, "messages": repr(CHAT), "call_type": ""}),
    (
        "litellm",
        {**LITELLM, "proxy_server_request": {"url": "/v1", "body": {"messages": CHAT}}},
    ),
    ("langfuse", {**LANGFUSE, "input": CHAT}),
    ("langfuse", {**LANGFUSE, "input": CHAT_TEXT, "usageDetails": '{"input": 12}'}),
    ("langfuse", {**LANGFUSE, "input": {"messages": CHAT, "tools": []}}),
    ("langfuse", {**LANGFUSE, "input": {"question": ASK}}),
    ("langfuse", {**LANGFUSE, "input": {"args": [], "kwargs": {"messages": CHAT}}}),
    ("langfuse", {**LANGFUSE, "input": json.dumps({"args": [CHAT], "kwargs": {}})}),
    ("langfuse", {**LANGFUSE, "input": {"contents": [{"role": "user", "parts": [{"text": ASK}]}]}}),
    ("langfuse", {**LANGFUSE, "input": [{"type": "human", "content": ASK}]}),
    (
        "langfuse",
        {
            "id": "t",
            "input": "of the trace",
            "sessionId": "s",
            "observations": [{"type": "SPAN", "input": "x"}, {**LANGFUSE, "input": CHAT}],
        },
    ),
    ("helicone", {**HELICONE, "request_body": {"model": "gpt-4o", "messages": CHAT}}),
    ("helicone", {**HELICONE, "request_body": json.dumps({"messages": CHAT})}),
    ("helicone", {**HELICONE, "request_body": json.dumps(json.dumps({"messages": CHAT}))}),
    (
        "openrouter",
        {
            "id": "gen-1",
            "created_at": "2026-06-01T10:00:00+00:00",
            "model": "gpt-4o",
            "total_cost": 0.0001,
            "native_tokens_prompt": 12,
            "tokens_prompt": 12,
            "input": {"messages": CHAT},
        },
    ),
    ("opentelemetry", otlp(span(gen_ai__input__messages=NEW_MESSAGES))),
    ("opentelemetry", otlp(span(gen_ai__prompt__0__role="user", gen_ai__prompt__0__content=ASK))),
    ("opentelemetry", otlp(span(gen_ai__prompt=CHAT_TEXT))),
    ("opentelemetry", otlp(span(input__value=json.dumps({"messages": CHAT})))),
    (
        "opentelemetry",
        otlp(span(llm__input_messages__0__message__content=ASK)),
    ),
    (
        "opentelemetry",
        otlp(
            span(
                [
                    event("gen_ai.system.message", content="Be brief."),
                    event("gen_ai.user.message", content=ASK),
                    event("gen_ai.choice", message="4"),
                ]
            )
        ),
    ),
    (
        "opentelemetry",
        otlp(span([event("gen_ai.content.prompt", gen_ai__prompt=CHAT_TEXT)])),
    ),
    (
        "opentelemetry",
        {
            "name": "chat",
            "context": {"trace_id": "0x1"},
            "start_time": "2026-06-01T10:00:00.000000Z",
            "attributes": {"gen_ai.request.model": "gpt-4o", "gen_ai.input.messages": NEW_MESSAGES},
        },
    ),
    (
        "opentelemetry",  # a flat table of spans
        {
            "attributes.llm.model_name": "gpt-4o",
            "attributes.llm.input_messages": repr(
                [{"message.role": "user", "message.content": ASK}]
            ),
            "start_time": "2026-06-01 10:00:00+00:00",
        },
    ),
    (
        "opentelemetry",  # an event instead of attributes
        otlp(span([event(DETAILS, gen_ai__input__messages=NEW_MESSAGES)])),
    ),
    ("opentelemetry", otlp(span(ai__prompt=json.dumps({"messages": CHAT})))),
    (
        "modelsat",
        {
            "time": "2026-06-01T10:00:00.000Z",
            "decision_id": "d",
            "selected": "candidates/gpt-4o",
            "probabilities": {},
            "text": ASK,
        },
    ),
    ("plain", {"input": CHAT_TEXT, "model": "gpt-4o", "time": NOON * 1000}),  # the handed case
    ("plain", {"prompt": f"['{ASK}']", "model": "gpt-4o", "time": "Mon, 01 Jun 2026 10:00:00 GMT"}),
    ("plain", {"messages": [CHAT], "model": "gpt-4o", "time": "1780308000"}),
    ("plain", {"request": {"messages": CHAT, "model": "gpt-4o"}, "time": NOON}),
    ("plain", {"body": {"prompt": ASK}, "model": "gpt-4o", "time": NOON * 1e6}),
]


@pytest.mark.parametrize(("name", "record"), CASES)
def test_format_is_known_and_read(name: str, record: Record) -> None:
    assert detect(record).name == name
    found = read(record)
    assert found.text == ASK
    assert found.candidate == "gpt-4o"
    assert found.time == pytest.approx(NOON)
    assert found.dropped == ()


def test_figures_of_each_format() -> None:
    of_litellm = read({**LITELLM, "messages": CHAT_TEXT})
    assert (of_litellm.cost, of_litellm.input_tokens, of_litellm.session) == (0.0001, 12, "s")
    assert of_litellm.other_names == ("openai/gpt-4o",)
    scores = [{"name": "correct", "value": 1}]
    of_langfuse = read({**LANGFUSE, "input": CHAT, "scores": scores})
    assert (of_langfuse.cost, of_langfuse.outcome, of_langfuse.output_tokens) == (0.0001, 1, 3)
    of_helicone = read({**HELICONE, "request_body": {"messages": CHAT}, "scores": {"ok": 0.5}})
    assert (of_helicone.latency_s, of_helicone.outcome) == (1.5, 0.5)
    usage = {"gen_ai__usage__input_tokens": 12, "gen_ai__usage__cost": 0.0001}
    of_otel = read(otlp(span(gen_ai__prompt=ASK, gen_ai__conversation__id="s", **usage)))
    assert (of_otel.cost, of_otel.input_tokens, of_otel.session) == (0.0001, 12, "s")
    assert of_otel.latency_s == pytest.approx(1.5)


def test_one_of_several_scores_is_chosen_by_its_name() -> None:
    scores = [{"name": "correct", "value": 1}, {"name": "tone", "value": 0.25}]
    record = {**LANGFUSE, "input": CHAT, "scores": scores}
    several = read(record)
    assert (math.isnan(several.outcome), several.dropped) == (True, ("scores",))
    assert read(record, columns=columns_with(["outcome=scores.tone"])).outcome == 0.25


@pytest.mark.parametrize("write", [json.dumps, str], ids=["JSON", "Python"])
@pytest.mark.parametrize("role", ["system", "user"])
def test_content_that_is_a_list_of_parts_as_text_is_decoded(write: Any, role: str) -> None:
    words = ASK if role == "user" else "Be brief."
    message = {"role": role, "content": write([{"type": "text", "text": words}])}
    record = {"input": [message, CHAT[-1]], "usageDetails": {}, "model": "gpt-4o"}
    turns = read(record).conversation.turns
    assert (turns[0].text, turns[-1].text) == (words, ASK)


@pytest.mark.parametrize("text", ["[urgent] Why?", "[1, 2, 3]", '[{"a": 1}]', "[{'type': 1}]"])
def test_content_that_only_begins_with_a_bracket_is_what_was_asked(text: str) -> None:
    assert read({"messages": [{"role": "user", "content": text}]}).text == text


def test_dotted_path_goes_into_json_text() -> None:
    record = {"log": json.dumps({"call": json.dumps({"messages": CHAT})}), "messages": "Other"}
    assert read(record, columns=columns_with(["messages=log.call.messages"])).text == ASK


def test_every_call_of_an_export_counts_and_other_records_do_not(tmp_path: Path) -> None:
    calls = [span(gen_ai__prompt=f"{ASK} {i}") for i in range(3)]
    tool = span(gen_ai__operation__name="execute_tool", gen_ai__prompt="no request")
    lines: list[Record | str] = [
        otlp(*calls, tool, {"name": "GET /", "attributes": attributes(http__route="/")}),
        otlp(tool),
        {**LITELLM, "call_type": "aembedding", "messages": "no chat"},
        {**LANGFUSE, "type": "SPAN", "input": "no generation"},
        {**LITELLM, "messages": CHAT},
    ]
    report = quick([write_jsonl(tmp_path / "log.jsonl", lines)], tmp_path / "out", 4)
    assert report["requests"] == 4
    log = report["log"]
    assert log["formats"] == {"langfuse": 1, "litellm": 2, "opentelemetry": 2}
    assert (log["other_records"], log["invalid_rows"]["count"]) == (3, 0)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("outcome", 1.5),
        ("cost", "cheap"),
        ("cost", "1,234"),
        ("time", "yesterday"),
        ("time", 1e300),
        ("outcome", [1, 2]),
        ("input_tokens", -1),
    ],
)
def test_value_of_an_optional_column_never_costs_the_request(column: str, value: Any) -> None:
    found = read({"text": ASK, column: value})
    assert (found.text, found.dropped) == (ASK, (column,))
    assert math.isnan(getattr(found, column))


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": "{}"}, "has no instruction in any of the columns messages"),
        ({"messages": '[{"role": "user", "con'}, "column messages holds a list or object that"),
        ({"prompt": "[1, 2, 3]"}, "column prompt holds a list that is not one of messages"),
        ({"prompt": '{"a": 1}'}, "column prompt holds an object that is no request body"),
        ({"messages": [{"role": "narrator", "content": ASK}]}, r"\[0\].role is not one of"),
        ({**LITELLM, "messages": "{}"}, "store_prompts_in_spend_logs"),
        ({**HELICONE, "request_body": None}, "--include-body"),
        ({"model_permaslug": "x", "cost_total": "1"}, "no prompts"),
    ],
)
def test_record_without_readable_request_says_the_column(record: Record, problem: str) -> None:
    ((form, single),) = FormatReader().requests(record)
    found = past_request(single, COLUMNS, None, form)
    assert isinstance(found, str)
    assert re.search(problem, found)


def test_format_by_name_overrides_detection_and_unknown_ones_are_refused() -> None:
    assert log_format("langfuse").name == "langfuse"
    record = {"input": "of Langfuse", "text": "plain"}
    for name, text in (("langfuse", "of Langfuse"), ("plain", "plain")):
        ((form, single),) = FormatReader(log_format(name)).requests(record)
        found = past_request(single, COLUMNS, None, form)
        assert isinstance(found, PastRequest)
        assert found.text == text
    with pytest.raises(InvalidInputError, match="--format: is 'splunk'; expected one of litellm"):
        log_format("splunk")
    assert set(NAMES) >= {name for name, _ in CASES}


def test_spend_log_as_csv(tmp_path: Path) -> None:
    cell = CHAT_TEXT.replace('"', '""')
    path = tmp_path / "spend.csv"
    path.write_text(
        "call_type,spend,startTime,model,model_group,messages\r\n"
        f'acompletion,1e-4,2026-06-01 10:00:00,openai/gpt-4o,gpt-4o,"{cell}"\r\n'
        'acompletion,1e-4,2026-06-01 10:00:00,openai/gpt-4o,gpt-4o,"[{""role"": ""us\r\n'
    )
    good, torn = read_rows(path)
    assert read(good.record or {}).text == ASK
    assert torn.torn


def test_candidate_is_found_under_any_of_its_names() -> None:
    known = read_catalog(BUNDLE / "zoo.json")[0].id
    names = candidate_names(TABLE, [])
    for logged in (known, f"openai/{known}", f"openrouter/openai/{known}", f"x/{known}:free"):
        assert TABLE.candidates[names.row(logged)].id == known
    assert TABLE.candidates[names.row("smart", (f"azure/{known}",))].id == known
    assert names.unknown == {}


def test_deeply_nested_record_is_one_invalid_row(tmp_path: Path) -> None:
    deep = '{"input":' * 400 + '"x"' + "}" * 400
    lines: list[Record | str] = ['{"text":' + "[" * 500 + "]" * 500 + "}", deep, {"text": ASK}]
    report = quick([write_jsonl(tmp_path / "log.jsonl", lines)], tmp_path / "out", 4)
    assert report["requests"] + report["log"]["invalid_rows"]["count"] == 3


CELLS = st.sampled_from([ASK, "", "{}", "[", CHAT_TEXT, "n/a", "1,5", "\ud800", '{"role": "user"}'])
VALUES = st.recursive(
    CELLS | st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.just(CHAT),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            CELLS
            | st.sampled_from(["role", "content", "messages", "value", "attributes", "parts"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
KEYS = sorted(
    {p for paths in COLUMNS.values() for p in paths}
    | {"resourceSpans", "attributes", "events", "spanId", "observations", "usageDetails"}
    | {"gen_ai.input.messages", "gen_ai.prompt.0.content", "call_type", "scores", "type"}
)


@given(record=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), nested=st.booleans())
def test_any_record_is_read_or_refused(record: Record, nested: bool) -> None:
    whole = otlp(record) if nested else record
    for name in (None, *NAMES):
        reader = FormatReader(None if name is None else log_format(name))
        for form, single in reader.requests(whole):
            found = past_request(single, COLUMNS, None, form)
            assert isinstance(found, str | PastRequest)
            json.dumps(found if isinstance(found, str) else found.text)


@pytest.mark.parametrize(
    ("record", "api"),
    [
        ({"path": "/v1/messages", "body": {"messages": CHAT}}, "anthropic.messages"),
        ({"request_path": "/v1/chat/completions?a=1", "messages": CHAT}, "openai.chat"),
        ({"path": "/elsewhere", "messages": CHAT}, ""),
        ({"messages": CHAT}, ""),
        (
            {"call_type": "acompletion", "startTime": 1, "path": "/v1/messages", "messages": CHAT},
            "",
        ),
    ],
)
def test_the_path_of_a_request_says_in_which_api_a_candidate_must_answer(
    record: Record, api: str
) -> None:
    """As behind Envoy. LiteLLM translates between APIs."""
    assert read(record).conversation.needs.constrain(Policy()).required_api == api
