"""The examiner believes nothing: errors within HTTP 200, other forms, hostile bodies, proxies."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.api.loopback import is_this_machine
from engine.aptitude.completion import FailedReplyError, read_completion
from engine.aptitude.grading import grade, read_reply
from engine.aptitude.journal import Reply
from engine.aptitude.llm import ChatPrompt, reply_from
from engine.aptitude.questions import Question
from engine.client.channel import is_local, way_to
from examples.fake_llm import write_questions
from tools.processes import ROOT

THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "The answer is B"}]}
FORMS: dict[str, dict[str, Any]] = {
    "chat": {"choices": [{"message": {"content": "The answer is A"}, "finish_reason": "stop"}]},
    "chat with reasoning": {
        "choices": [{"message": {"content": "The answer is A", "reasoning_content": "maybe B"}}]
    },
    "mistral": {
        "choices": [
            {"message": {"content": [THOUGHT, {"type": "text", "text": "The answer is A"}]}}
        ]
    },
    "parts": {"choices": [{"message": {"content": [{"text": "The answer "}, {"text": "is A"}]}}]},
    "completion": {"choices": [{"text": "The answer is A", "finish_reason": "stop"}]},
    "anthropic": {
        "type": "message",
        "content": [THOUGHT, {"type": "text", "text": "The answer is A"}],
        "stop_reason": "end_turn",
    },
    "responses": {
        "status": "completed",
        "error": None,
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "maybe B"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "The answer is A"}]},
        ],
    },
    "gemini": {
        "candidates": [
            {
                "content": {
                    "parts": [{"text": "B?", "thought": True}, {"text": "The answer is A"}]
                },
                "finishReason": "STOP",
            }
        ]
    },
    "bedrock": {
        "output": {"message": {"content": [{"reasoningContent": {}}, {"text": "The answer is A"}]}},
        "stopReason": "end_turn",
    },
    "cloudflare": {"success": True, "errors": [], "result": {"response": "The answer is A"}},
    "minimax": {
        "base_resp": {"status_code": 0, "status_msg": ""},
        "choices": [{"message": {"content": "The answer is A"}, "finish_reason": "stop"}],
    },
    "sglang": {
        "choices": [
            {
                "message": {"content": "The answer is A"},
                "finish_reason": {"type": "stop", "matched": 2},
            }
        ]
    },
    "ollama": {"message": {"content": "The answer is A", "thinking": "B"}, "done": True},
}
FAILURES: dict[str, Any] = {
    "openrouter": {
        "choices": [
            {
                "message": {"content": "Adding"},
                "finish_reason": "error",
                "error": {"code": 502, "message": "Upstream error"},
            }
        ]
    },
    "abort": {"choices": [{"message": {"content": "Adding"}, "finish_reason": "abort"}]},
    "error alone": {"error": {"message": "overloaded", "code": 529}},
    "error text": {"error": "model is loading"},
    "vllm": {"object": "error", "message": "engine died", "code": 500},
    "detail": {"detail": "Internal"},
    "no choices": {"choices": []},
    "null choice": {"choices": [None]},
    "anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "x"}},
    "failed response": {"status": "failed", "output": [], "error": None},
    "gemini": {"promptFeedback": {"blockReason": "SAFETY"}},
    "filter": {"choices": [{"message": {"content": "Ad"}, "finish_reason": "content_filter"}]},
    "resources": {
        "choices": [{"message": {"content": ""}, "finish_reason": "insufficient_system_resource"}]
    },
    "minimax": {
        "base_resp": {"status_code": 1002, "status_msg": "rate limit"},
        "choices": [{"message": {"content": ""}, "finish_reason": "stop"}],
    },
    "sglang": {"choices": [{"message": {"content": "Ad"}, "finish_reason": {"type": "abort"}}]},
    "native reason": {
        "choices": [
            {
                "message": {"content": "Ad"},
                "finish_reason": "stop",
                "native_finish_reason": "abort",
            }
        ]
    },
    "no success": {"success": False, "error_message": "try again", "choices": []},
    "still at work": {"object": "response", "status": "in_progress", "output": []},
    "gemini, other": {"candidates": [{"finishReason": "OTHER", "content": {}}]},
    "number": 3,
    "list": [],
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS.keys())
def test_forms_of_a_reply_are_read_without_the_reasoning(body: dict[str, Any]) -> None:
    completion = read_completion(body)
    assert (completion.text, completion.cut) == ("The answer is A", False)


@pytest.mark.parametrize("body", FAILURES.values(), ids=FAILURES.keys())
def test_what_is_no_complete_reply_is_a_failed_attempt(body: Any) -> None:
    with pytest.raises(FailedReplyError):
        read_completion(body)


QUESTION = Question("t:1", "t", "Which?", ("x", "y"), "A")
ASKED = ChatPrompt("t:1", ({"role": "user", "content": "Which?"},))


def events(*bodies: Any, end: str = "data: [DONE]\n\n") -> bytes:
    return "".join([*(f"data: {json.dumps(body)}\n\n" for body in bodies), end]).encode()


def piece(content: Any, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]}


COUNTED = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
STREAMS = {
    "pieces": events(piece("The answer"), piece(" is A"), piece(None, "stop"), COUNTED),
    "comments": b": PROCESSING\n\n" + events(piece("The answer is A", "stop"), COUNTED),
    "parts": events(piece([THOUGHT]), piece([{"type": "text", "text": "The answer is A"}], "stop")),
    "windows lines": events(piece("The answer is A", "stop")).replace(b"\n", b"\r\n"),
    "a whole object": events(FORMS["chat"]),
    "a whole object with the end of a stream": json.dumps(FORMS["chat"]).encode() + b"data: [DONE]",
    "the same, indented": json.dumps(FORMS["chat"], indent=1).encode() + b"\n\ndata: [DONE]\n",
    "responses": b"event: response.created\n"
    + events(
        {"type": "response.created", "response": {"status": "in_progress", "output": []}},
        {"type": "response.output_text.delta", "delta": "The answer"},
        {"type": "response.completed", "response": FORMS["responses"]},
    ),
}


@pytest.mark.parametrize("content", STREAMS.values(), ids=STREAMS)
def test_a_reply_that_is_streamed_unasked_is_read(content: bytes) -> None:
    reply = reply_from(ASKED, content)
    assert (reply.text, reply.cut) == ("The answer is A", False)
    assert not reply.counted or reply.answer_tokens == 4


@pytest.mark.parametrize(
    "content",
    [
        events(piece("The answer is A"), end=""),
        events(piece("The answer"), {"error": {"code": 502, "message": "upstream"}}),
        events(piece("The answer is A", "error")),
        events(),
        b"data: The answer is A\n\n",
        events({"type": "response.failed", "response": {"status": "failed", "output": []}}),
        events(piece("The answer is A", "stop"))[:-40],
    ],
)
def test_a_stream_that_fails_or_breaks_off_is_a_failed_attempt(content: bytes) -> None:
    with pytest.raises(FailedReplyError):
        reply_from(ASKED, content)


NAMES = (
    *("choices", "candidates", "content", "message", "output", "text", "type", "parts", "error"),
    *("promptFeedback", "blockReason", "finish_reason", "usage", "incomplete_details", "detail"),
)
REPLIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(REPLIES)
@example({"output": {"message": "A"}})
@example({"candidates": {}, "promptFeedback": None})
@example({"content": [{"type": ["thinking"], "text": "A"}]})
def test_any_json_is_a_reply_or_a_failed_attempt(body: Any) -> None:
    with suppress(FailedReplyError):
        assert isinstance(read_completion(body).text, str)


def test_replies_cut_by_any_provider_are_incomplete_and_not_wrong() -> None:
    for body in (
        {"choices": [{"message": {"content": "At first A"}, "finish_reason": "length"}]},
        {"choices": [{"message": {"content": "At first A"}, "finish_reason": "model_length"}]},
        {"content": [{"type": "text", "text": "At first A"}], "stop_reason": "max_tokens"},
        {
            "output": [{"type": "message", "content": [{"text": "At first A"}]}],
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
        },
    ):
        assert read_completion(body).cut, body
    questions = [Question(str(i), "t", f"q{i}", ("1", "2"), "A") for i in range(4)]
    texts = ["The answer is A.", "First, A seems right. The answer is A", "The answer is B.", "A"]
    replies = {
        q.key: Reply(q.key, text, 1, 1, True, cut=i in (1, 3))
        for i, (q, text) in enumerate(zip(questions, texts, strict=True))
    }
    assert read_reply(replies[questions[3].key], ("1", "2")).letter == "A"
    (score,) = grade(questions, replies).scores
    assert (score.asked, score.right, score.unparsed, score.incomplete) == (4, 2, 0, 1)
    assert score.accuracy == pytest.approx(2 / 3)


@contextmanager
def answering(bodies: list[bytes], **headers: str) -> Iterator[tuple[str, list[int]]]:
    """An endpoint that answers with `bodies` in turn, the last one again and again."""
    calls: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            calls.append(1)
            body = bodies[min(len(calls), len(bodies)) - 1]
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                return

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1", calls
        finally:
            server.shutdown()
            thread.join()


def examine(url: str, folder: Path, *more: str, each: int = 1) -> subprocess.CompletedProcess[str]:
    questions = write_questions(folder / "q.jsonl", each=each, tasks=["anatomy", "astronomy"])
    command = [sys.executable, "-m", "engine.cli.main", "aptitude", "run", "--base-url", url]
    command += ["--model", "m", "--questions", str(questions), "--yes", "--concurrency", "1"]
    command += ["--out", str(folder / "a.json"), *more]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )


def test_an_error_within_http_200_is_asked_again(tmp_path: Path) -> None:
    bodies = [json.dumps(FAILURES["openrouter"]).encode(), json.dumps(FORMS["mistral"]).encode()]
    with answering(bodies) as (url, calls):
        done = examine(url, tmp_path, "--max-attempts", "2")
    assert done.returncode == 0, done.stderr
    assert len(calls) == 3
    journal = (tmp_path / "a.journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in journal[1:]] == ["The answer is A"] * 2


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"[" * 200_000, {}, "nested too deeply"),
        (gzip.compress(b'{"a": "' + b"A" * (40 << 20)), {"content_encoding": "gzip"}, "16 MB"),
        (b"<html><title>502 Bad Gateway", {}, "a web page in place of a chat completion"),
        (b"", {}, "an empty response"),
        (b"{}", {"content_encoding": "br"}, "content encoding br"),
        (json.dumps(FAILURES["error alone"]).encode(), {}, "529: overloaded"),
    ],
)
def test_hostile_bodies_end_the_run_with_their_name(
    body: bytes, headers: dict[str, str], words: str, tmp_path: Path
) -> None:
    with answering([body], **headers) as (url, _):
        done = examine(url, tmp_path, "--max-attempts", "1")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_many_unreadable_replies_stop_the_run_and_registration_needs_a_word(tmp_path: Path) -> None:
    body = {"choices": [{"message": {"content": "It is \x1b[31mhard to say, sk-1."}}]}
    with answering([json.dumps(body).encode()]) as (url, calls):
        stopped = examine(url, tmp_path, each=20)
        asked = len(calls)
        again = examine(url, tmp_path, each=20)
        assert (asked, len(calls)) == (20, 20)
        accepted = examine(url, tmp_path, "--accept-unreadable", each=20)
        assert len(calls) == 40
    assert stopped.returncode == again.returncode == 1
    assert "20 of 20 replies are unreadable (20 chooses no option)" in stopped.stderr
    assert "--accept-unreadable" in stopped.stderr
    assert "\x1b[31m" not in stopped.stderr
    assert "the run stopped" in again.stderr.lower()
    assert accepted.returncode == 0


def test_loopback_targets_never_go_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    here = (
        "localhost",
        "127.0.0.1",
        "127.8.9.1",
        "::1",
        "[::1]",
        "::ffff:127.0.0.1",
        "a.localhost",
    )
    assert [h for h in here if not is_this_machine(h)] == []
    assert not any(map(is_this_machine, ("localhost.example.com", "10.0.0.1", "127.example", "")))
    local = (
        "127.0.0.1:50051",
        "[::1]:50051",
        "dns:///localhost:1",
        "unix:/run/x",
        "ipv4:127.0.0.2:1",
    )
    assert [a for a in local if not is_local(a)] == []
    assert not is_local("127.0.0.1:1,10.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    assert way_to("127.0.0.1:50051") == "directly"
    assert way_to("router:50051") == "through the proxy 127.0.0.1:9"


def test_errors_name_the_way_that_was_tried() -> None:
    command = [sys.executable, "-m", "engine.cli.main", "health", "--timeout-s", "1", "--server"]
    environ = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}

    def health(address: str) -> str:
        done = subprocess.run(
            [*command, address], cwd=ROOT, capture_output=True, text=True, timeout=30, env=environ
        )
        assert done.returncode
        return done.stderr

    assert "(tried directly)" in health("127.0.0.1:1")
    assert "without http://" in health("http://127.0.0.1:50051")
    assert "has no port; give HOST:PORT" in health("router.example")
    assert "tried through the proxy 127.0.0.1:9" in health("router.example:1")
