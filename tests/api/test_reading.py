"""What a request asks, needs and holds, whatever the format of its body."""

from __future__ import annotations

from typing import Any

import pytest

from engine.api.conversation.conversation import Conversation, ConversationTurn, Needs
from engine.api.conversation.reading import KEEP, read, read_body
from engine.api.policy import Session
from engine.api.proto import ROLE_NUMBERS, reading_from
from engine.pb import router_service_pb2 as pb
from engine.replay.formats import COLUMNS
from engine.replay.log import PastRequest, past_request

ASK = "Prove that there are infinitely many primes congruent to 3 modulo 4."


def chat(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def user(*texts: str) -> dict[str, Any]:
    return chat(("user", [{"type": "text", "text": text} for text in texts]))


# --- a harness's text in a user turn ---------------------------------------------------------

REMINDER = "<system-reminder>\nThe list of tasks is empty.\n```\n</system-reminder>"
HARNESS = {
    "a reminder in a part of its own": (REMINDER, ASK),
    "a reminder before the ask": (f"{REMINDER}{ASK}",),
    "a reminder after the ask": (f"{ASK}\n\n{REMINDER}",),
    "two reminders in a row": (f"{REMINDER}{REMINDER}\n{ASK}",),
    "output of a hook": (f"<user-prompt-submit-hook>on main</user-prompt-submit-hook>\n{ASK}",),
    "output of a hook as a part": ("SessionStart:startup hook success: ready", ASK),
    "output of a local command": ("<local-command-stdout>42 files</local-command-stdout>", ASK),
    "a summary of earlier turns": (
        "This session is being continued from a previous conversation that was too long.\nIn it…",
        ASK,
    ),
    "arguments of a slash command": (
        "<command-message>prove is running</command-message>\n<command-name>/prove</command-name>\n"
        f"<command-args>{ASK}</command-args>",
    ),
    "an environment block": (
        "<environment_context>\n  <cwd>/home/a</cwd>\n</environment_context>",
        ASK,
    ),
    "a file of instructions": (
        "# AGENTS.md instructions for /home/a\n\n<INSTRUCTIONS>\nUse tabs.\n</INSTRUCTIONS>",
        ASK,
    ),
    "an editor's open files": (
        f"# Context from my IDE setup:\n\n## Open tabs:\n- a.py\n\n## My request for Codex:\n{ASK}",
    ),
    "a query among attachments": (
        "<attached_files>\na.py\n</attached_files>\n<user_info>\nLinux\n</user_info>\n"
        f"<user_query>\n{ASK}\n</user_query>",
    ),
    "a request after its context": (
        "<context>\nToday is Friday.\n</context>\n<reminderInstructions>\nBe brief.\n"
        f"</reminderInstructions>\n<userRequest>\n{ASK}\n</userRequest>",
    ),
    "a task with details": (
        f"<task>\n{ASK}\n</task>",
        "<environment_details>\n# Open tabs\na.py\n</environment_details>",
    ),
    "feedback after a tool's result": (
        "[attempt_completion] Result:\n",
        f"<feedback>\n{ASK}\n</feedback>",
    ),
    "files that the prompt names": (
        f"{ASK}\n--- Content from referenced files ---\nx = 1\n--- End of content ---",
    ),
    "a reminder after the last sentence": (f"{ASK} {REMINDER}",),
    "a reminder within a reminder": (
        f"<system-reminder>\na {REMINDER} b\n</system-reminder>\n{ASK}",
    ),
    "a reminder that mentions its tag": (
        f"<system-reminder>\nTags such as <system-reminder> hold notes.\n</system-reminder>\n{ASK}",
        REMINDER,
    ),
    "a byte order mark and a closing with a blank": (
        f"\ufeff<system-reminder>\nx\n</system-reminder >\n{ASK}",
    ),
    "a letter that grows in small type": (
        f"<system-reminder>\n\u0130stanbul\u0130\u0130\n</system-reminder>\n{ASK}",
    ),
    "notifications and warnings": (
        "<subagent_notification>\n{}\n</subagent_notification>",
        f"<system_warning>Token usage: 1/2</system_warning>\n{ASK}",
    ),
    "a message of another agent": (
        f'<teammate-message teammate_id="lead">\nhello\n</teammate-message>\n{ASK}',
    ),
    "tools that can be loaded": (
        f"<available-deferred-tools>\nWebFetch\n</available-deferred-tools>\n{ASK}",
    ),
    "information on the runtime": (
        "<RUNTIME_INFORMATION>\nhost\n</RUNTIME_INFORMATION>",
        "<EXTRA_INFO>\ngit\n</EXTRA_INFO>",
        ASK,
    ),
    "a working directory": (f"<env>\nWorking directory: /a\n</env>\n{ASK}",),
    "a skill's text": (f"<skill>\n<name>pdf</name>\nbody\n</skill>\n{ASK}",),
    "attached items": (
        ASK,
        "<context>\nThe following items were attached by the user.\n</context>",
    ),
    "a file that was read for the ask": (
        ASK,
        'Called the Read tool with the following input: {"filePath": "/a"}',
        "<path>/a</path>\n<content>1: x</content>",
    ),
    "a note on attachments": (
        f"<userRequest>\n{ASK} (See <attachments> above for file contents.)\n</userRequest>",
    ),
    "a task with a note on its list": (
        f"<task>\n{ASK}\n</task>\n\n# task_progress RECOMMENDED\n\nKeep a list.\n",
        "<environment_details>\nx\n</environment_details>",
    ),
    "an editor's state as JSON": (
        "Here is the user's editor context as a JSON object.\n```json\n{}\n```",
        ASK,
    ),
    "a template of retrieval": (
        "### Task:\nRespond to the user query using the provided context.\n<context>\n"
        f'<source id="1">x</source>\n</context>\n\n{ASK}',
    ),
    "a summary to date": ("Here is a summary of the conversation to date:\n\nx", ASK),
    "tags in capitals": (f"<ADDITIONAL_METADATA>\nx\n</ADDITIONAL_METADATA>\n{ASK}",),
}
NO_ASK = {
    "a reminder": (REMINDER,),
    "a hook's complaint": ("Stop hook feedback:\n- tests were not run",),
    "an interruption": ("[Request interrupted by user for tool use]",),
    "a command without arguments": (
        "<command-name>/clear</command-name>\n<command-args></command-args>",
    ),
    "a tool's result as text": ("[read_file for 'a.py'] Result:", "x = 1"),
    "a state snapshot": ("<state_snapshot>\n<goal>prove</goal>\n</state_snapshot>",),
    "a transcript alone": ("<transcript>\nuser: hello\nassistant: hello\n</transcript>",),
    "a session alone": ("<session>\nfix the test\n</session>\n",),
    "two dumps": ("<conversation_history>\na\n</conversation_history>", "<session>\nb\n</session>"),
    "the text of a skill": ("Base directory for this skill: /home/a/pdf\n\n# PDF\nRead it.",),
    "environment alone": ("<environment_details>\n# Mode\nact\n</environment_details>",),
}


@pytest.mark.parametrize("texts", HARNESS.values(), ids=HARNESS)
def test_what_a_harness_put_into_a_user_turn_is_not_the_ask(texts: tuple[str, ...]) -> None:
    assert read_body(user(*texts)).ask == ASK


@pytest.mark.parametrize("texts", NO_ASK.values(), ids=NO_ASK)
def test_a_turn_of_nothing_else_is_no_ask(texts: tuple[str, ...]) -> None:
    body = user(ASK)
    body["messages"] += [{"role": "assistant", "content": "…"}, *user(*texts)["messages"]]
    assert read_body(body).ask == ASK
    alone = read_body(user(*texts))
    assert (alone.ask, alone.kind) == ("", "none")


@pytest.mark.parametrize(
    "text",
    [
        "What does <system-reminder>be brief</system-reminder> do?",
        "<system-reminder> in my log is never closed. Why?",
        "Explain:\n```xml\n<system-reminder>\nbe brief\n</system-reminder>\n```",
        "~~~\n<environment_details>\nx\n</environment_details>\n~~~\nWho writes this?",
        "<context>\nSales rose by 3 % in March.\n</context>\nSummarize the report.",
        "<transcript>\nA: We met in May.\nB: In June.\n</transcript>\nWho is right?",
        "<session>\n10:00 Opening\n</session>\nTranslate it.",
        "Turn this into a story:\n<task>\nbuild a boat\n</task>\nof 100 words.",
        "<html>\n<body>\n</body>\n</html>\nWhy is this page blank?",
        "[Test A] Result: it fails. Why?",
        "I wrote two lines. <system-reminder>be brief</system-reminder> is the second. Why?",
        "Which of these is custom?\n<my-widget>\n</my-widget>\n<user-card>\n</user-card>",
        "<env>\nPATH=/bin\n</env>\nIs this file well-formed?",
        "Here is a summary of the conversation with my landlord. Answer it for me.",
    ],
)
def test_an_ask_that_quotes_such_tags_stays_whole(text: str) -> None:
    assert read_body(user(text)).ask == text


@pytest.mark.parametrize(
    "texts", [(f"{REMINDER}{ASK}",), (f"{ASK} {REMINDER}",), (REMINDER,), (ASK,)]
)
def test_a_text_without_turns_is_read_as_a_user_turn(texts: tuple[str, ...]) -> None:
    by_text = reading_from(pb.RouteRequest(text="\n".join(texts)), 1000)
    by_body = read_body(user(*texts))
    assert (by_text.ask, by_text.kind) == (by_body.ask, by_body.kind)


@pytest.mark.parametrize(
    "roles", [("system",), ("system", "assistant"), ("tool",), ("system", "tool"), ("assistant",)]
)
def test_turns_without_a_human_have_the_same_ask_at_every_entrance(roles: tuple[str, ...]) -> None:
    turns = [(role, f"{role} text") for role in roles]
    by_body = read_body(chat(*turns))
    messages = [pb.Message(role=ROLE_NUMBERS[r], text_parts=[text]) for r, text in turns]  # type: ignore[index]
    request = pb.RouteRequest(conversation=pb.Conversation(messages=messages))
    assert reading_from(request, 1000).ask == by_body.ask
    logged = past_request({"messages": chat(*turns)["messages"], "model": "a"}, COLUMNS)
    assert isinstance(logged, PastRequest)
    assert logged.text == by_body.ask == ("" if "tool" in roles else turns[-1][1])


def test_the_text_of_a_harness_counts_as_context() -> None:
    lone = read_body(user(ASK)).context.tokens
    assert lone == 0
    assert (
        read_body(
            user("<system-reminder>\n" + "word " * 400 + "</system-reminder>", ASK)
        ).context.tokens
        > 300
    )


# --- formats ---------------------------------------------------------------------------------

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
JSON, TOOLS, BOTH = ("json_mode",), ("tools",), ("json_mode", "tools")
GEMINI = {"role": "user", "parts": [{"text": ASK}]}
CONVERSE = {"role": "user", "content": [{"text": ASK}]}
NEEDS: dict[str, tuple[dict[str, Any], Needs]] = {
    "chat, schema": (
        chat(("user", ASK), response_format={"type": "json_schema", "json_schema": SCHEMA}),
        Needs((), JSON),
    ),
    "chat, plain text": (chat(("user", ASK), response_format={"type": "text"}), Needs()),
    "chat, tools": (
        chat(("user", ASK), tools=[{"type": "function"}], max_completion_tokens=9),
        Needs((), TOOLS, 9),
    ),
    "chat, old functions": (
        chat(("user", ASK), functions=[{"name": "f"}], max_tokens=8),
        Needs((), TOOLS, 8),
    ),
    "responses, schema": (
        {
            "input": ASK,
            "text": {"format": {"type": "json_schema", "schema": SCHEMA}},
            "max_output_tokens": 7,
        },
        Needs((), JSON, 7),
    ),
    "responses, screenshot": (
        {
            "input": [
                {"role": "user", "content": ASK},
                {
                    "type": "computer_call_output",
                    "call_id": "c",
                    "output": {
                        "type": "computer_screenshot",
                        "image_url": f"data:image/png;base64,{PNG}",
                    },
                },
            ]
        },
        Needs(("image",)),
    ),
    "messages, output_config": (
        chat(("user", ASK), output_config={"format": {"type": "json_schema", "schema": SCHEMA}}),
        Needs((), JSON),
    ),
    "messages, output_format": (
        chat(("user", ASK), output_format={"type": "json_schema", "schema": SCHEMA}),
        Needs((), JSON),
    ),
    "messages, servers of tools": (
        chat(
            ("user", ASK),
            mcp_servers=[{"type": "url", "url": "https://tools.example"}],
            max_tokens=6,
        ),
        Needs((), TOOLS, 6),
    ),
    "messages, document": (
        chat(
            (
                "user",
                [
                    {
                        "type": "document",
                        "source": {
                            "type": "base64",
                            "media_type": "application/pdf",
                            "data": "JVBE",
                        },
                    },
                    {"type": "text", "text": ASK},
                ],
            )
        ),
        Needs(("file",)),
    ),
    "vLLM, JSON": (chat(("user", ASK), guided_json=SCHEMA), Needs((), JSON)),
    "vLLM, regex": ({"prompt": ASK, "guided_regex": "[a-z]+"}, Needs((), JSON)),
    "vLLM, choice": (chat(("user", ASK), guided_choice=["yes", "no"]), Needs((), JSON)),
    "NIM, JSON": (chat(("user", ASK), nvext={"guided_json": SCHEMA}), Needs((), JSON)),
    "Mistral, document": (
        chat(
            (
                "user",
                [
                    {"type": "document_url", "document_url": "https://files.example/a.pdf"},
                    {"type": "text", "text": ASK},
                ],
            ),
            max_tokens="64",
        ),
        Needs(("file",), (), 64),
    ),
    "text generation": ({"inputs": ASK, "parameters": {"max_new_tokens": 3.0}}, Needs((), (), 3)),
    "Titan": (
        {"inputText": ASK, "textGenerationConfig": {"maxTokenCount": 2}},
        Needs((), (), 2),
    ),
    "Cohere": (
        {"message": ASK, "chat_history": [{"role": "USER", "message": "Good morning."}]},
        Needs(),
    ),
    "vLLM, structured outputs": (
        chat(("user", ASK), structured_outputs={"json": SCHEMA}),
        Needs((), JSON),
    ),
    "Ollama, chat": (
        {
            "messages": [{"role": "user", "content": ASK, "images": [PNG]}],
            "format": "json",
            "options": {"num_predict": 5},
        },
        Needs(("image",), JSON, 5),
    ),
    "Ollama, generate": (
        {"prompt": ASK, "images": [PNG], "format": SCHEMA},
        Needs(("image",), JSON),
    ),
    "OpenRouter parses files": (
        chat(
            (
                "user",
                [{"type": "file", "file": {"filename": "a.pdf"}}, {"type": "text", "text": ASK}],
            ),
            plugins=[{"id": "file-parser"}],
        ),
        Needs(),
    ),
    "Gemini": (
        {
            "contents": [GEMINI],
            "tools": [{"functionDeclarations": []}],
            "generationConfig": {"responseMimeType": "application/json", "maxOutputTokens": 4},
        },
        Needs((), BOTH, 4),
    ),
    "Gemini in snake case": (
        {
            "contents": [GEMINI],
            "generation_config": {"response_schema": SCHEMA, "max_output_tokens": 4},
        },
        Needs((), JSON, 4),
    ),
    "Gemini, audio": (
        {
            "contents": [
                {
                    "parts": [
                        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
                        {"text": ASK},
                    ]
                }
            ]
        },
        Needs(("audio",)),
    ),
    "Converse": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"image": {"format": "png", "source": {"bytes": PNG}}},
                        {"text": ASK},
                    ],
                }
            ],
            "toolConfig": {"tools": [{"toolSpec": {"name": "f"}}]},
            "inferenceConfig": {"maxTokens": 3},
        },
        Needs(("image",), TOOLS, 3),
    ),
    "InvokeModel": (
        {
            "anthropic_version": "bedrock-2023-05-31",
            "max_tokens": 2,
            "messages": [{"role": "user", "content": ASK}],
        },
        Needs((), (), 2),
    ),
}


