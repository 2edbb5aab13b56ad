"""Texts that are scored for their outcomes wait within bounds."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from engine.adaptation.vectors.text_scorer import TextScorer
from engine.api.errors import OverloadedError
from engine.api.request_context import PRINCIPAL


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
