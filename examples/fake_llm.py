"""An OpenAI-compatible LLM with known skill per subject, a real HTTP server on a real socket; and
questions of our own making for it to answer.

    python -m examples.fake_llm --write-questions questions.jsonl
    python -m examples.fake_llm --questions questions.jsonl --port 8091 --good-at
    Mathematics,Physics
"""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from engine.aptitude.questions import LETTERS, Question, lettered, read_file, reference_tasks
from engine.datasets.outcomes import load_task_keywords

SHAPES = (
    "{x}",
    "({x})",
    "{x}. {option}",
    "The answer is **{x}**.",
    "Let me think. A. and B. look alike, but the sum leaves no doubt.\n\nThe answer is ({x}).",
    "First, the answer is A? No: count again.\n\n**Final answer:** {x}",
    "{listed}\n\nAnswer: {x}",
    "Adding up gives the result, so\n$$\\boxed{{{x}}}$$",
    "Adding up gives\n$$\\boxed{{\\text{{({x}) {option}}}}}$$",
    "The answer is {x}, I believe.",
    "Answer {x}",
    "<think>Perhaps the answer is A.</think>\nI choose {lower}.",
)
RETRY_AFTER_S = 1
REFUSAL = "I'm sorry, but I can't help with that."


def make_questions(tasks: Sequence[str], each: int) -> list[dict[str, str]]:
    """Sums, a different one for each place of each task, in the form of a questions file."""
    rows = []
    for t, task in enumerate(tasks):
        for i in range(each):
            total = 11 * t + 7 * i + 20
            place = (3 * t + 5 * i) % 4
            options = [str(total + j - place) for j in range(4)]
            stem = f"Exercise {i} of {task.replace('_', ' ')}: what is {total - i - 5} + {i + 5}?"
            text = lettered(stem, options)
            rows.append(
                {"id": f"{task}/{i}", "mmlu_subject": task, "text": text, "answer": LETTERS[place]}
            )
    return rows


def write_questions(path: Path, each: int = 25, tasks: Sequence[str] = ()) -> Path:
    """A file of them, for the standard tasks where none are named."""
    rows = make_questions(tasks or list(reference_tasks()), each)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chance(*words: object) -> float:
    """In [0, 1): the same for the same words."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclass
class FakeLLM:
    """skill: task -> probability of a right answer, `otherwise` for other tasks; the same question
    always gets the same answer. limit_every, fail_every, drop_every: each so many requests one gets
    429 with Retry-After 1, 500, or a closed connection; 0 never. refuses: share of questions.
    asked: question id -> requests for it that were answered. early: requests that came before a
    Retry-After had passed."""

    questions: Sequence[Question]
    skill: Mapping[str, float]
    otherwise: float = 0.5
    seed: int = 0
    delay_s: float = 0.0
    limit_every: int = 0
    fail_every: int = 0
    drop_every: int = 0
    refuses: float = 0.0
    counts_tokens: bool = True
    key: str = ""
    answer_tokens: int = 120
    asked: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    early: int = 0
    closed_until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def knows(self, question: Question) -> bool:
        """Whether its answer is the right one."""
        return chance(self.seed, question.id) < self.skill.get(question.task, self.otherwise)

    def refused(self, question: Question) -> bool:
        """Whether it answers with an apology."""
        return chance(self.seed, "refusal", question.id) < self.refuses

    def says(self, question: Question) -> str:
        """Its reply, in one of SHAPES."""
        if self.refused(question):
            return REFUSAL
        right = LETTERS.index(question.answer)
        step = 1 + int(chance(self.seed, "wrong", question.id) * (len(question.options) - 1))
        place = right if self.knows(question) else (right + step) % len(question.options)
        shape = SHAPES[int(chance(self.seed, "shape", question.id) * len(SHAPES))]
        return shape.format(
            x=LETTERS[place],
            lower=f"({LETTERS[place].lower()})",
            option=question.options[place],
            listed=lettered("", question.options).strip(),
        )

    def complete(self, body: Mapping[str, Any], authorization: str) -> tuple[int, Any]:
        """(status, JSON body) of a chat completion; status 0 closes the connection."""
        with self.lock:
            self.requests += 1
            number = self.requests
            self.early += time.monotonic() < self.closed_until
        if self.key and authorization != f"Bearer {self.key}":
            return 401, {"error": {"message": f"Incorrect API key provided: {authorization}"}}
        for every, status in (
            (self.limit_every, 429),
            (self.fail_every, 500),
            (self.drop_every, 0),
        ):
            if every and number % every == 0:
                if status == 429:
                    self.closed_until = time.monotonic() + RETRY_AFTER_S
                return status, {"error": {"message": "try again"}}
        prompt = body["messages"][-1]["content"]
        question = next((q for q in self.questions if prompt.startswith(q.text)), None)
        if question is None:
            return 404, {"error": {"message": "no question that this fake knows"}}
        time.sleep(self.delay_s)
        with self.lock:
            self.asked[question.id] += 1
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": self.answer_tokens}
        message = {"role": "assistant", "content": self.says(question)}
        return 200, {
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            **({"usage": usage} if self.counts_tokens else {}),
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    disable_nagle_algorithm = True
    llm: FakeLLM

    def do_POST(self) -> None:
        """See BaseHTTPRequestHandler."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions":
            status, answer = 404, {"error": {"message": f"no such path {self.path}"}}
        else:
            status, answer = self.llm.complete(body, self.headers.get("authorization", ""))
        if not status:
            self.close_connection = True
            return
        content = json.dumps(answer).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("retry-after", str(RETRY_AFTER_S))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def listening(llm: FakeLLM, port: int = 0) -> Iterator[str]:
    """Its base URL while it serves."""
    handler = type("Handler", (_Handler,), {"llm": llm})
    with _Server(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


def specialist(questions: Sequence[Question], fields: Sequence[str], **more: Any) -> FakeLLM:
    """Good (.9) at tasks whose keywords begin with one of `fields`, poor (.35) at the others."""
    words = load_task_keywords()
    good = {t: 0.9 for t in words if words[t].split(",")[0] in fields}
    return FakeLLM(questions, good, otherwise=0.35, **more)


def main() -> None:
    """Write questions, or serve until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write-questions", type=Path)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--port", type=int, default=8091)
    parser.add_argument("--good-at", default="", metavar="A,B", help="first keywords of tasks")
    parser.add_argument("--delay", type=float, default=0.0, metavar="S")
    parsed = parser.parse_args()
    if parsed.write_questions:
        write_questions(parsed.write_questions)
        return
    llm = specialist(read_file(parsed.questions), parsed.good_at.split(","), delay_s=parsed.delay)
    llm.limit_every, llm.fail_every = 400, 90
    with listening(llm, parsed.port) as url:
        print(f"ready at {url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
