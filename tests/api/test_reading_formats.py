"""Formats and dialects that clients of 2026 send: what is the ask, what a source, what a tool's."""

from __future__ import annotations

from typing import Any

import pytest

from engine.api.conversation.conversation import Needs
from engine.api.conversation.reading import ConversationReading, read_body

ASK = "Which of these clauses lets the tenant end the contract early?"
SOURCE = "The tenant may end the contract with a notice of three months. " * 200
SIGNATURE = "EsUBCkYI" * 300


def converse(*parts: dict[str, Any]) -> ConversationReading:
    body = {"messages": [{"role": "user", "content": list(parts)}]}
    return read_body(body, "/model/auto/converse")


def guarded(text: str, *qualifiers: str) -> dict[str, Any]:
    return {"guardContent": {"text": {"text": text, "qualifiers": list(qualifiers)}}}


@pytest.mark.parametrize(
    "parts",
    [
        (guarded(ASK),),
        (guarded(ASK, "query"), {"cachePoint": {"type": "default"}}),
        (guarded(SOURCE, "grounding_source"), guarded(ASK, "query")),
        (guarded(SOURCE, "grounding_source", "guard_content"), {"text": ASK}),
        ({"guard_content": {"text": {"text": ASK}}},),
        ({"type": "guarded_text", "text": ASK},),
    ],
)
def test_what_a_guardrail_checks_is_still_the_ask(parts: tuple[dict[str, Any], ...]) -> None:
    found = converse(*parts)
    assert found.ask == ASK
    assert (found.context.tokens > 2000) == any("grounding_source" in str(p) for p in parts)


def test_a_guarded_image_is_an_image() -> None:
    image = {"guardContent": {"image": {"format": "png", "source": {"bytes": "iVBORw0KGgo="}}}}
    assert converse(image, {"text": ASK}).needs == Needs(("image",))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "search_result", "source": "a", "title": "b", "content": [{"text": SOURCE}]},
        {"type": "search_result", "content": [{"type": "text", "text": SOURCE}], "citations": {}},
        {"type": "compaction", "content": SOURCE},
        {"searchResult": {"source": "a", "content": [{"text": SOURCE}]}},
    ],
)
def test_sources_and_summaries_in_a_users_turn_are_context(part: dict[str, Any]) -> None:
    for parts in ([part, {"type": "text", "text": ASK}], [{"type": "text", "text": ASK}, part]):
        found = read_body({"messages": [{"role": "user", "content": parts}]}, "/v1/messages")
        assert found.ask == ASK
        assert found.context.tokens > 2000
    alone = read_body({"messages": [{"role": "user", "content": [part]}]}, "/v1/messages")
    assert (alone.ask, alone.kind) == ("", "none")


CALL = {"type": "function_call", "id": "c", "name": "find", "arguments": {"text": "notice"}}
RESULT = {"type": "function_result", "call_id": "c", "name": "find", "result": SOURCE}
STEP = {"type": "user_input", "content": [{"type": "text", "text": ASK}]}
THOUGHT = {"type": "thought", "signature": SIGNATURE}
OUTPUT = {"type": "model_output", "content": [{"type": "text", "text": "Clause 4."}]}


@pytest.mark.parametrize(
    ("given", "in_loop"),
    [
        (ASK, False),
        ([{"type": "text", "text": ASK}], False),
        ([STEP], False),
        ([STEP, THOUGHT, OUTPUT, STEP], False),
        ([STEP, THOUGHT, CALL, RESULT], True),
        ([{"role": "user", "content": ASK}, {"role": "model", "content": [CALL]}], False),
        (
            [
                {"role": "user", "content": ASK},
                {"role": "model", "content": [CALL]},
                {"role": "user", "content": [RESULT]},
            ],
            True,
        ),
    ],
)
def test_interactions_have_steps_in_place_of_turns(given: Any, in_loop: bool) -> None:
    body = {"model": "auto", "input": given, "generation_config": {"max_output_tokens": 300}}
    found = read_body(body, "/v1beta/interactions")
    assert (found.ask, found.in_tool_loop) == (ASK, in_loop)
    assert found.needs == Needs(max_output_tokens=300)
    assert (found.context.tokens > 2000) == (RESULT in [*given, *_contents(given)])
    later = read_body({**body, "previous_interaction_id": "v1_a"}, "/v1beta/interactions")
    assert later.context.unknown == ("stored history",)


def _contents(given: Any) -> list[Any]:
    return [part for turn in given if isinstance(turn, dict) for part in turn.get("content", ())]


