"""Bodies of coding agents and editors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.conversations.corpus import (
    BUG,
    CHAT,
    FILE,
    GEMINI,
    MAIL,
    MESSAGES,
    PROOF,
    RESPONSES,
    SALT,
    Entry,
    entry,
    function,
    messages,
    said,
    text,
)

NOTE = "<system-reminder>\nThe list of tasks is empty.\n</system-reminder>"
AGENT = {
    "system": text("You are a coding agent in a terminal."),
    "tools": [{"name": "Read", "description": "Read a file.", "input_schema": {"type": "object"}}],
    "max_tokens": 1000,
}
USE = said(
    "assistant", [{"type": "tool_use", "id": "t1", "name": "Read", "input": {"file": "a.py"}}]
)


def result(*more: str) -> dict[str, Any]:
    answer = {"type": "tool_result", "tool_use_id": "t1", "content": FILE}
    return said("user", [answer, *text(*more)])


def terminal_agents() -> Iterator[Entry]:
    """Agents that send Anthropic's messages."""
    command = "<command-message>fix is running</command-message>\n<command-name>/fix</command-name>"
    summary = "This session is being continued from a previous conversation. Boxes were counted."
    turns: dict[str, tuple[list[Any], str]] = {
        "first turn": ([said("user", text(NOTE, BUG))], BUG),
        "reminder in the same part": ([said("user", f"{NOTE}\n{BUG}")], BUG),
        "tool loop": ([said("user", text(NOTE, BUG)), USE, result()], BUG),
        "tool loop with a reminder": ([said("user", text(BUG)), USE, result(NOTE)], BUG),
        "new ask after a loop": ([said("user", BUG), USE, result(), said("user", MAIL)], MAIL),
        "ask after a result": ([said("user", BUG), USE, result(MAIL)], MAIL),
        "slash command": (
            [said("user", text(f"{command}\n<command-args>{BUG}</command-args>"))],
            BUG,
        ),
        "local command": (
            [said("user", BUG), said("user", "<local-command-stdout>ok</local-command-stdout>")],
            BUG,
        ),
        "after a compaction": ([said("user", text(summary, BUG))], BUG),
        "compaction alone": ([said("user", summary), USE, result()], ""),
        "hook before the ask": (
            [said("user", f"<user-prompt-submit-hook>on main</user-prompt-submit-hook>\n{BUG}")],
            BUG,
        ),
        "hook's complaint": (
            [
                said("user", BUG),
                said("assistant", "Done."),
                said("user", "Stop hook feedback:\n- lint"),
            ],
            BUG,
        ),
        "interrupted": (
            [
                said("user", BUG),
                USE,
                said("user", "[Request interrupted by user]"),
                said("user", MAIL),
            ],
            MAIL,
        ),
        "quoted tag": (
            [said("user", "What is a <system-reminder> in a log?")],
            "What is a <system-reminder> in a log?",
        ),
    }
    for name, (given, ask) in turns.items():
        yield entry(f"terminal agent, {name}", MESSAGES, {**AGENT, "messages": given}, ask, "tools")


def responses_agents() -> Iterator[Entry]:
    """Agents that send the responses API."""
    environment = "<environment_context>\n  <cwd>/srv/boxes</cwd>\n</environment_context>"
    rules = "# AGENTS.md instructions for /srv/boxes\n\n<INSTRUCTIONS>\nUse tabs.\n</INSTRUCTIONS>"
    tools = {"tools": [{"type": "function", "name": "shell", "parameters": {"type": "object"}}]}
    ide = f"# Context from my IDE setup:\n\n## Active file: a.py\n\n## My request for Codex:\n{BUG}"

    def item(content: str, role: str = "user") -> dict[str, Any]:
        return {"type": "message", "role": role, "content": text(content, kind="input_text")}

    call = {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": '{"cmd": "ls"}'}
    done = {"type": "function_call_output", "call_id": "c1", "output": FILE}
    patch = {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": FILE}
    patched = {"type": "custom_tool_call_output", "call_id": "c2", "output": "ok"}
    shell = {"type": "local_shell_call_output", "call_id": "c3", "output": FILE}
    inputs: dict[str, tuple[list[Any], str]] = {
        "first turn": ([item(rules), item(environment), item(BUG)], BUG),
        "environment last": ([item(BUG), item(environment)], BUG),
        "tool loop": ([item(environment), item(BUG), call, done], BUG),
        "patch": ([item(BUG), patch, patched], BUG),
        "shell": ([item(BUG), shell], BUG),
        "reasoning": ([item(BUG), {"type": "reasoning", "summary": []}, call, done], BUG),
        "editor": ([item(ide)], BUG),
        "developer's rules": ([item("Be brief.", "developer"), item(PROOF)], PROOF),
    }
    for name, (given, ask) in inputs.items():
        body = {"instructions": "You are a coding agent.", "input": given, **tools, "store": False}
        yield entry(f"responses agent, {name}", RESPONSES, body, ask, "tools")


def editors() -> Iterator[Entry]:
    """Editors that send chat completions."""
    details = "<environment_details>\n# Open tabs\na.py\n</environment_details>"
    read = "[read_file for 'a.py'] Result:"
    attached = "<attached_files>\na.py\n</attached_files>\n<user_info>\nLinux\n</user_info>\n"
    added = "I have *added these files to the chat* so that you see them.\n\na.py"
    context = "<context>\nToday is Friday.\n</context>\n<reminderInstructions>\nBe brief.\n"
    turns: dict[str, tuple[list[Any], str]] = {
        "task and details": ([said("user", text(f"<task>\n{BUG}\n</task>", details))], BUG),
        "result as text": (
            [
                said("user", text(f"<task>\n{BUG}\n</task>")),
                said("user", text(read, FILE, details)),
            ],
            BUG,
        ),
        "feedback": (
            [
                said(
                    "user", text("[attempt_completion] Result:", f"<feedback>\n{MAIL}\n</feedback>")
                )
            ],
            MAIL,
        ),
        "query": ([said("user", f"{attached}<user_query>\n{BUG}\n</user_query>")], BUG),
        "request": (
            [
                said(
                    "user",
                    f"{context}</reminderInstructions>\n<userRequest>\n{BUG}\n</userRequest>",
                )
            ],
            BUG,
        ),
        "files in the chat": ([said("user", BUG), said("user", added)], BUG),
        "metadata": (
            [
                said(
                    "user",
                    f"<USER_REQUEST>\n{BUG}\n</USER_REQUEST>\n<ADDITIONAL_METADATA>\nx\n</ADDITIONAL_METADATA>",
                )
            ],
            BUG,
        ),
        "tool loop": (
            [
                said("user", BUG),
                {
                    **said("assistant", None),
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "edit", "arguments": '{"a": "b"}'},
                        }
                    ],
                },
                {**said("tool", FILE), "tool_call_id": "c"},
            ],
            BUG,
        ),
    }
    for name, (given, ask) in turns.items():
        body = messages(said("system", "You are an editor."), *given, tools=[function("edit")])
        yield entry(f"editor, {name}", CHAT, body, ask, "tools")
    referenced = f"{SALT}\n--- Content from referenced files ---\nx\n--- End of content ---"
    spoken = {"role": "user", "parts": [{"text": referenced}]}
    yield entry("command line, referenced files", GEMINI, {"contents": [spoken]}, SALT)


def all_entries() -> list[Entry]:
    """Return every body of this module."""
    return [*terminal_agents(), *responses_agents(), *editors()]