@pytest.mark.parametrize(("body", "needs"), NEEDS.values(), ids=NEEDS)
def test_needs_are_read_in_every_providers_words(body: dict[str, Any], needs: Needs) -> None:
    found = read_body(body)
    assert (found.ask, found.needs) == (ASK, needs)


CALL = {"name": "write", "arguments": '{"a": 1}'}
TOOL_LOOPS: dict[str, list[Any]] = {
    "chat": [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": CALL}]},
        {"role": "tool", "tool_call_id": "c", "content": "ok"},
    ],
    "functions": [
        {"role": "assistant", "function_call": CALL},
        {"role": "function", "name": "write", "content": "ok"},
    ],
    "messages": [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "w", "input": {}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": "ok"},
                {"type": "text", "text": REMINDER},
            ],
        },
    ],
    "responses": [
        {"type": "function_call", "call_id": "c", **CALL},
        {"type": "function_call_output", "call_id": "c", "output": "ok"},
    ],
    "custom tool": [
        {"type": "custom_tool_call", "call_id": "c", "name": "w", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"},
    ],
    "Converse": [
        {
            "role": "assistant",
            "content": [{"toolUse": {"toolUseId": "t", "name": "w", "input": {}}}],
        },
        {
            "role": "user",
            "content": [{"toolResult": {"toolUseId": "t", "content": [{"text": "ok"}]}}],
        },
    ],
    "Gemini": [
        {"role": "model", "parts": [{"functionCall": {"name": "w", "args": {}}}]},
        {
            "role": "user",
            "parts": [{"functionResponse": {"name": "w", "response": {"result": "ok"}}}],
        },
    ],
}
FIELDS = {"responses": "input", "custom tool": "input", "Gemini": "contents"}


