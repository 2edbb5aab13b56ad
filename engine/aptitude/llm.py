"""One question to an OpenAI-compatible endpoint, tried again as long as that may help."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx2

from engine.api.errors import ModelsatError
from engine.aptitude.journal import Journal, Reply
from engine.aptitude.questions import Question

RETRIED = {408, 409, 425, 429, *range(500, 600)}
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 60.0
FILTERED = ("content_filter", "content_policy", "ResponsibleAIPolicy")


class ExaminationError(ModelsatError):
    """The endpoint cannot be examined; what was answered is in the journal."""


class LLM:
    """A connection pool to `endpoint`; use it as an async context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(endpoint.timeout_s, connect=10.0),
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
            trust_env=not endpoint.local,  # a proxy would read the key, in plain text
        )
        self._requests = Allowance(endpoint.requests_per_minute)
        self._tokens = Allowance(endpoint.tokens_per_minute)
        self._gate = Gate()
        self._answered, self._answer_tokens = 0, 0
        self._waiting: set[asyncio.Task[Any]] = set()
        self.ended = False

    async def __aenter__(self) -> LLM:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def ask(self, question: Question) -> Reply:
        """The reply to `question`. Raises ExaminationError where trying again does not help,
        CancelledError after `end`."""
        why = ""
        for attempt in range(self._endpoint.tries):
            answer = await self._once(question, attempt)
            if isinstance(answer, Reply):
                return answer
            why = answer
        raise ExaminationError(
            f"{self._endpoint.base_url} failed {self._endpoint.tries} times in a row, last with"
            f" {why}; what was answered is kept, the same command goes on from there."
        )

    def end(self) -> None:
        """Send nothing more; calls in flight, which are paid for, go on."""
        self.ended = True
        for task in self._waiting:
            task.cancel()

    async def _turn(self, attempt: int, tokens: float) -> None:
        """Wait until the endpoint may be asked for the `attempt`th time again."""
        task = asyncio.current_task()
        if self.ended or task is None:
            raise asyncio.CancelledError
        self._waiting.add(task)
        try:
            await asyncio.sleep(_backoff(attempt) if attempt else 0)
            await self._requests.take()
            await self._tokens.take(tokens)
            await self._gate.passed()
        finally:
            self._waiting.discard(task)

    async def _once(self, question: Question, attempt: int) -> Reply | str:
        """One try: the reply, or why it may be tried again."""
        prompt = prompt_of(question, direct=self._endpoint.direct)
        expected = estimated_tokens(prompt) + self._usual_answer()
        await self._turn(attempt, expected)
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                response = await self._client.post(
                    f"{self._endpoint.base_url}/chat/completions", json=self._body(prompt)
                )
        except (TimeoutError, httpx2.TimeoutException):
            return f"no answer within {self._endpoint.timeout_s:g} s (--timeout)"
        except httpx2.RequestError as error:
            return f"{type(error).__name__}: {error}"
        if response.status_code in RETRIED:
            self._heed(response)
            return f"HTTP {response.status_code}"
        reply = self._read(question, prompt, response)
        if isinstance(reply, Reply):
            self._answered += 1
            self._answer_tokens += reply.answer_tokens
            self._tokens.correct(reply.prompt_tokens + reply.answer_tokens - expected)
        return reply

    def _usual_answer(self) -> float:
        return self._answer_tokens / self._answered if self._answered else 0.0

    def _body(self, prompt: str) -> dict[str, Any]:
        body = {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._endpoint.max_tokens,
            "temperature": 0,
        }
        return {k: v for k, v in {**body, **self._endpoint.body}.items() if v is not None}

    def _heed(self, response: httpx2.Response) -> None:
        """Let nobody ask before the moment that the endpoint names."""
        wait = retry_after_s(response.headers, time.time())
        if wait is None:
            return
        if wait > self._endpoint.longest_wait_s:
            raise ExaminationError(
                f"{self._endpoint.base_url} asks to wait {wait:.0f} s, more than --max-retry-after"
                f" {self._endpoint.longest_wait_s:g}; run the same command later, what was answered"
                " is kept."
            )
        self._gate.shut(wait)

    def _read(self, question: Question, prompt: str, response: httpx2.Response) -> Reply | str:
        if response.status_code != 200:
            said = response.text.replace(self._endpoint.key or "\0", "[key]")
            if response.status_code == 400 and any(word in said for word in FILTERED):
                return Reply(question.key, "", estimated_tokens(prompt), 0, False, False)
            raise ExaminationError(
                f"{self._endpoint.base_url} refused with HTTP {response.status_code}:"
                f" {_message(response, said)}"
            )
        try:
            return reply_from(question, prompt, response.json())
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "an answer that is no chat completion"


