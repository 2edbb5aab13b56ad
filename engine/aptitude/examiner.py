"""Asks what the journal does not hold yet, several questions at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from engine.aptitude.endpoint import Endpoint
from engine.aptitude.journal import Journal, Reply
from engine.aptitude.llm import LLM
from engine.aptitude.questions import Question
from engine.contract.errors import ModelsatError


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
