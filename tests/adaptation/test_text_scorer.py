"""Texts that are scored for their outcomes wait within bounds."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from engine.adaptation.vectors.text_scorer import TextScorer
from engine.api.errors import OverloadedError
from engine.api.request_context import PRINCIPAL
from engine.inference.batcher import Batcher
from tests.inference.test_batcher import HEAD, table
from tests.support.fake_backend import FakeBackend


class BlockedScorer(TextScorer):
    """Scores nothing until `released` is set."""

    def __init__(self) -> None:
        nothing = cast(Any, None)
        super().__init__(nothing, nothing, nothing, nothing)
        self.released = asyncio.Event()

    async def _yield(self) -> None:
        await self.released.wait()

    async def _score(self, text: str, deadline: float) -> Any:
        return text


class Letters:
    """A tokenizer."""

    def encode(self, text: str, **_: bool) -> SimpleNamespace:
        return SimpleNamespace(ids=[ord(letter) for letter in text])


async def test_texts_of_one_caller_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.adaptation.vectors.text_scorer.MAX_WAITING", 5)
    monkeypatch.setattr("engine.adaptation.vectors.text_scorer.MAX_OF_ONE", 3)
    scorer = BlockedScorer()

    async def ask(principal: str) -> Any:
        PRINCIPAL.set(principal)
        return await scorer.score("a text")

    callers = ["flood"] * 4 + ["quiet", "third", "fourth"]
    asked = [asyncio.create_task(ask(principal)) for principal in callers]
    await asyncio.sleep(0.01)
    refused = [task.done() for task in asked]
    assert refused == [False, False, False, True, False, False, True]
    for task, message in ((asked[3], "texts of this caller"), (asked[6], "texts to score")):
        with pytest.raises(OverloadedError, match=message):
            await task
    scorer.released.set()
    assert set(await asyncio.gather(*asked[:3], *asked[4:6])) == {"a text"}
    assert await asyncio.gather(*(ask("flood") for _ in range(3))) == ["a text"] * 3


async def test_many_texts_leave_the_event_loop_to_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind: texts of imported outcomes were scored in the event loop, hundreds without a break."""
    monkeypatch.setattr("engine.inference.batcher.INLINE_S", 10.0)
    batcher, of = Batcher(FakeBackend(), HEAD), table(1, 3)
    batcher.start()
    batcher.is_quiet = lambda: True
    scorer = TextScorer(
        batcher,
        cast(Any, Letters()),
        cast(Any, SimpleNamespace(table=lambda: of)),
        cast(Any, SimpleNamespace(scored=lambda *_, **__: "scored")),
    )
    await batcher.submit(np.ones(4, np.int64), of, np.arange(3))  # the next one may run inline
    turns = 0

    async def request() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(request())
    for _ in range(20):
        assert await scorer.score("a text") == "scored"
    assert turns >= 20
    other.cancel()
    await batcher.stop()
