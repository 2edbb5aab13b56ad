"""One question to an OpenAI-compatible endpoint, tried again as long as that may help."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import httpx2

from engine.aptitude.endpoint import Endpoint, estimated_tokens, prompt_of
from engine.aptitude.journal import Reply
from engine.aptitude.limits import Allowance, Gate
from engine.aptitude.questions import Question
from engine.contract.errors import ModelsatError

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
                f"{self._endpoint.base_url} asks to wait {wait:.0f} s, more than --longest-wait"
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
