"""Ask an endpoint what the journal does not answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from engine.api.errors import ModelsatError
from engine.aptitude.journal import Journal, Reply
from engine.aptitude.llm import LLM, ChatPrompt, Endpoint, RefusedRequestError
from engine.compare.costs import Budget
from engine.compare.endpoints import PricedEndpoint

REFUSED_REQUEST = {400, 413, 422}  # of this request, such as one that is too long for the model
MAX_REFUSED = 5  # requests in a row, before the first reply, after which the endpoint is at fault


class JournaledEndpoint:
    """Asks an endpoint what the journal does not answer; a reply is on disk before it counts."""

    def __init__(self, priced: PricedEndpoint, journal: Journal, budget: Budget) -> None:
        self.priced = priced
        self.replies: dict[str, Reply] = {}
        self._journal = journal
        self._budget = budget
        self._llm: LLM | None = None
        self._slots = asyncio.Semaphore(priced.endpoint.concurrency)
        self._refused = self._answered = 0

    async def open(self, stack: AsyncExitStack) -> None:
        """Open the connections, which `stack` closes."""
        self._llm = await stack.enter_async_context(LLM(self.priced.endpoint))

    def known(self, prompt: ChatPrompt) -> bool:
        """True if the journal has the reply."""
        return journal_key(self.priced, prompt) in self._journal.replies

    def answer(self, prompt: ChatPrompt) -> Reply:
        """Return the reply that the journal has."""
        return self._journal.replies[journal_key(self.priced, prompt)]

    async def ask(self, prompt: ChatPrompt) -> Reply:
        """Return the reply of the journal, or of the endpoint; raises ExaminationError."""
        key = journal_key(self.priced, prompt)
        async with self._slots:
            reply = self._journal.replies.get(key)
            if reply is None:
                reply = await self._asked(replace(prompt, key=key))
                self._journal.add(reply)
                self._budget.count(self.priced, reply)
        self.replies[key] = reply
        return reply

    async def ask_all(self, prompts: Sequence[ChatPrompt]) -> list[Reply]:
        """Ask several at a time; returns the replies in order. Raises ExaminationError."""
        return await finish_all(self.ask(prompt) for prompt in prompts)

    def stop(self) -> None:
        """Send nothing more; calls in flight finish."""
        if self._llm is not None:
            self._llm.stop()

    @property
    def stopped(self) -> bool:
        """True if `stop` was called."""
        return self._llm is not None and self._llm.stopped

    async def _asked(self, prompt: ChatPrompt) -> Reply:
        assert self._llm is not None, "open() comes first"
        try:
            reply = await self._llm.ask(prompt)
        except RefusedRequestError as error:
            self._refused += 1
            is_broken = not self._answered and self._refused >= MAX_REFUSED
            if error.status not in REFUSED_REQUEST or is_broken:
                raise
            return Reply(prompt.key, "", 0, 0, False, False, error=f"HTTP {error.status}")
        self._answered += 1
        return reply


def journal_key(priced: PricedEndpoint, prompt: ChatPrompt) -> str:
    """Name a reply by who is asked, in which way, and what."""
    return f"{priced.name}/{_way(priced.endpoint)}/{prompt.key}"


def _way(endpoint: Endpoint) -> str:
    content: list[Any] = [endpoint.base_url, endpoint.model, endpoint.max_tokens]
    encoded = json.dumps([*content, dict(endpoint.extra_body)], sort_keys=True)
    return hashlib.sha256(encoded.encode()).hexdigest()[:12]


def count_earlier(endpoints: Iterable[JournaledEndpoint], journal: Journal, budget: Budget) -> None:
    """Count what the replies of the journal cost, each once although a judge may be a candidate."""
    by_way = {f"{e.priced.name}/{_way(e.priced.endpoint)}": e.priced for e in endpoints}
    for key, reply in journal.replies.items():
        if priced := by_way.get("/".join(key.split("/")[:2])):
            budget.count(priced, reply)


async def finish_all(calls: Iterable[Awaitable[Reply]]) -> list[Reply]:
    """Wait for all calls, which are paid for, and only then raise the first error."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: not isinstance(error, ModelsatError)):
        raise error
    return [result for result in results if isinstance(result, Reply)]
