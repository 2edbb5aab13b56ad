"""Turns that only say to go on are no asks, and what fails on the way is counted."""

from __future__ import annotations

from typing import Any

import pytest

from engine.api.conversation.body import from_body
from engine.api.conversation.progress import goes_on, is_failure
from engine.api.conversation.reading import ConversationReading, read, read_body
from engine.api.proto import conversation_from, conversation_to

TASK = "Make the parser accept nested quotes, and prove it with a test."
GO_ON = """
continue|Continue.|please continue|Yes, go ahead!|ok|👍|Continue from where you left off.
proceed with the plan|keep going please|weiter|mach weiter|Vas-y|sigue|continúa|prossiga
继续|请继续。|続けてください|계속해|продолжай|devam
try again|still fails|That didn't work.|it's still not working|no, that's wrong|same error again
"""
ASKS = """
continue the story with a dragon|yes, but use Rust|fix it|ok now write tests|delete it
do it in Python|What is 3 + 4?|Go is better than Rust?|wrong password handling in login.py
It crashes when I click the button|more tests for the parser
"""
FAILED = [
    "Traceback (most recent call last):\n  File 'a.py', line 1\nValueError: bad quote",
    "Exit code 1\nparser.c:3: warning",
    '{"output": "2 tests", "metadata": {"exit_code": 2, "duration_seconds": 1}}',
    "<returncode>1</returncode>\n<output>no match</output>",
    "===== 3 failed, 10 passed in 2.11s =====",
    "Error: old_string was not found in the file",
    "bash: pytset: command not found",
    "error[E0308]: mismatched types",
    "npm ERR! code ELIFECYCLE",
    "--- FAIL: TestNested (0.00s)",
    "ls: tests: No such file or directory",
]
PASSED = [
    "     1\timport os\n     2\traise ValueError('bad quote')",
    "def quote():\n    raise ValueError('bad')\n# Error: see the manual",
    "===== 13 passed, 0 failed in 2.11s =====",
    "exit code: 0\nTraceback (most recent call last): was printed by the test on purpose",
    '{"output": "FAILED tests are rerun", "metadata": {"exit_code": 0}}',
    "The file parser.py was edited.",
    "src/a.py:3: raise KeyError(name)",
]


def listed(text: str) -> list[str]:
    return [each for line in text.strip().splitlines() for each in line.split("|")]


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def loop(*results: str, after: tuple[dict[str, Any], ...] = ()) -> ConversationReading:
    """Read a chat in which tools answered the task with these results."""
    steps = [
        turn
        for i, result in enumerate(results)
        for turn in (
            {
                **said("assistant", None),
                "tool_calls": [
                    {"id": f"c{i}", "type": "function", "function": {"name": "run"}},
                ],
            },
            {**said("tool", result), "tool_call_id": f"c{i}"},
        )
    ]
    return read_body({"model": "auto", "messages": [said("user", TASK), *steps, *after]})


@pytest.mark.parametrize("text", listed(GO_ON))
def test_turn_that_only_says_to_go_on_is_no_ask(text: str) -> None:
    turns = [said("user", TASK), said("assistant", "I began."), said("user", text)]
    for path in ("/v1/chat/completions", "/v1/messages"):
        found = read_body({"messages": turns}, path)
        assert (found.ask, found.in_tool_loop) == (TASK, True)
    assert read_body({"input": turns}, "/v1/responses").ask == TASK
    assert read_body({"messages": [said("user", text)]}).ask == text  # there is nothing else
    spoken = [said("user", TASK), said("user", text)]  # no model has begun
    assert read_body({"messages": spoken}).ask == text


@pytest.mark.parametrize("text", listed(ASKS))
def test_short_turn_with_an_ask_of_its_own_is_one(text: str) -> None:
    assert not goes_on(text)
    turns = [said("user", TASK), said("assistant", "Done."), said("user", text)]
    found = read_body({"messages": turns})
    assert (found.ask, found.in_tool_loop) == (text, False)


def test_several_turns_of_going_on_lead_back_to_the_task() -> None:
    reminder = "<system-reminder>\nThe list of tasks is empty.\n</system-reminder>\nyes"
    more = (said("user", "continue"), said("assistant", "Shall I?"), said("user", reminder))
    found = loop("ok", after=more)
    assert (found.ask, found.in_tool_loop) == (TASK, True)


@pytest.mark.parametrize("result", FAILED)
def test_failed_result_is_counted(result: str) -> None:
    assert loop("ok", result, "ok").failures == 1
    assert loop(result, result, result).failures == 3


@pytest.mark.parametrize("result", PASSED)
def test_result_that_holds_words_of_failure_is_not(result: str) -> None:
    assert not is_failure(result)
    assert loop(result, result).failures == 0


def test_failures_count_among_the_last_ten_results_since_the_ask() -> None:
    assert loop(*FAILED, *["ok"] * 9).failures == 1
    assert loop(*FAILED, *["ok"] * 10).failures == 0
    new = (said("user", "Now write the changelog."),)
    assert loop(*FAILED, after=new).failures == 0
    assert loop("ok", after=(said("user", "still fails"),)).failures == 1
    assert loop(FAILED[0], after=(said("user", "continue"),)).failures == 1


@pytest.mark.parametrize(
    "turn",
    [
        said(
            "user", [{"type": "tool_result", "tool_use_id": "1", "content": "x", "is_error": True}]
        ),
        said("user", [{"toolResult": {"toolUseId": "1", "content": [], "status": "error"}}]),
        {"type": "mcp_call", "output": "x", "status": "failed"},
        {"type": "function_call_output", "call_id": "1", "output": "Exit code: 3"},
    ],
)
def test_result_that_is_marked_as_an_error_is_counted(turn: dict[str, Any]) -> None:
    field = "input" if "type" in turn else "messages"
    conversation = from_body({field: [said("user", TASK), turn]})
    assert read(conversation).failures == 1
    assert read(conversation_from(conversation_to(conversation))).failures == 1  # through gRPC
