"""Ask questions of an OpenAI-compatible endpoint, with retries and rate limits.

A reply is in the journal before the next question is sent, so an interrupted run asks, and pays
for, nothing twice. Retry-After is honored, and so are limits on requests and tokens per minute.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx2

from engine.api.errors import ModelsatError, Violation
from engine.api.loopback import is_this_machine
from engine.aptitude.completion import FailedReplyError, read_completion
from engine.aptitude.event_stream import joined_events, looks_like_events
from engine.aptitude.journal import Journal, Reply
from engine.aptitude.questions import Question
from engine.aptitude.rate_limits import Pause, RateLimiter

RETRYABLE_STATUS = {408, 409, 425, 429, *range(500, 600)}
BACKOFF_S, MAX_BACKOFF_S = 0.5, 60.0
CONTENT_FILTER_CODES = ("content_filter", "content_policy", "ResponsibleAIPolicy")
MAX_RESPONSE_BYTES = 16 << 20  # decompressed; 100,000 tokens of reasoning are about 1 MB
CHARS_PER_TOKEN = 4.0  # of English; for estimates if the endpoint reports no token counts
STEP_BY_STEP = (
    "Think step by step. End with a line of its own that says: The answer is X, where X is the"
    " letter of the option you choose."
)
LETTER_ONLY = "Reply with the letter of the right option and nothing else."


class ExaminationError(ModelsatError):
    """The endpoint cannot be examined. The replies so far are in the journal."""


class RefusedRequestError(ExaminationError):
    """The endpoint refused one request. status: of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ChatPrompt:
    """What a model is asked.

    key: names the reply in the journal. messages: as in a request's body. extra_body: fields that
    are merged into this request's body.
    """

    key: str
    messages: tuple[Mapping[str, str], ...]
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Estimated tokens of the messages."""
        return estimated_tokens("".join(message["content"] for message in self.messages))


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint and how to ask it.

    base_url: ends with /v1. key: the API key; empty sends none. answer_only: ask for the letter
    without reasoning. extra_body: fields merged into every request body; None removes one.
    timeout_s: for one attempt. max_retry_after_s: the longest Retry-After that is waited for.
    concurrency: questions in flight. The limits per minute are off if None.
    """

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    answer_only: bool = False
    max_tokens: int = 2048
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 120.0
    max_attempts: int = 8
    max_retry_after_s: float = 300.0
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @property
    def local(self) -> bool:
        """True if the endpoint is on this machine."""
        return is_this_machine(urlsplit(self.base_url).hostname or "")

    @property
    def way(self) -> str:
        """How requests reach the endpoint: directly, or through a proxy of the environment."""
        parts = urlsplit(self.base_url)
        proxy = urllib.request.getproxies().get(parts.scheme)
        if self.local or not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
            return "directly, without a proxy"
        return (
            f"through the proxy {proxy.rpartition('@')[2].rpartition('//')[2]} of the environment"
        )


def url_problems(field: str, url: str, key: str) -> list[Violation]:
    """List what is wrong with a base URL that `field` holds, and with sending `key` to it."""
    try:
        parts = urlsplit(url)
        is_plain_text = parts.scheme == "http" and not is_this_machine(parts.hostname or "")
        is_malformed = any(c <= " " or c > "~" for c in url) or parts.port == 0
    except ValueError:
        return [Violation(field, "is not a URL; expected one like https://HOST/v1.")]
    extras = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in {"http", "https"} or not parts.hostname or extras or is_malformed:
        text = "is not a base URL; expected https://HOST/v1, without user, query or fragment."
        return [Violation(field, text)]
    if key and is_plain_text:
        text = "is http, which would send the key unencrypted; use https, or no key."
        return [Violation(field, text)]
    return []


def prompt_of(question: Question, *, answer_only: bool) -> str:
    """Render the prompt that the model reads; a free-text question is asked as it is."""
    if not question.options:
        return question.text
    return f"{question.text}\n\n{LETTER_ONLY if answer_only else STEP_BY_STEP}"


