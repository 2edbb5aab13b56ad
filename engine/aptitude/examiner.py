"""Asks what the journal does not hold yet, several questions at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from engine.aptitude.journal import Journal, Reply
from engine.aptitude.llm import LLM, Endpoint, ExaminationError
from engine.aptitude.questions import Question


def unanswered(questions: Sequence[Question], journal: Journal) -> list[Question]:
    """Those without a reply in `journal`."""
    return [q for q in questions if q.key not in journal.replies]


async def examine(
    questions: Sequence[Question],
    endpoint: Endpoint,
    journal: Journal,
    answered: Callable[[Reply], None],
) -> None:
    """Ask `questions`; each reply is in `journal` before `answered` hears of it.

    Raises ExaminationError with the first reason why one cannot be answered.
    """
    waiting = iter(questions)
    async with LLM(endpoint) as llm:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(endpoint.concurrency, len(questions))):
                    group.create_task(_sit(waiting, llm, journal, answered))
        except* ExaminationError as failed:
            raise failed.exceptions[0] from None


async def _sit(
    waiting: Iterator[Question], llm: LLM, journal: Journal, answered: Callable[[Reply], None]
) -> None:
    for question in waiting:
        reply = await llm.ask(question)
        journal.add(reply)
        answered(reply)
