"""Serve a fake OpenAI-compatible LLM whose skill in each subject is known, for aptitude tests.

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

from engine.aptitude.questions import LETTERS, Question, lettered, read_file
from engine.datasets.known_tasks import load_task_keywords, reference_tasks

REPLY_FORMATS = (
    "{x}",
    "({x})",
    "{x}. {option}",
    "The answer is **{x}**.",
    "Let me think. A. and B. look alike, but the sum decides.\n\nThe answer is ({x}).",
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
    """Make `each` sums for every task, in the form of a questions file."""
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
    """Write a questions file; for the reference tasks if none are named."""
    rows = make_questions(tasks or list(reference_tasks()), each)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chance(*words: object) -> float:
    """Return a pseudorandom number in [0, 1) that depends on `words` alone."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclass
class FakeLLM:
    """A deterministic LLM: the same question always gets the same answer.

    Attributes:
        questions: Questions that it knows.
        skill: Probability of a right answer, by task.
        otherwise: Probability of a right answer in other tasks.
        limit_every, fail_every, drop_every: Every so many requests, one gets 429 with Retry-After
            1, 500, or a closed connection; 0 means never.
        refuses: Share of questions that it declines.
        asked: Requests that were answered, by question ID.
        early: Requests that came before a Retry-After had passed.
    """

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
        """Return whether its answer is right."""
        return chance(self.seed, question.id) < self.skill.get(question.task, self.otherwise)

    def refused(self, question: Question) -> bool:
        """Return whether it declines."""
        return chance(self.seed, "refusal", question.id) < self.refuses

    def says(self, question: Question) -> str:
        """Return its reply, in one of REPLY_FORMATS."""
        if self.refused(question):
            return REFUSAL
        right = LETTERS.index(question.answer)
        step = 1 + int(chance(self.seed, "wrong", question.id) * (len(question.options) - 1))
        place = right if self.knows(question) else (right + step) % len(question.options)
        form = REPLY_FORMATS[int(chance(self.seed, "shape", question.id) * len(REPLY_FORMATS))]
        return form.format(
            x=LETTERS[place],
            lower=f"({LETTERS[place].lower()})",
            option=question.options[place],
            listed=lettered("", question.options).strip(),
        )

    def complete(self, body: Mapping[str, Any], authorization: str) -> tuple[int, Any]:
        """Return (status, JSON body) of a chat completion; status 0 closes the connection."""
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
            return 404, {"error": {"message": "this fake does not know the question"}}
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
    """Serve it on the loopback; yields its base URL."""
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
    """Make an LLM that is good (.9) at tasks whose first keyword is in `fields`, else poor."""
    words = load_task_keywords()
    good = {t: 0.9 for t in words if words[t].split(",")[0] in fields}
    return FakeLLM(questions, good, otherwise=0.35, **more)


def main() -> None:
    """Write questions, or serve until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--write-questions", type=Path, metavar="FILE", help="write a questions file and exit")
    add("--questions", type=Path, metavar="FILE", help="questions file that it answers")
    add("--port", type=int, default=8091, help="port on the loopback (default %(default)s)")
    text = "first keywords of the tasks that it is good at, such as Mathematics,Physics"
    add("--good-at", default="", metavar="A,B", help=text)
    add("--delay", type=float, default=0.0, metavar="S", help="seconds to wait before each reply")
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