def chat_prompt(question: Question, *, answer_only: bool) -> ChatPrompt:
    """Ask `question` in a conversation of its own."""
    text = prompt_of(question, answer_only=answer_only)
    return ChatPrompt(question.key, ({"role": "user", "content": text},))


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of `text` from its length."""
    return round(len(text) / CHARS_PER_TOKEN) + 1


class LLM:
    """Client of one endpoint with a connection pool. Use it as an async context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        headers["Accept-Encoding"] = "identity"  # nothing to unpack, whatever its size
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(endpoint.timeout_s, connect=10.0),
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
            trust_env=not endpoint.local,  # a proxy would read the key, in plain text
        )
        self._request_limit = RateLimiter(endpoint.requests_per_minute)
        self._token_limit = RateLimiter(endpoint.tokens_per_minute)
        self._pause = Pause()
        self._answered, self._answer_tokens = 0, 0
        self._waiting: set[asyncio.Task[Any]] = set()
        self.stopped = False

    async def __aenter__(self) -> LLM:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def ask(self, prompt: ChatPrompt) -> Reply:
        """Ask until there is an answer.

        Raises:
            ExaminationError: another attempt would not help, or none is left. It is a
                RefusedRequestError if the endpoint refused the request.
            CancelledError: `stop` was called.
        """
        reason = ""
        for attempt in range(self._endpoint.max_attempts):
            result = await self._attempt(prompt, attempt)
            if isinstance(result, Reply):
                return result
            reason = result
        raise ExaminationError(
            f"{self._endpoint.base_url} failed {self._endpoint.max_attempts} times in a row, last"
            f" with {reason}; replies so far are kept, run the same command to continue."
        )

    def stop(self) -> None:
        """Send nothing more. Calls in flight, which are paid for, finish."""
        self.stopped = True
        for task in self._waiting:
            task.cancel()

    async def _wait_turn(self, attempt: int, tokens: float) -> None:
        """Wait until request number `attempt` may be sent, by backoff, limits and Retry-After."""
        task = asyncio.current_task()
        if self.stopped or task is None:
            raise asyncio.CancelledError
        self._waiting.add(task)
        try:
            await asyncio.sleep(_backoff(attempt) if attempt else 0)
            await self._request_limit.acquire()
            await self._token_limit.acquire(tokens)
            await self._pause.wait()
        finally:
            self._waiting.discard(task)

    async def _attempt(self, prompt: ChatPrompt, attempt: int) -> Reply | str:
        """Ask once; returns the reply, or the reason of a failure that may not happen again."""
        mean_answer = self._answer_tokens / self._answered if self._answered else 0.0
        expected = prompt.tokens + mean_answer
        await self._wait_turn(attempt, expected)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                url = f"{self._endpoint.base_url}/chat/completions"
                async with self._client.stream("POST", url, json=self._body(prompt)) as response:
                    content = await _content(response)
        except _ResponseTooLargeError as error:
            return str(error)
        except (TimeoutError, httpx2.TimeoutException):
            return f"no response within {self._endpoint.timeout_s:g} s (--timeout-s)"
        except httpx2.RequestError as error:
            return f"{type(error).__name__}: {error} (tried {self._endpoint.way})"
        if response.status_code in RETRYABLE_STATUS:
            self._honor_retry_after(response)
            return f"HTTP {response.status_code}"
        try:
            reply = self._read(prompt, response.status_code, content)
        except FailedReplyError as error:
            if not error.filtered or attempt + 1 < self._endpoint.max_attempts:
                return self._masked(str(error))
            # A filter that stays is the model's answer to this question: it declines.
            reply = Reply(prompt.key, "", prompt.tokens, 0, False, False)
        reply = replace(reply, latency_s=round(time.monotonic() - started, 3))
        self._answered += 1
        self._answer_tokens += reply.answer_tokens
        self._token_limit.adjust(reply.prompt_tokens + reply.answer_tokens - expected)
        return reply

    def _body(self, prompt: ChatPrompt) -> dict[str, Any]:
        body = {
            "model": self._endpoint.model,
            "messages": list(prompt.messages),
            "max_tokens": self._endpoint.max_tokens,
            "temperature": 0,
        }
        merged = {**body, **prompt.extra_body, **self._endpoint.extra_body}
        return {k: v for k, v in merged.items() if v is not None}

    def _honor_retry_after(self, response: httpx2.Response) -> None:
        """Honor Retry-After: pause all requests until then."""
        wait = retry_after_s(response.headers, time.time())
        if wait is None:
            return
        if wait > self._endpoint.max_retry_after_s:
            raise ExaminationError(
                f"{self._endpoint.base_url} asks to wait {wait:.0f} s, more than --max-retry-after"
                f" {self._endpoint.max_retry_after_s:g}; replies so far are kept, run the same"
                " command later."
            )
        self._pause.extend(wait)

    def _masked(self, text: str) -> str:
        """Put `text` on one line of printable characters, without the key."""
        line = " ".join(text.replace(self._endpoint.key or "\0", "[key]").split())
        return "".join(c if c.isprintable() else "?" for c in line)[:300]

    def _read(self, prompt: ChatPrompt, status: int, content: bytes) -> Reply:
        if status != 200:
            message = content.decode(errors="replace")
            filtered = any(code in message for code in CONTENT_FILTER_CODES)
            if status == 400 and filtered:
                return Reply(prompt.key, "", prompt.tokens, 0, False, False)
            raise RefusedRequestError(
                f"{self._endpoint.base_url} refused with HTTP {status}:"
                f" {self._masked(message)}{ADVICE.get(status, '')} (tried {self._endpoint.way})",
                status,
            )
        return reply_from(prompt, content)


