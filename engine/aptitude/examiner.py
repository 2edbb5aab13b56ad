"""Asks what the journal does not hold yet, several questions at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from engine.aptitude.endpoint import Endpoint
from engine.aptitude.journal import Journal, Reply
from engine.aptitude.llm import LLM
from engine.aptitude.questions import Question


async def examine(
    questions: Sequence[Question],
    endpoint: Endpoint,
    journal: Journal,
    answered: Callable[[Reply], None],
) -> None:
    """Ask `questions`; each reply is in `journal` before `answered` hears of it.

    Raises ExaminationError with the first reason why one cannot be answered, InvalidInputError
    where the journal cannot be written.
    """
    waiting = iter(questions)
    async with LLM(endpoint) as llm:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(endpoint.concurrency, len(questions))):
                    group.create_task(_sit(waiting, llm, journal, answered))
        except ExceptionGroup as failed:  # the others were cancelled for the first
            raise failed.exceptions[0] from None


async def _sit(
    waiting: Iterator[Question], llm: LLM, journal: Journal, answered: Callable[[Reply], None]
) -> None:
    for question in waiting:
        reply = await llm.ask(question)
        journal.add(reply)
        answered(reply)