def reply_from(question: Question, prompt: str, completion: Mapping[str, Any]) -> Reply:
    """What a chat completion says. Raises KeyError and its kin where it is none."""
    choice = completion["choices"][0]
    text = choice["message"].get("content") or ""
    if not isinstance(text, str):
        raise TypeError("content is no text")
    usage = completion.get("usage") or {}
    prompt_tokens, answer_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Reply(
        question=question.key,
        text=text,
        prompt_tokens=(
            prompt_tokens if isinstance(prompt_tokens, int) else estimated_tokens(prompt)
        ),
        answer_tokens=answer_tokens if isinstance(answer_tokens, int) else estimated_tokens(text),
        counted=isinstance(answer_tokens, int),
        cut=choice.get("finish_reason") == "length",
    )


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that Retry-After asks for, given as seconds or as a date; None where it does not."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError):
        return None


def _backoff(attempt: int) -> float:
    """Seconds before try number `attempt`: doubled each time, half of it at random."""
    longest = min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0**attempt)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


def _message(response: httpx2.Response, said: str) -> str:
    """The endpoint's own sentence, as OpenAI's error object has it."""
    advice = {
        401: " (--api-key-env names the variable that holds the key)",
        404: " (is --base-url right, with /v1, and --model one of its models?)",
    }
    return " ".join(said.split())[:300] + advice.get(response.status_code, "")


LOOPBACK = ("localhost", "127.0.0.1", "::1")
CHARS_PER_TOKEN = 4.0  # of English; for estimates where the endpoint does not count
STEPS = (
    "Think step by step. End with a line of its own that says: The answer is X, where X is the"
    " letter of the option you choose."
)
LETTER_ONLY = "Reply with the letter of the right option and nothing else."


@dataclass(frozen=True)
class Endpoint:
    """base_url: up to and with /v1. key: empty sends none. body: fields joined to every request,
    None removes one. timeout_s: for one try. longest_wait_s: that a Retry-After may ask for."""

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    direct: bool = False
    max_tokens: int = 2048
    body: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 120.0
    tries: int = 8
    longest_wait_s: float = 300.0
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return urlsplit(self.base_url).hostname in LOOPBACK


def prompt_of(question: Question, *, direct: bool) -> str:
    """What the model reads."""
    return f"{question.text}\n\n{LETTER_ONLY if direct else STEPS}"


def estimated_tokens(text: str) -> int:
    """Tokens of `text`, by its length."""
    return round(len(text) / CHARS_PER_TOKEN) + 1


class Allowance:
    """So much a minute, evenly: a token bucket that never holds more than a second's worth, or one
    request. per_minute: None is no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self._rate = None if per_minute is None else per_minute / 60
        self._next = 0.0

    async def take(self, amount: float = 1.0) -> None:
        """Wait for the turn of `amount`."""
        if self._rate is None:
            return
        now = time.monotonic()
        turn = max(self._next, now - 1.0)
        self._next = turn + amount / self._rate
        await asyncio.sleep(max(0.0, turn - now))

    def correct(self, amount: float) -> None:
        """Count `amount` more (or less, where it is negative) for what was taken."""
        if self._rate is not None:
            self._next += amount / self._rate


class Gate:
    """Shut for everybody until a moment: what a Retry-After asks for."""

    def __init__(self) -> None:
        self._opens = 0.0

    def shut(self, seconds: float) -> None:
        """Nobody passes for `seconds` from now, or longer where that was said before."""
        self._opens = max(self._opens, time.monotonic() + seconds)

    async def passed(self) -> None:
        """Wait until it is open."""
        while (left := self._opens - time.monotonic()) > 0:
            await asyncio.sleep(left)


async def examine(
    questions: Sequence[Question],
    endpoint: Endpoint,
    journal: Journal,
    answered: Callable[[Reply], None],
) -> None:
    """Ask `questions`; each reply is in `journal` before `answered` hears of it.

    Raises ExaminationError with the first reason why one cannot be answered, InvalidInputError
    where the journal cannot be written. Calls in flight are waited for first.
    """
    waiting = iter(questions)
    failures: list[ModelsatError] = []
    async with LLM(endpoint) as llm, asyncio.TaskGroup() as group:

        async def sit() -> None:
            try:
                for question in waiting:
                    reply = await llm.ask(question)
                    journal.add(reply)
                    answered(reply)
            except ModelsatError as error:
                failures.append(error)
                llm.end()
            except asyncio.CancelledError:
                if not llm.ended:
                    raise

        for _ in range(min(endpoint.concurrency, len(questions))):
            group.create_task(sit())
    if failures:
        raise failures[0]