@pytest.mark.parametrize("name", TOOL_LOOPS)
def test_in_a_tool_loop_the_ask_stays_and_a_session_keeps_its_candidate(name: str) -> None:
    first = (
        GEMINI if name == "Gemini" else CONVERSE if name == "Converse" else user(ASK)["messages"][0]
    )
    found = read_body({FIELDS.get(name, "messages"): [first, *TOOL_LOOPS[name]]})
    assert (found.ask, found.in_tool_loop) == (ASK, True)
    assert found.session_of(Session("s")) == Session("s", KEEP)
    assert found.session_of(Session("s", 0.1)) == Session("s", 0.1)
    assert found.session_of(None) is None


def test_a_session_that_only_the_body_hints_at_does_not_hold_back_a_new_ask() -> None:
    hint = {"metadata": {"user_id": "user_12_account__session_0f1e2d3c-4b5a"}}
    assert read_body({**user(ASK), **hint}).session_of(None) == Session("0f1e2d3c-4b5a", 0.0)
    loop = {"messages": [*user(ASK)["messages"], *TOOL_LOOPS["messages"]], **hint}
    assert read_body(loop).session_of(None) == Session("0f1e2d3c-4b5a", KEEP)
    assert read_body({**user(ASK), "metadata": {"user_id": "someone"}}).session == ""
    assert read_body({**user(ASK), "session_id": " "}).session_of(None) is None


@pytest.mark.parametrize("stated", [2**63 - 1, 10**12 + 1])
def test_stated_sizes_of_any_number_fit_into_an_answer(stated: int) -> None:
    """Kind: a number that is valid in a request overflows a field of its answer."""
    turns = (ConversationTurn("user", ("How many?",)),)
    context = read(Conversation(turns, other_texts=("x" * 100,), media_tokens=stated)).context
    assert 10**12 <= context.tokens < 2**63