class _ResponseTooLargeError(Exception):
    pass


async def _content(response: httpx2.Response) -> bytes:
    """Read the body with a limit that holds after decompression too."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
        raise _ResponseTooLargeError(f"content encoding {coding}, although none was asked for")
    unpack = None if coding in {"", "identity"} else zlib.decompressobj(wbits=47)
    content = bytearray()
    async for chunk in response.aiter_raw():
        room = MAX_RESPONSE_BYTES + 1 - len(content)
        try:
            content += chunk if unpack is None else unpack.decompress(chunk, room)
        except zlib.error as error:
            raise _ResponseTooLargeError(f"a damaged {coding} response ({error})") from error
        if len(content) > MAX_RESPONSE_BYTES:
            raise _ResponseTooLargeError(
                f"a response of more than {MAX_RESPONSE_BYTES >> 20} MB; an answer is far shorter"
            )
    return bytes(content)


def reply_from(prompt: ChatPrompt, content: bytes) -> Reply:
    """Read the reply from the body of a response with status 200.

    Raises:
        FailedReplyError: it holds no complete reply: an error, a web page, or another form.
    """
    try:
        events = looks_like_events(content)
        completion = read_completion(joined_events(content) if events else json.loads(content))
    except RecursionError:
        raise FailedReplyError("a response that is nested too deeply") from None
    except ValueError as error:
        beginning = content[:200].decode(errors="replace").strip()
        form = "a web page" if beginning[:1] == "<" else "text that is not JSON"
        form = form if beginning else "an empty response"
        raise FailedReplyError(f"{form} in place of a chat completion: {beginning}") from error
    prompt_tokens, answer_tokens = completion.prompt_tokens, completion.answer_tokens
    return Reply(
        question=prompt.key,
        text=completion.text,
        prompt_tokens=prompt.tokens if prompt_tokens is None else prompt_tokens,
        answer_tokens=(
            estimated_tokens(completion.text) if answer_tokens is None else answer_tokens
        ),
        counted=answer_tokens is not None,
        cut=completion.cut,
        reasoning_tokens=completion.reasoning_tokens,
    )


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Read the seconds that Retry-After asks for, a number or a date; None if there is none."""
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
    """Seconds before retry number `attempt`: exponential, with up to half of it taken off."""
    longest = min(MAX_BACKOFF_S, BACKOFF_S * 2.0**attempt)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


ADVICE = {
    401: " (--api-key-env names the variable that holds the key)",
    404: " (is --base-url right, with /v1, and --model one of its models?)",
}


async def run(
    questions: Sequence[Question],
    endpoint: Endpoint,
    journal: Journal,
    on_reply: Callable[[Reply], None],
) -> None:
    """Ask every question, several at a time; each reply is in `journal` before `on_reply` gets it.

    Calls in flight are waited for before an error is raised.

    Raises:
        ExaminationError: the first reason why a question cannot be answered.
        InvalidInputError: the journal cannot be written.
    """
    remaining = iter(questions)
    failures: list[ModelsatError] = []
    async with LLM(endpoint) as llm, asyncio.TaskGroup() as group:

        async def ask_remaining() -> None:
            try:
                for question in remaining:
                    reply = await llm.ask(chat_prompt(question, answer_only=endpoint.answer_only))
                    journal.add(reply)
                    on_reply(reply)
            except ModelsatError as error:
                failures.append(error)
                llm.stop()
            except asyncio.CancelledError:
                if not llm.stopped:
                    raise

        for _ in range(min(endpoint.concurrency, len(questions))):
            group.create_task(ask_remaining())
    if failures:
        raise failures[0]