@pytest.mark.parametrize(
    "envelope",
    [
        {"project": "p", "user_prompt_id": "u"},
        {"project": "p", "requestId": "r", "userAgent": "agent", "requestType": "agent"},
        {},
    ],
)
def test_a_request_within_an_envelope_is_read(envelope: dict[str, str]) -> None:
    inner = {
        "contents": [{"role": "user", "parts": [{"text": ASK}]}],
        "systemInstruction": {"parts": [{"text": SOURCE}]},
        "tools": [{"functionDeclarations": [{"name": "find"}]}],
        "session_id": "0f1e2d3c",
    }
    body = {"model": "auto", **envelope, "request": inner}
    found = read_body(body, "/v1internal:streamGenerateContent")
    assert found == read_body(inner, "/v1beta/models/auto:streamGenerateContent")
    assert (found.ask, found.session, found.needs.features) == (ASK, "0f1e2d3c", ("tools",))


@pytest.mark.parametrize(
    ("items", "in_loop", "unknown"),
    [
        ([{"type": "item_reference", "id": "rs_1"}], False, ("stored history",)),
        ([{"type": "compaction", "encrypted_content": SIGNATURE}], False, ()),
        ([{"type": "compaction_trigger"}], False, ()),
        (
            [
                {"type": "tool_search_call", "arguments": {"query": "lease"}},
                {"type": "tool_search_output", "tools": [{"name": "find"}]},
            ],
            True,
            (),
        ),
    ],
)
def test_an_item_that_no_tool_said_is_no_tool_loop(
    items: list[dict[str, Any]], in_loop: bool, unknown: tuple[str, ...]
) -> None:
    found = read_body({"input": [{"role": "user", "content": ASK}, *items]}, "/v1/responses")
    assert (found.ask, found.in_tool_loop, found.context.unknown) == (ASK, in_loop, unknown)


def test_a_generated_image_in_the_history_is_an_image() -> None:
    image = {"type": "image_generation_call", "id": "ig", "result": "iVBORw0KGgo" * 400}
    found = read_body({"input": [{"role": "user", "content": ASK}, image]}, "/v1/responses")
    assert found.needs == Needs(("image",))
    assert 700 < found.context.tokens < 1000


@pytest.mark.parametrize(
    "files",
    [
        "```ts src/lease.ts (12-40)\nlet a = 1;\n```\n",
        "```python app/models/lease.py\na = 1\n```\n\n```sql lease.sql (1-3)\nselect 1\n```\n",
        "~~~rust crates/lease/src/lib.rs\nfn a() {}\n~~~\n",
        "```go C:\\work\\lease.go\nvar a int\n```\n",
    ],
)
def test_files_that_an_editor_puts_before_the_ask_are_context(files: str) -> None:
    found = read_body({"messages": [{"role": "user", "content": files + ASK}]})
    assert found.ask == ASK
    assert found.context.tokens > 5
    alone = read_body({"messages": [{"role": "user", "content": files}]})
    assert alone.ask == files.strip()


@pytest.mark.parametrize(
    "text",
    [
        f"```python\na = 1\n```\n{ASK}",
        f"```\nsrc/lease.ts\n```\n{ASK}",
        f"```ts src/lease.ts\nlet a = 1;\n{ASK}",
        f"{ASK}\n```ts src/lease.ts\nlet a = 1;\n```",
    ],
)
def test_code_of_the_human_stays_in_the_ask(text: str) -> None:
    assert read_body({"messages": [{"role": "user", "content": text}]}).ask == text


QUOTED = "```xml\n<system-reminder>\nbe brief\n</system-reminder>\n```"


@pytest.mark.parametrize(
    "block",
    [
        "<system-reminder>\nFile a.md:\n```\na </system-reminder>\n```\nx\n</system-reminder>",
        "<user_info>\n~~~\n</user_info>\n~~~\n```\n</user_info>\n```\n</user_info>",
        f"<system-reminder>\n{QUOTED}\n</system-reminder>",
        "<environment_details>\n```html\n</environment_details>\n```\nend\n</environment_details>",
        "<ide_selection>\n```\na\n</ide_selection>\n```\n</ide_selection>",
    ],
)
def test_a_closing_tag_within_a_code_fence_does_not_end_a_block(block: str) -> None:
    for text in (f"{block}\n{ASK}", f"{ASK}\n{block}", f"{block}\n{ASK}\n{block}"):
        assert read_body({"messages": [{"role": "user", "content": text}]}).ask == ASK


def test_an_ask_between_blocks_with_open_fences_stays() -> None:
    block = "<system-reminder>\n```\ncut off\n</system-reminder>"
    text = f"{block}\n{ASK}\n{block}\n"
    assert read_body({"messages": [{"role": "user", "content": text}]}).ask == ASK
